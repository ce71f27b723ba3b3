"""Replies on disk: nothing that was written whole is lost, nothing that was not is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from preceptor.errors import InputError
from preceptor.evaluation.endpoint_cache import EndpointCache, cache_key


def reply(text: str) -> dict[str, Any]:
    return {
        "text": text,
        "finish_reason": "stop",
        "logprobs": [{"m": -0.5}],
        "prompt_tokens": 1,
        "completion_tokens": None,
        "model": "judge",
    }


def test_what_was_added_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.jsonl"
    with EndpointCache(path) as cache:
        assert cache.get("a") is None
        cache.add("a", reply("one"))
        assert cache.get("a") == reply("one")
    with EndpointCache(path) as cache:
        assert cache.get("a") == reply("one")
        cache.add("b", reply("two\u2028lines\x85 \N{GRINNING FACE}"))
    with EndpointCache(path) as cache:
        assert cache.get("a") == reply("one")
        assert cache.get("b") == reply("two\u2028lines\x85 \N{GRINNING FACE}")
        assert cache.unreadable == 0


def test_looking_makes_no_file(tmp_path: Path) -> None:
    with EndpointCache(tmp_path / "new" / "cache.jsonl") as cache:
        assert cache.get("a") is None
    assert list(tmp_path.iterdir()) == []


def test_wherever_the_last_line_is_torn_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    with EndpointCache(path) as cache:
        cache.add("a", reply("one"))
        cache.add("b", reply("two é"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        with EndpointCache(path) as cache:
            assert cache.get("a") == reply("one")
            assert cache.get("b") is None
            cache.add("c", reply("three"))
        with EndpointCache(path) as cache:
            assert cache.get("c") == reply("three")
            assert cache.unreadable == 0
        assert path.read_bytes().startswith(whole[:first])


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b"\0\0\0\0",
        b"\xff\xfe",
        b"[1]",
        b'{"key": "b"}',
        b'{"key": "b", "reply": null}',
        b'{"key": "b", "reply": {"text": "t"}}',
        b"",
    ],
)
def test_a_line_in_the_middle_that_is_no_reply_is_passed_over_and_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "cache.jsonl"
    with EndpointCache(path) as cache:
        cache.add("a", reply("one"))
    path.write_bytes(line + b"\n" + path.read_bytes())
    with EndpointCache(path) as cache:
        assert cache.get("a") == reply("one")
        assert cache.get("b") is None
        assert cache.unreadable == 1


def test_each_reply_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_size))
    path = tmp_path / "cache.jsonl"
    with EndpointCache(path) as cache:
        for name in "abc":
            cache.add(name, reply(name))
            assert flushed[-1] == path.stat().st_size
    assert len(flushed) == 3


def test_a_write_in_pieces_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    with EndpointCache(tmp_path / "cache.jsonl") as cache:
        cache.add("a", reply("one"))
    with EndpointCache(tmp_path / "cache.jsonl") as cache:
        assert cache.get("a") == reply("one")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    with EndpointCache(path) as cache:
        cache.add("a", reply("one"))
        with pytest.raises(InputError, match="in use by another process"), EndpointCache(path):
            pass
    with EndpointCache(path) as cache:
        assert cache.get("a") == reply("one")


def test_the_key_is_over_everything_and_in_any_order() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "é"}], "max_tokens": 3}
    assert cache_key("http://a/v1", body) == cache_key("http://a/v1", dict(reversed(body.items())))
    others = [
        cache_key("http://b/v1", body),
        cache_key("http://a/v1", {**body, "model": "n"}),
        cache_key("http://a/v1", {**body, "messages": [{"role": "user", "content": "e"}]}),
        cache_key("http://a/v1", {**body, "max_tokens": 4}),
        cache_key("http://a/v1", {**body, "seed": None}),
    ]
    assert len({cache_key("http://a/v1", body), *others}) == 6
    assert all(len(key) == 64 for key in others)


def test_a_line_can_be_read_by_anybody(tmp_path: Path) -> None:
    with EndpointCache(tmp_path / "cache.jsonl") as cache:
        cache.add("a", reply("é"))
    (line,) = (tmp_path / "cache.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"key": "a", "reply": reply("é")}
    assert "é" in line
