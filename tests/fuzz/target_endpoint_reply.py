"""An endpoint's replies and the cache of them: the bodies of any server, and lines that somebody edited."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

from fuzz.scaffold import Target
from preceptor.evaluation.alpaca_eval.prompts import parse_logprobs
from preceptor.evaluation.endpoint import Reply
from preceptor.evaluation.endpoint_cache import EndpointCache
from preceptor.evaluation.endpoint_client import EndpointClient, Problem
from preceptor.evaluation.kept import Kept, header_of
from preceptor.evaluation.usage import Usage

KEY = "sk-0123456789abcdef"


def check(data: bytes, folder: Path) -> bool:
    """The first byte says what the others are: a reply's body, a cache of replies, or a record of answers."""
    kind, content = data[0] % 3 if data else 0, data[1:]
    if kind == 0:
        fields = _client()._read(content)
        if isinstance(fields, Problem):
            assert KEY not in fields.words
            return False
        path = folder / "written.jsonl"
        path.unlink(missing_ok=True)
        with EndpointCache(path) as replies:
            replies.add("key", fields)
        with EndpointCache(path) as replies:
            assert replies.unreadable == 0
            assert replies.get("key") == fields
        assert KEY.encode() not in path.read_bytes()
        _used(fields)
    elif kind == 1:
        path = folder / "cache.jsonl"
        path.write_bytes(content)
        with EndpointCache(path) as replies:
            for fields in replies._replies.values():
                _used(fields)
    else:
        path = folder / "answers.record"
        path.write_bytes(content)
        header_of(path)
        kept: Kept[str] = Kept(path, {"model": "m"}, lambda key, result: isinstance(result, dict))
        kept.add([("last", {"text": "x"})])
    return True


def _used(fields: dict[str, object]) -> None:
    reply = Reply._of(fields, cached=True)
    assert isinstance(reply.text, str)
    Usage(None).count(fields, cached=False, repeated=False)
    for top in reply.logprobs or ():
        assert all(math.isfinite(value) for value in top.values())
    preference, _ = parse_logprobs(reply.logprobs or ())
    assert preference is None or 1 <= preference <= 2


@cache
def _client() -> EndpointClient:
    client = EndpointClient.__new__(EndpointClient)  # its reader needs neither the package openai nor an event loop
    client._key = KEY
    return client


_TOKENS = [
    {"token": "m", "logprob": -0.1, "top_logprobs": [{"token": "M", "logprob": -3}, {"token": "m", "logprob": -0.1}]}
]
_REPLY = {
    "id": "x",
    "model": "judge",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "[[7]]"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}
_LOGPROBS = {**_REPLY, "choices": [{"message": {"content": None}, "logprobs": {"content": _TOKENS}}]}
_PARTS = {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": f"Bearer {KEY}"}]}}]}
_LINE = {
    "key": "k",
    "reply": {
        "text": "[[7]]",
        "finish_reason": "stop",
        "logprobs": [{"m": -0.1}],
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "model": "judge",
    },
}

TARGET = Target(
    name="endpoint_reply",
    check=check,
    seeds=[
        b"\x00" + json.dumps(_REPLY).encode(),
        b"\x00" + json.dumps(_LOGPROBS).encode(),
        b"\x00" + json.dumps(_PARTS).encode(),
        b"\x00" + json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode(),
        b"\x01" + json.dumps(_LINE).encode() + b"\n",
        b"\x02" + b'{"model": "m"}\n["1", {"text": "x"}]\n',
    ],
    words=[
        KEY.encode(),
        b"sk-01234",
        b"\\u0073",
        b"1e400",
        b"-Infinity",
        b"\\ud83d",
        b'"choices": ',
        b"[{",
        b"null",
        b"true",
    ],
)
