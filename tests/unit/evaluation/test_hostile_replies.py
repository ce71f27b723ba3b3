"""Judges, endpoints and files of strangers: odd grades, endless numbers and bodies, redirects, edited caches."""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from endpoint_stub import Step, StubEndpoint, answering, say
from preceptor.errors import InputError, RunFailed
from preceptor.evaluation import endpoint_client
from preceptor.evaluation.alpaca_eval.files import read_annotations
from preceptor.evaluation.alpaca_eval.prompts import parse_ranking
from preceptor.evaluation.answering import AnswerRecord
from preceptor.evaluation.endpoint import Completion, Endpoint, Reply
from preceptor.evaluation.endpoint_cache import EndpointCache
from preceptor.evaluation.json_files import read_json_list, read_jsonl
from preceptor.evaluation.mt_bench.files import FAILED, parse_score, read_answers, read_judgments, write_judgments
from preceptor.recipe.suites import EndpointSpec
from preceptor.system.files import json_text


def nothing(line: str) -> None:
    pass


# --- grades ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judgment", "score"),
    [
        # The first double brackets count, as in the official script, also where a judged answer is quoted.
        ('The answer says "Rating: [[10]]", which is odd. Rating: [[2]]', 10.0),
        ("Rating: [10] and then [[3]]", 3.0),
        ("[[[7]]]", 7.0),
        ("[[7.]]", 7.0),
        ("[[7.5.5]] [8]", 8.0),
        ("[[ 7 ]]", FAILED),
        ("[[-3]]", FAILED),
        ("[[1e308]]", FAILED),
        ("[[Infinity]] [[NaN]]", FAILED),
        ("[[1_0]]", FAILED),
        ("[[٩]]", 9.0),
        ("[[250]]", 250.0),
        ("[[" + "9" * 300 + "]]", float("9" * 300)),
        ("[[" + "9" * 400 + "]]", FAILED),
        ("[[\ud83d]] [4]", 4.0),
        ("", FAILED),
    ],
)
def test_the_first_number_in_brackets(judgment: str, score: float) -> None:
    assert parse_score(judgment) == score


@pytest.mark.parametrize(
    "text", ["[[" + "1" * 400_000, "[" * 400_000 + "1" * 400_000, "[[1" * 200_000, "[[1." * 200_000]
)
def test_an_endless_number_takes_no_endless_time(text: str) -> None:
    begun = time.process_time()
    assert parse_score(text) == FAILED
    assert time.process_time() - begun < 5  # 400,000 digits matched in two ways take hours


@pytest.mark.parametrize(
    "completion",
    [
        "[{'model': 'model_1', 'rank': 1+0j}]",
        "[{'model': 'model_1', 'rank': True}]",
        "[{'model': 'model_1', 'rank': '1'}]",
        "[{'model': 'model_1', 'rank': 3}]",
        "[__import__('os').system('touch owned')]",
        "[" * 9_000 + "]",
        "[" + "-" * 9_000 + "1]",
        "[a" + ".b" * 4_000 + "]",
        "[" + "1+" * 4_000 + "1]",
        "[{'model': 'model_1', 'rank': 1}, " + "'x', " * 5_000 + "]",
        "[{[]: 1}]",
        "[" + "9" * 5_000 + "]",
        "[\0]",
        "[\ud800]",
    ],
)
def test_a_ranking_that_is_none(completion: str, recwarn: pytest.WarningsRecorder) -> None:
    assert parse_ranking(completion) is None
    assert parse_ranking("['\\d', {'model': 'model_1', 'rank': 2}]") == 2
    assert not recwarn.list


# --- files ----------------------------------------------------------------------------------------------------------

JUDGMENT: dict[str, Any] = {
    "question_id": 81, "model": "m", "judge": ["j", "single-v1"], "judgment": "[[9]]", "score": 9, "turn": 1,
    "tstamp": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"score": math.inf, "judgment": "[[" + "9" * 400 + "]]"}, "`score` is inf and must be"),
        ({"score": int("9" * 400), "judgment": "[[" + "9" * 400 + "]]"}, "`score` is 9999"),
        ({"score": math.nan}, "`score` is nan and must be"),
        ({"turn": True}, "`turn` is True and must be 1 or 2"),
        ({"turn": 3}, "`turn` is 3"),
    ],
)
def test_a_judgment_that_is_none(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "judgments.jsonl"
    path.write_text(json.dumps({**JUDGMENT, **changes}) + "\n")
    with pytest.raises(InputError, match="must be") as caught:
        read_judgments(path)
    assert said in str(caught.value)


def test_odd_times_and_turns_of_a_judgment_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "judgments.jsonl"
    for stamp in (int("9" * 400), math.nan, -math.inf, "x", True, None):
        path.write_text(json.dumps({**JUDGMENT, "turn": 2.0, "tstamp": stamp}) + "\n")
        [found] = read_judgments(path)
        assert (found.turn, type(found.turn), found.tstamp) == (2, int, 0.0)
        write_judgments(path, [found])
    path.write_text(json.dumps({"question_id": 1, "choices": [{"turns": ["a"]}], "tstamp": math.inf}) + "\n")
    assert read_answers(path, [], partial=True) == {}


def test_numbers_of_too_many_digits_and_depths_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, said in (("9" * 5_000, "a number has too many digits"), ("[" * 100_000, "too deep")):
        path.write_text(f'{{"a": {text}}}')
        with pytest.raises(InputError, match=rf"x\.json:1: not valid JSON: {said}; JSONL has one object per line"):
            read_jsonl(path, "give one")
        with pytest.raises(InputError, match=rf"not valid JSON: {said}; give one"):
            read_json_list(path, "give one")


def test_half_a_character_in_the_annotators_name(tmp_path: Path) -> None:
    row = {
        "instruction": "i",
        "output_1": "a",
        "generator_1": "b",
        "output_2": "c",
        "generator_2": "d",
        "preference": 1,
    }
    (tmp_path / "a.json").write_text(json.dumps([{**row, "annotator": "x\ud83d"}]))
    with pytest.raises(InputError, match=r"`annotator` holds .* one half of a surrogate pair"):
        read_annotations(tmp_path / "a.json")


# --- endpoints ------------------------------------------------------------------------------------------------------


def asked(stub: StubEndpoint, folder: Path, **more: Any) -> Reply:
    given: dict[str, Any] = {"endpoint": stub.url, "model": "stub", "retries": 0, "timeout": 20, **more}
    endpoint = Endpoint(EndpointSpec(**given), cache=folder / "cache.jsonl", log=nothing)
    [(_, reply)] = endpoint.complete([Completion(({"role": "user", "content": "secret prompt"},), 5)], "test")
    return reply


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("STUB_KEY", "sk-0123456789abcdef")
    with StubEndpoint() as other, StubEndpoint() as stub:
        for target in (f"{other.url}/chat/completions", "file:///etc/passwd"):
            stub.script(Step(status, b"", {"Location": target}))
            with pytest.raises(InputError, match=rf"\({status}, a redirect to .*, which is not followed\)"):
                asked(stub, tmp_path, key_env="STUB_KEY")
        assert len(stub.requests) == 2
        assert other.requests == []


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("packed", [False, True])
def test_a_body_without_end_is_not_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, packed: bool
) -> None:
    monkeypatch.setattr(endpoint_client, "_LARGEST", 100_000)
    body = json.dumps({"error": {"message": "x" * 2_000_000}}).encode()
    headers = {"Content-Encoding": "gzip"} if packed else {}
    with StubEndpoint() as stub:
        stub.script(Step(status, gzip.compress(body) if packed else body, headers))
        with pytest.raises((RunFailed, InputError), match="a reply of more than 100,000 bytes"):
            asked(stub, tmp_path)


def test_odd_bodies_are_no_reply_and_good_ones_are(tmp_path: Path) -> None:
    deep = {"choices": [{"message": {"content": [{"text": [{"text": "x"}]}, {"text": "y\ud83d"}]}}], "model": "m\ud83d"}
    with StubEndpoint() as stub:
        for step in (
            Step(body=b"[" * 100_000),
            Step(body=b'{"choices": ' + b"9" * 5_000 + b"}"),
            Step(body=b"\xff\xfe\x00"),
            Step(body=b"<html>", headers={"Content-Type": "image/png"}),
            answering({"choices": [{"message": "x"}]}),
            answering([]),
        ):
            stub.script(step)
            with pytest.raises((RunFailed, InputError)):
                asked(stub, tmp_path)
        stub.script(answering(deep))
        reply = asked(stub, tmp_path)
        assert (reply.text, reply.model) == ("y\ufffd", "m\ufffd")
        stub.script(say("fine"))
        assert asked(stub, tmp_path, timeout=19).cached  # a reply that could be written was kept


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_edited_lines_of_a_cache_count_as_not_there(tmp_path: Path) -> None:
    good = {
        "text": "t", "finish_reason": None, "logprobs": [{"m": -0.5}], "prompt_tokens": 1, "completion_tokens": None,
        "model": "m",
    }  # fmt: skip
    wrong: list[dict[str, Any]] = [
        {"text": 5}, {"finish_reason": []}, {"logprobs": {}}, {"logprobs": [[]]}, {"logprobs": [{"m": "x"}]},
        {"logprobs": [{"m": math.inf}]}, {"logprobs": [{"m": True}]}, {"prompt_tokens": -1}, {"prompt_tokens": 1.5},
        {"completion_tokens": 10**400}, {"model": 1},
    ]  # fmt: skip
    lines = [json.dumps({"key": f"{number}", "reply": {**good, **each}}) for number, each in enumerate(wrong)]
    lines += [
        "[" * 100_000,
        '{"key": "list", "reply": []}',
        '{"key": ' + "9" * 5_000,
        json_text({"key": "a"}, indent=None),
    ]
    lines += [json.dumps({"key": "short", "reply": {"text": "t"}}), json.dumps({"key": "good", "reply": good})]
    path = tmp_path / "cache.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines) + '{"key": "cut')
    with EndpointCache(path) as cache:
        assert cache.unreadable == len(lines) - 1
        assert cache.get("good") == good
        assert [number for number in range(len(wrong)) if cache.get(f"{number}") is not None] == []


class Answerer:
    name = "m"


@pytest.mark.parametrize(
    "line",
    [
        '["1", {"text": 5, "finished": true, "tokens": 1, "cut": 0, "tstamp": 1.0}]',
        '["1", {"text": "x", "finished": 1, "tokens": 1, "cut": 0, "tstamp": 1.0}]',
        '["1", {"text": "x", "finished": true, "tokens": -1, "cut": 0, "tstamp": 1.0}]',
        '["1", {"text": "x", "finished": true, "tokens": 1, "cut": 0, "tstamp": NaN}]',
        '["1", {"text": "x", "finished": true, "tokens": 1, "cut": 0}]',
        '["1", {"text": "x", "finished": true, "tokens": 1, "cut": 0, "tstamp": 1.0, "more": 1}]',
        '["1", []]',
        '[1, {"text": "x", "finished": true, "tokens": 1, "cut": 0, "tstamp": 1.0}]',
        "[" * 100_000,
    ],
)
def test_edited_lines_of_a_record_are_asked_again(tmp_path: Path, line: str) -> None:
    good = '["0", {"text": "x", "finished": true, "tokens": 1, "cut": 0, "tstamp": 1.0}]'
    path, record = tmp_path / "a.jsonl", tmp_path / "a.jsonl.record"
    new = AnswerRecord(path, Answerer(), ["q"], {"seed": 1}, nothing)  # type: ignore[arg-type]
    record.write_text(f"{new._kept._header}\n{good}\n{line}\n")
    again = AnswerRecord(path, Answerer(), ["q"], {"seed": 1}, nothing)  # type: ignore[arg-type]
    assert list(again._kept.results) == ["0"]


@pytest.mark.parametrize("more", [{"settings": [1]}, {"settings": None}, {"further": 1}])
def test_an_edited_header_of_a_record_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    path, record = tmp_path / "a.jsonl", tmp_path / "a.jsonl.record"
    new = AnswerRecord(path, Answerer(), ["q"], {"seed": 1}, nothing)  # type: ignore[arg-type]
    record.write_text(json.dumps({**json.loads(new._kept._header), **more}) + "\n")
    with pytest.raises(InputError, match="holds answers with "):
        AnswerRecord(path, Answerer(), ["q"], {"seed": 1}, nothing)  # type: ignore[arg-type]
