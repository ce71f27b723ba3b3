"""A served model as an answerer: what is sent, what is made of replies, and a killed run that asks nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from answerers import Echo, Killed
from endpoint_stub import StubEndpoint, error, say
from preceptor.errors import RunFailed
from preceptor.evaluation.chats import Answer, ChatRequest
from preceptor.evaluation.endpoint import Endpoint
from preceptor.evaluation.endpoint_answers import EndpointAnswerer
from preceptor.evaluation.mt_bench.answers import answer_mt_bench
from preceptor.evaluation.mt_bench.files import Question
from preceptor.recipe.suites import EndpointSpec, MtBenchSpec

USER = ({"role": "user", "content": "hello"},)
QUESTIONS = [Question(i, ("math", "writing")[i % 2], (f"first {i}", f"second {i}")) for i in range(6)]
SPEC = MtBenchSpec(questions="q.jsonl", max_new_tokens=20)


def endpoint(stub: StubEndpoint, folder: Path, said: list[str] | None = None, concurrency: int = 3) -> Endpoint:
    spec = EndpointSpec(endpoint=stub.url, model="served", concurrency=concurrency, timeout=60, retries=0)
    return Endpoint(spec, cache=folder / "cache.jsonl", log=print if said is None else said.append)


def test_a_request_is_sent_as_it_is_and_its_reply_is_the_answer(tmp_path: Path) -> None:
    asked = [
        ChatRequest(USER, 30, 0.0, 7),
        ChatRequest((*USER, {"role": "assistant", "content": "hi"}, *USER), 40, 0.7, 8, top_p=0.9),
    ]
    with StubEndpoint() as stub:
        stub.answer = lambda body: say(
            f" limit {body['max_tokens']}\n",
            finish_reason="stop" if body["max_tokens"] == 30 else "length",
            usage=(3, body["max_tokens"]),
        )
        answerer = EndpointAnswerer(endpoint(stub, tmp_path), name="m")
        found = dict(answerer.answer(asked, lambda rows, tokens: None))
    assert answerer.name == "m"
    assert found == {0: Answer("limit 30", True, 30), 1: Answer("limit 40", False, 40)}
    sent = sorted(stub.requests, key=lambda body: body["max_tokens"])
    assert sent == [
        {"model": "served", "messages": list(asked[0].messages), "max_tokens": 30, "temperature": 0.0},
        {
            "model": "served",
            "messages": list(asked[1].messages),
            "max_tokens": 40,
            "temperature": 0.7,
            "seed": 8,
            "top_p": 0.9,
        },
    ]


@pytest.mark.parametrize(("reason", "finished"), [("stop", True), (None, True), ("eos_token", True), ("length", False)])
def test_an_answer_is_finished_unless_the_endpoint_says_otherwise(
    tmp_path: Path, reason: str | None, finished: bool
) -> None:
    with StubEndpoint(lambda body: say("well", finish_reason=reason)) as stub:
        answerer = EndpointAnswerer(endpoint(stub, tmp_path), name="m")
        ((_, answer),) = answerer.answer([ChatRequest(USER, 30, 0.0, 7)], lambda rows, tokens: None)
    assert answer.finished == finished


def test_a_question_the_endpoint_refuses_has_an_empty_answer(tmp_path: Path) -> None:
    words = "maximum context length is 10 tokens"
    with StubEndpoint() as stub:
        stub.answer = lambda body: error(400, words) if len(body["messages"][-1]["content"]) > 20 else "well"
        answerer = EndpointAnswerer(endpoint(stub, tmp_path, concurrency=1), name="m")
        asked = [ChatRequest(USER, 30, 0.0, 7), ChatRequest(({"role": "user", "content": "x" * 30},), 30, 0.0, 7)]
        found = dict(answerer.answer(asked, lambda rows, tokens: None))
    assert found == {0: Answer("well", True, 5), 1: Answer("", False, 0)}


def said_by(body: dict[str, Any]) -> str:
    last = body["messages"][-1]["content"]
    return f"to {last} after {len(body['messages'])}, {body['temperature']}, {body.get('seed')}"


def texts(path: Path) -> list[list[str]]:
    return [json.loads(line)["choices"][0]["turns"] for line in path.read_text().splitlines()]


def test_mt_bench_through_an_endpoint_that_fails_and_a_run_that_is_killed(tmp_path: Path) -> None:
    with StubEndpoint(said_by) as stub:
        whole = EndpointAnswerer(endpoint(stub, tmp_path / "whole"), name="m")
        answer_mt_bench(QUESTIONS, whole, SPEC, tmp_path / "whole" / "m.jsonl", 5)
    assert len(stub.requests) == 12
    path, said = tmp_path / "m.jsonl", []
    with StubEndpoint(said_by) as stub:
        stub.script(say("to first 0 after 1, 0.0, None"), error(500))
        asking = EndpointAnswerer(endpoint(stub, tmp_path, concurrency=1), name="m")
        with pytest.raises(RunFailed, match="replies are kept in"):
            answer_mt_bench(QUESTIONS, asking, SPEC, path, 5)
        assert not path.exists()
        with pytest.raises(KeyboardInterrupt):
            answer_mt_bench(QUESTIONS, Killed(asking, 7), SPEC, path, 5)
        before = [json.dumps(body) for body in stub.requests]
        asking = EndpointAnswerer(endpoint(stub, tmp_path, said, concurrency=1), name="m")
        answer_mt_bench(QUESTIONS, asking, SPEC, path, 5, said.append)
        after = [json.dumps(body) for body in stub.requests[len(before) :]]
    assert len(before) + len(after) <= 12 + 2  # the one that failed, and the one under way when the run was killed
    assert len(set(before) & set(after)) <= 1
    assert texts(path) == texts(tmp_path / "whole" / "m.jsonl")
    assert texts(path)[0][1] == "to second 0 after 3, 0.0, None"
    assert "m: MT-Bench, turn 2 of 2, goes on after 2 of 6" in said
    # The endpoint tells how far it is, with its cost; a second line saying the same would only confuse.
    assert len(said) == len(set(said))
    assert not any(line.startswith("m: MT-Bench") and "rows" in line for line in said)


def test_both_kinds_of_answerer_are_asked_the_same(tmp_path: Path) -> None:
    echo = Echo("m")
    answer_mt_bench(QUESTIONS, echo, SPEC, tmp_path / "echo.jsonl", 5)
    with StubEndpoint(lambda body: f"to {body['messages'][-1]['content']}: {body.get('seed')}") as stub:
        served = EndpointAnswerer(endpoint(stub, tmp_path), name="m")
        answer_mt_bench(QUESTIONS, served, SPEC, tmp_path / "served.jsonl", 5)
    ours, theirs = texts(tmp_path / "echo.jsonl"), texts(tmp_path / "served.jsonl")
    writing = [i for i, each in enumerate(QUESTIONS) if each.category == "writing"]
    assert [ours[i] for i in writing] == [theirs[i] for i in writing]  # at temperature 0 no seed is sent
