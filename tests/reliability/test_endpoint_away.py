"""An endpoint that goes away and returns: asked again with patience, nothing is paid twice, and it ends some time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import preceptor
from endpoint_stub import Step, StubEndpoint, error, reset, say
from preceptor.errors import InputError, RunFailed
from preceptor.evaluation import endpoint_batch
from preceptor.evaluation.endpoint import Completion, Endpoint
from preceptor.evaluation.endpoint_batch import FIRST_WAIT, LONGEST_WAIT
from preceptor.recipe import EndpointSpec
from preceptor.stages import store as store_stage
from preceptor.teachers import served
from preceptor.teachers.served import ServedTeacher
from stored_recipes import recipe

ASKED = [f"question {i}" for i in range(12)]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of hundredths of seconds, and every failed attempt is said."""
    monkeypatch.setattr(endpoint_batch, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(endpoint_batch, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(endpoint_batch, "SAY_SECONDS", 0.0)


def replies(url: str, cache: Path, said: Callable[[str], None], **spec: Any) -> list[str]:
    asked = [Completion(({"role": "user", "content": text},), 8) for text in ASKED]
    given = {"concurrency": 2, "timeout": 1.0, "retries": 400, **spec}
    endpoint = Endpoint(EndpointSpec(endpoint=url, model="m", **given), cache=cache, log=said)
    return [reply.text for _, reply in sorted(endpoint.complete(asked, "judging"), key=lambda each: each[0])]


class Judge:
    """Answers each question by its number, and counts the replies that went out whole."""

    def __init__(self) -> None:
        self.whole: list[str] = []
        self.failing: list[Step] = []

    def __call__(self, body: dict[str, Any]) -> str | Step:
        question = str(body["messages"][-1]["content"])
        if self.failing and len(self.whole) >= 2:
            return self.failing.pop()
        self.whole.append(question)
        return f"answer to {question}"


def test_it_fails_in_every_way_then_goes_away_and_returns(tmp_path: Path) -> None:
    judge, said, cache = Judge(), [], tmp_path / "replies.jsonl"
    judge.failing = [
        error(429, "slow down", retry_after=0.05),
        error(503, "overloaded"),
        reset(),
        replace(say("half of this is sent"), cut=True),
        say("too late").after(3),
        error(500, "worse"),
    ]
    away, back = threading.Event(), threading.Event()

    def answer(body: dict[str, Any]) -> str | Step:
        if len(judge.whole) >= 6 and not back.is_set():
            away.set()
            return reset()
        return judge(body)

    with StubEndpoint(answer) as first:
        url, port = first.url, int(first.url.split(":")[2].removesuffix("/v1"))
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.extend(replies(url, cache, said.append, concurrency=1)))
        asking.start()
        assert away.wait(60)
    time.sleep(0.5)  # nobody is there
    assert asking.is_alive(), "it waits"
    back.set()
    with StubEndpoint(answer, port):
        asking.join(60)
    assert found == [f"answer to {question}" for question in ASKED]
    assert sorted(judge.whole) == sorted(ASKED), "none was answered twice"
    text = "\n".join(said)
    for words in ("429: slow down", "503: overloaded", "the connection was lost", "no whole reply within 1 s"):
        assert words in text
    assert "no connection (" in text
    assert f"m at {url}: " in text
    assert "attempt 3 of 401 in 0.0 s" in text
    assert "retried" in said[-1]


def test_it_stays_away_and_the_same_command_asks_for_the_rest(tmp_path: Path) -> None:
    judge, cache = Judge(), tmp_path / "replies.jsonl"

    def answer(body: dict[str, Any]) -> str | Step:
        return judge(body) if len(judge.whole) < 5 else reset()

    with StubEndpoint(answer) as stub:
        with pytest.raises(RunFailed) as caught:
            replies(stub.url, cache, print, retries=3, concurrency=1)
        assert str(caught.value).startswith(
            f"m at {stub.url}: a request came to no reply in 4 attempts, at last: the connection was lost ("
        )
        assert str(caught.value).endswith(f"; 5 of 12 replies are kept in {cache}")
        judge.whole.clear()
        stub.answer = judge
        assert replies(stub.url, cache, print) == [f"answer to {question}" for question in ASKED]
    assert judge.whole == ASKED[5:]
    assert len(cache.read_text().splitlines()) == len(ASKED)


def test_how_long_it_is_waited_for() -> None:
    """What docs/reliability.md says, in seconds; the time that attempts take comes on top."""
    retries = EndpointSpec(endpoint="http://127.0.0.1:9/v1", model="m").retries
    most = sum(min(FIRST_WAIT * 2.0**i, LONGEST_WAIT) for i in range(retries))
    assert (retries, most, most / 2) == (12, 423.0, 211.5)


# --- a teacher behind an endpoint -------------------------------------------------------------------------------


def teacher(url: str, said: list[str], **given: Any) -> ServedTeacher:
    return ServedTeacher(url, "big", key="no-one-may-see-this", log=said.append, **given)


def test_a_served_teacher_that_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(served, "_SAY_SECONDS", 0.0)
    said: list[str] = []
    asked = teacher("http://127.0.0.1:9/v1", said)
    whole = {"choices": [{"prompt_logprobs": [None, {"5": {"logprob": -0.1}}]}]}
    outcomes: list[Any] = [whole, ConnectionResetError(104, "reset"), TimeoutError("no-one-may-see-this"), whole]

    def post(body: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(asked, "_post", post)
    assert asked._ask([1, 5], 1) == asked._ask([1, 5], 1)
    assert pauses == [1.0, 2.0]
    assert said == [
        "http://127.0.0.1:9/v1/completions: ConnectionResetError: [Errno 104] reset; attempt 2 of 13 in 1 s",
        "http://127.0.0.1:9/v1/completions: TimeoutError: ***; attempt 3 of 13 in 2 s",
    ]


def test_a_served_teacher_that_is_not_there_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waited"))
    with StubEndpoint() as stub:
        url = stub.url
    with pytest.raises(InputError) as caught:
        teacher(url, [])._ask([1, 5], 1)
    assert str(caught.value).startswith(f"teacher big at {url}/completions: nobody is there (URLError: ")
    assert str(caught.value).endswith("; start the server, or set `endpoint` to the URL of one that runs")


def test_what_a_served_teacher_said_before_it_went_is_kept(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    real = store_stage.store_batch
    count = [0]

    def goes(*args: Any, **kwargs: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise RuntimeError("teacher big does not answer (no connection)")
        real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_stage, "store_batch", goes)
        with pytest.raises(RunFailed, match="does not answer"):
            preceptor.run(made, only=None, log=lambda line: None)
    said: list[str] = []
    preceptor.run(made, log=said.append)
    assert any("goes on after 8 of " in line for line in said), said
    assert json.loads((tmp_path / "runs/r/st/stage.json").read_text())["results"]["rows"] == 40
    assert len(list((tmp_path / "runs/r/st/store").glob("*.safetensors"))) == 2
