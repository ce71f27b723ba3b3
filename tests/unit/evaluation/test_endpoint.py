"""A judge that stumbles and falls silent is asked until it replies, and never again for what it has replied to."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from endpoint_stub import Step, StubEndpoint, answering, error, malformed, reset, say
from preceptor.errors import InputError, RunFailed
from preceptor.evaluation import endpoint_batch
from preceptor.evaluation.endpoint import Completion, Endpoint, Reply
from preceptor.evaluation.usage import Usage
from preceptor.recipe.suites import EndpointSpec, PriceSpec

KEY = "sk-proj-0123456789abcdefXYZ"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_batch, "FIRST_WAIT", 0.01)


@pytest.fixture
def stub() -> Iterator[StubEndpoint]:
    with StubEndpoint(echo) as running:
        yield running


def echo(body: dict[str, Any]) -> str:
    return f"reply to {asked(body)}"


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def ask(text: str, **given: Any) -> Completion:
    return Completion(({"role": "user", "content": text},), **{"max_tokens": 16, **given})


def questions(count: int) -> list[Completion]:
    return [ask(f"q{i}") for i in range(count)]


Make = Callable[..., Endpoint]


@pytest.fixture
def make(stub: StubEndpoint, tmp_path: Path) -> Make:
    """An endpoint at the stub, with a list of its lines as `lines`."""

    def build(**given: Any) -> Endpoint:
        spec = EndpointSpec(**{"endpoint": stub.url, "model": "stub", "timeout": 10.0, "retries": 3, **given})
        return Endpoint(spec, cache=tmp_path / "requests" / "judge.jsonl", log=LINES.append)

    LINES.clear()
    return build


LINES: list[str] = []


def replies(endpoint: Endpoint, requests: list[Completion]) -> list[Reply]:
    """Replies in the order of the requests, each index once."""
    found = list(endpoint.complete(requests, "judging"))
    assert sorted(i for i, _ in found) == list(range(len(requests)))
    return [reply for _, reply in sorted(found, key=lambda pair: pair[0])]


def together(stub: StubEndpoint, count: int) -> Callable[[dict[str, Any]], str]:
    """Answers only when `count` requests are, or have been, under way at once; the first one ever does not wait."""

    def answer(body: dict[str, Any]) -> str:
        until = time.monotonic() + 100
        while len(stub.requests) > 1 and stub.most_at_once < count and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.1)  # so that one too many would be seen
        return "ok"

    return answer


class TestAsking:
    def test_every_request_gets_its_own_reply(self, stub: StubEndpoint, make: Make) -> None:
        found = replies(make(concurrency=4), questions(20))
        assert [reply.text for reply in found] == [f"reply to q{i}" for i in range(20)]
        assert found[3] == Reply("reply to q3", "stop", None, 10, 5, cached=False, model="stub-2026")

    def test_no_more_requests_at_once_than_the_spec_says(self, stub: StubEndpoint, make: Make) -> None:
        stub.answer = together(stub, 3)
        replies(make(concurrency=3), questions(7))
        assert stub.most_at_once == 3

    def test_the_first_request_to_a_stranger_goes_alone(self, stub: StubEndpoint, make: Make) -> None:
        seen: list[int] = []

        def answer(body: dict[str, Any]) -> str:
            if asked(body) == "q0":
                time.sleep(0.2)
                seen.append(len(stub.requests))
            return "ok"

        stub.answer = answer
        endpoint = make(concurrency=8)
        replies(endpoint, questions(8))
        assert seen == [1]
        stub.answer = together(stub, 8)
        replies(endpoint, [ask(f"later {i}") for i in range(8)])
        assert stub.most_at_once == 8

    def test_only_what_is_set_is_sent(self, stub: StubEndpoint, make: Make) -> None:
        replies(make(), [ask("q", temperature=None)])
        replies(make(), [ask("q", temperature=0.7, top_p=0.9, seed=3, top_logprobs=5)])
        replies(make(token_limit_field="max_completion_tokens"), [ask("q")])
        messages = [{"role": "user", "content": "q"}]
        assert stub.requests == [
            {"model": "stub", "messages": messages, "max_tokens": 16},
            {
                "model": "stub",
                "messages": messages,
                "max_tokens": 16,
                "temperature": 0.7,
                "top_p": 0.9,
                "seed": 3,
                "logprobs": True,
                "top_logprobs": 5,
            },
            {"model": "stub", "messages": messages, "max_completion_tokens": 16, "temperature": 0.0},
        ]

    def test_nothing_to_ask(self, stub: StubEndpoint, make: Make) -> None:
        assert replies(make(), []) == []
        assert stub.requests == []

    def test_half_a_surrogate_pair_can_be_sent_and_received(self, stub: StubEndpoint, make: Make) -> None:
        stub.answer = lambda body: say("cut \ud83d")
        found = replies(make(), [ask("broken \ud83d")])[0]
        assert asked(stub.requests[0]) == "broken \N{REPLACEMENT CHARACTER}"
        assert found.text == "cut \N{REPLACEMENT CHARACTER}"
        assert replies(make(), [ask("broken \ud83d")])[0].text == found.text


class TestTryingAgain:
    @pytest.mark.parametrize(
        "step",
        [
            *(error(status) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)),
            malformed(),
            replace(malformed(), body=b"<html>gateway</html>"),
            replace(malformed(), body=b"\xff\xfe"),
            reset(),
            replace(say("half"), cut=True),
            answering({"choices": []}),
            answering({"choices": None}),
            answering({"choices": [{"index": 0}]}),
            answering({"error": {"message": "upstream is down", "code": 502}}),
            answering([1, 2]),
            answering("ok"),
        ],
        ids=lambda step: f"{step.status}{' reset' * step.reset}{' cut' * step.cut} {step.body[:24]!r}",
    )
    def test_what_may_pass(self, stub: StubEndpoint, make: Make, step: Step) -> None:
        stub.script(step, step)
        endpoint = make()
        assert replies(endpoint, [ask("q")])[0].text == "reply to q"
        assert len(stub.requests) == 3
        assert endpoint.usage.retried == 2

    @pytest.mark.parametrize("step", [say("late").after(30), say("late").dripping(0.1)], ids=["silent", "dripping"])
    def test_a_reply_must_be_whole_in_time(self, stub: StubEndpoint, make: Make, step: Step) -> None:
        # The drip sends a byte long before any time-out between two bytes could run out.
        stub.script(step)
        started = time.monotonic()
        assert replies(make(timeout=1.0), [ask("q")])[0].text == "reply to q"
        assert 1.0 <= time.monotonic() - started < 15
        assert len(stub.requests) == 2

    def test_a_slow_reply_in_time_is_taken(self, stub: StubEndpoint, make: Make) -> None:
        stub.script(say("ok", usage=None).dripping(0.001))
        assert replies(make(), [ask("q")])[0].text == "ok"
        assert len(stub.requests) == 1

    def test_each_request_has_attempts_of_its_own(self, stub: StubEndpoint, make: Make) -> None:
        seen: Counter[str] = Counter()

        def answer(body: dict[str, Any]) -> str | Step:
            seen[asked(body)] += 1
            return error(503) if seen[asked(body)] <= 3 else echo(body)

        stub.answer = answer
        endpoint = make(retries=3, concurrency=4)
        assert [reply.text for reply in replies(endpoint, questions(6))] == [f"reply to q{i}" for i in range(6)]
        assert set(seen.values()) == {4}
        assert endpoint.usage.retried == 18

    def test_it_gives_up_after_the_retries_of_the_spec(self, stub: StubEndpoint, make: Make) -> None:
        stub.answer = lambda body: error(500)
        endpoint = make(retries=2)
        with pytest.raises(RunFailed):
            replies(endpoint, [ask("q")])
        assert len(stub.requests) == 3
        assert endpoint.usage.failed == 1

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
    def test_what_cannot_pass_is_not_tried_again(self, stub: StubEndpoint, make: Make, status: int) -> None:
        stub.answer = lambda body: error(status)
        with pytest.raises(InputError):
            replies(make(), questions(8))
        assert len(stub.requests) == 1

    def test_the_back_off_doubles_with_jitter(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint_batch, "FIRST_WAIT", 1.0)
        endpoint = make()
        batch = endpoint_batch.Batch(
            endpoint.spec, None, {}, keep=lambda key, fields: None, usage=endpoint.usage, met=True, log=LINES.append
        )
        passing = endpoint_batch.Problem("passing", "500")
        for attempt, most in ((1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (2000, 60.0)):
            waits = [batch._wait(attempt, 0.0, passing) for _ in range(50)]
            assert most / 2 <= min(waits) < max(waits) <= most
        assert all(9.0 < batch._wait(1, 8.5, passing) <= 9.5 for _ in range(50))

    @pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {"retry-after-ms": "1000"}])
    def test_all_workers_wait_as_long_as_the_endpoint_asks(
        self, stub: StubEndpoint, make: Make, headers: dict[str, str]
    ) -> None:
        times: list[float] = []
        number = itertools.count()

        def answer(body: dict[str, Any]) -> str | Step:
            times.append(time.monotonic())
            return replace(error(429), headers=headers) if next(number) == 1 else say("ok").after(0.4)

        stub.answer = answer
        replies(make(concurrency=2), questions(6))
        # The first went alone. Of the next two one is refused; nothing else goes out before the wait is over.
        assert [each for each in times[3:] if each < times[1] + 1.0] == []

    def test_it_does_not_wait_for_hours(self, stub: StubEndpoint, make: Make) -> None:
        stub.answer = lambda body: error(429, retry_after=86_400)
        with pytest.raises(RunFailed, match="asking to wait 86,400 s"):
            replies(make(), [ask("q")])
        assert len(stub.requests) == 1

    def test_an_empty_account_is_not_asked_again(self, stub: StubEndpoint, make: Make) -> None:
        body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
        stub.answer = lambda _: replace(answering(body), status=429)
        with pytest.raises(InputError, match="no quota left"):
            replies(make(), [ask("q")])
        assert len(stub.requests) == 1

    def test_failed_attempts_are_said_but_not_each(self, stub: StubEndpoint, make: Make) -> None:
        stub.script(error(503, "overloaded"), error(503), error(503))
        replies(make(), questions(3))
        said = [line for line in LINES if "503" in line]
        assert len(said) == 1
        assert said[0].startswith(f"stub at {stub.url}: 503: overloaded; attempt 2 of 4 in 0.0 s")


class TestContent:
    def test_a_reply_that_was_cut(self, stub: StubEndpoint, make: Make) -> None:
        stub.script(say("half a sent", finish_reason="length"), say(None, finish_reason="length"))
        endpoint = make(concurrency=1)
        first, second = replies(endpoint, questions(2))
        assert (first.text, first.finish_reason) == ("half a sent", "length")
        assert (second.text, second.finish_reason) == ("", "length")
        assert endpoint.usage.cut == 2
        assert "2 cut at the token limit" in LINES[-1]

    def test_a_reply_in_parts_and_one_without_counts(self, stub: StubEndpoint, make: Make) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
        stub.script(answering({"choices": [{"message": {"content": parts}}]}))
        endpoint = make()
        assert replies(endpoint, [ask("q")])[0] == Reply("ab", None, None, 0, 0, cached=False, model=None)
        assert endpoint.usage.uncounted == 1

    def test_log_probabilities_of_every_token(self, stub: StubEndpoint, make: Make) -> None:
        stub.script(say("mx", logprobs=[{"m": -0.25, "M": -1.5}, {"x": -0.5}]))
        assert replies(make(), [ask("q", top_logprobs=2)])[0].logprobs == ({"m": -0.25, "M": -1.5}, {"x": -0.5})
        assert replies(make(), [ask("q", top_logprobs=2)])[0].logprobs == ({"m": -0.25, "M": -1.5}, {"x": -0.5})

    def test_odd_log_probabilities(self, stub: StubEndpoint, make: Make) -> None:
        tops = [
            {"token": "a", "logprob": -3.0},
            {"token": "a", "logprob": -2.0},
            {"token": "a", "logprob": -4.0},
            {"token": "b", "logprob": -float("inf")},
            {"token": None, "logprob": -1.0},
            {"token": "c", "logprob": "-1"},
            "d",
        ]
        content = [
            {"token": "m", "logprob": -0.5, "top_logprobs": tops},
            {"token": "n", "logprob": -0.1, "top_logprobs": 3},
        ]
        body = {"choices": [{"message": {"content": "mn"}, "logprobs": {"content": content}}]}
        stub.script(answering(body))
        # The chosen token counts, though it is not among the most probable; the likelier of two that read alike.
        assert replies(make(), [ask("q")])[0].logprobs == ({"m": -0.5, "a": -2.0}, {"n": -0.1})

    @pytest.mark.parametrize("given", [None, {}, {"content": None}, {"content": []}, {"content": ["m"]}, [], "no"])
    def test_no_log_probabilities(self, stub: StubEndpoint, make: Make, given: Any) -> None:
        stub.script(answering({"choices": [{"message": {"content": "m"}, "logprobs": given}]}))
        assert replies(make(), [ask("q", top_logprobs=5)])[0].logprobs is None

    @pytest.mark.parametrize(
        ("step", "reason"),
        [
            (error(400, "The response was filtered due to Azure's content management policy"), "content_filter"),
            (error(400, "This model's maximum context length is 4096 tokens, you requested 5000"), "context_length"),
        ],
    )
    def test_content_that_is_refused_ends_nothing_and_is_not_kept(
        self, stub: StubEndpoint, make: Make, step: Step, reason: str
    ) -> None:
        stub.answer = lambda body: step if asked(body) == "q1" else echo(body)
        endpoint = make()
        found = replies(endpoint, questions(3))
        assert [reply.text for reply in found] == ["reply to q0", "", "reply to q2"]
        assert found[1].finish_reason == reason
        assert endpoint.usage.failed == 1
        assert any("refuses the content of a request" in line for line in LINES)
        stub.answer = echo
        assert replies(make(), questions(3))[1].text == "reply to q1"
        assert len(stub.requests) == 4


class TestPayingOnce:
    def test_replies_are_kept(self, stub: StubEndpoint, make: Make) -> None:
        first = replies(make(), questions(5))
        again = make()
        second = replies(again, questions(5))
        assert len(stub.requests) == 5
        assert second == [replace(reply, cached=True) for reply in first]
        assert (again.usage.requests, again.usage.cached, again.usage.prompt_tokens) == (5, 5, 0)
        assert again.usage.cached_prompt_tokens == 50

    def test_the_cache_needs_no_network(self, stub: StubEndpoint, make: Make, tmp_path: Path) -> None:
        with StubEndpoint(echo) as other:
            endpoint = make(endpoint=other.url)
            replies(endpoint, questions(2))
        assert [reply.text for reply in replies(make(endpoint=other.url + "/"), questions(2))] == [
            "reply to q0",
            "reply to q1",
        ]

    def test_cached_replies_come_before_any_request(self, stub: StubEndpoint, make: Make) -> None:
        replies(make(), questions(2))
        found = make().complete(questions(4), "judging")
        assert {next(found)[0], next(found)[0]} == {0, 1}
        assert len(stub.requests) == 2
        found.close()

    @pytest.mark.parametrize(
        ("request_", "spec"),
        [
            (ask("other"), {}),
            (Completion(({"role": "system", "content": "q"},), 16), {}),
            (ask("q", max_tokens=17), {}),
            (ask("q", temperature=0.1), {}),
            (ask("q", temperature=None), {}),
            (ask("q", seed=0), {}),
            (ask("q", top_p=1.0), {}),
            (ask("q", top_logprobs=5), {}),
            (ask("q"), {"model": "another"}),
            (ask("q"), {"token_limit_field": "max_completion_tokens"}),
        ],
    )
    def test_anything_else_is_another_request(
        self, stub: StubEndpoint, make: Make, request_: Completion, spec: dict[str, Any]
    ) -> None:
        replies(make(), [ask("q")])
        assert not replies(make(**spec), [request_])[0].cached
        assert len(stub.requests) == 2

    def test_another_endpoint_is_another_judge(self, stub: StubEndpoint, make: Make) -> None:
        replies(make(), [ask("q")])
        with StubEndpoint() as other:
            assert replies(make(endpoint=other.url), [ask("q")])[0].text == "ok"

    def test_patience_key_and_price_are_no_part_of_a_request(
        self, stub: StubEndpoint, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replies(make(), [ask("q")])
        monkeypatch.setenv("JUDGE_KEY", KEY)
        other = make(key_env="JUDGE_KEY", timeout=9.0, retries=0, concurrency=1, price=PriceSpec(input=1.0, output=1.0))
        assert replies(other, [ask("q")])[0].cached

    def test_equal_requests_are_sent_once(self, stub: StubEndpoint, make: Make) -> None:
        endpoint = make(price=PriceSpec(input=1e6, output=0.0))
        found = replies(endpoint, [ask("a"), ask("b"), ask("a"), ask("a")])
        assert [reply.text for reply in found] == ["reply to a", "reply to b", "reply to a", "reply to a"]
        assert [reply.cached for reply in found] == [False, False, True, True]
        assert Counter(asked(body) for body in stub.requests) == {"a": 1, "b": 1}
        assert endpoint.usage.cost() == 20.0

    def test_what_is_under_way_when_one_fails_is_kept(self, stub: StubEndpoint, make: Make) -> None:
        def answer(body: dict[str, Any]) -> str | Step:
            if asked(body) == "q1":
                return error(422).after(0.1)
            return say(echo(body)).after(0.4) if asked(body) in ("q2", "q3") else echo(body)

        stub.answer = answer
        with pytest.raises(RunFailed, match=r"3 of 9 replies are kept"):
            replies(make(concurrency=3), questions(9))
        assert {asked(body) for body in stub.requests} == {"q0", "q1", "q2", "q3"}
        stub.answer = echo
        assert [reply.cached for reply in replies(make(), questions(4))] == [True, False, True, True]

    @pytest.mark.parametrize("retry_after", [None, 30])
    def test_what_waits_when_one_fails_is_not_tried_again(
        self, stub: StubEndpoint, make: Make, monkeypatch: pytest.MonkeyPatch, retry_after: int | None
    ) -> None:
        monkeypatch.setattr(endpoint_batch, "FIRST_WAIT", 60.0)
        steps = {"q1": error(503, retry_after=retry_after), "q2": error(422).after(0.5)}
        stub.answer = lambda body: steps.get(asked(body), say("ok"))
        endpoint = make(concurrency=2)
        started = time.monotonic()
        with pytest.raises(RunFailed, match="422"):
            replies(endpoint, questions(9))
        assert time.monotonic() - started < 20
        assert [asked(body) for body in stub.requests[:1]] == ["q0"]
        assert {asked(body) for body in stub.requests[1:]} == {"q1", "q2"}
        assert len(stub.requests) == 3
        assert (endpoint.usage.retried, endpoint.usage.failed) == (0, 1)

    def test_a_reply_is_on_disk_before_it_is_seen(self, stub: StubEndpoint, make: Make) -> None:
        endpoint = make(concurrency=1)
        found = endpoint.complete(questions(3), "judging")
        next(found)
        assert len(endpoint.cache.read_bytes().splitlines()) >= 1
        found.close()

    def test_whoever_stops_listening_stops_the_asking(self, stub: StubEndpoint, make: Make) -> None:
        stub.answer = lambda body: say("ok").after(0.05)
        found = make(concurrency=2).complete(questions(100), "judging")
        next(found)
        found.close()
        sent = len(stub.requests)
        time.sleep(0.3)
        assert len(stub.requests) == sent < 10


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
from preceptor.evaluation.endpoint import Completion, Endpoint
from preceptor.recipe.suites import EndpointSpec
spec = EndpointSpec(endpoint=sys.argv[1], model="stub", concurrency=3)
endpoint = Endpoint(spec, cache=Path(sys.argv[2]), log=print)
requests = [Completion(({"role": "user", "content": f"q{i}"},), 16) for i in range(12)]
for i, reply in endpoint.complete(requests, "judging"):
    print(i, flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_a_run_that_is_ended_in_its_middle_repeats_no_request(
    sent: signal.Signals, stub: StubEndpoint, make: Make
) -> None:
    endpoint = make()
    stub.answer = lambda body: say(echo(body)) if len(stub.requests) <= 6 else say("never").after(250)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, stub.url, str(endpoint.cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        # Six are replied to, and three wait for theirs.
        bounded(lambda: len(stub.requests) == 9 and lines(endpoint.cache) == 6)
        child.send_signal(sent)
        _, complaint = child.communicate(timeout=200)
    finally:
        child.kill()
        child.communicate()
    if sent is signal.SIGINT:
        assert complaint.rstrip().endswith("KeyboardInterrupt")
        assert "Task" not in complaint
    with endpoint.cache.open("ab") as torn:
        torn.write(b'{"key": "0123", "reply": {"te')
    stub.answer = echo
    found = replies(endpoint, questions(12))
    assert [reply.text for reply in found] == [f"reply to q{i}" for i in range(12)]
    assert sum(reply.cached for reply in found) == 6
    counts = Counter(asked(body) for body in stub.requests)
    assert sorted(counts.values()) == [1] * 9 + [2] * 3  # those that had no reply yet, and only they
    assert all(counts[f"q{i}"] == 1 for i, reply in enumerate(found) if reply.cached)
    assert lines(endpoint.cache) == 12


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def bounded(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


class TestTheKey:
    def test_it_is_sent_and_nowhere_else(
        self, stub: StubEndpoint, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
        stub.script(error(503, f"no room for {KEY}"), error(429, f"slow down, Bearer {KEY}", retry_after=0.1))
        stub.answer = lambda body: f"You sent {stub.headers[-1]['authorization']}."
        found = replies(make(key_env="JUDGE_KEY"), questions(2))
        assert found[0].text == "You sent Bearer ***."
        assert {headers["authorization"] for headers in stub.headers} == {f"Bearer {KEY}"}
        assert not leaks("".join(LINES))
        assert all(not leaks(path.read_text()) for path in tmp_path.rglob("*") if path.is_file())

    def test_json_that_spells_it_in_another_way_brings_it_into_no_file(
        self, stub: StubEndpoint, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("JUDGE_KEY", key := "sk-test/secret-0123")
        spelled = {"q0": key.replace("/", "\\/"), "q1": "".join(f"\\u{ord(each):04x}" for each in key)}

        def answer(body: dict[str, Any]) -> Step:
            said = say("sent KEY", finish_reason="KEY", model="KEY", logprobs=[{"sent": -0.1, "KEY": -2.0}])
            return replace(said, body=said.body.replace(b"KEY", spelled[asked(body)].encode()))

        stub.answer = answer
        found = replies(make(key_env="JUDGE_KEY"), questions(2))
        assert {(each.text, each.finish_reason, each.model) for each in found} == {("sent ***", "***", "***")}
        assert found[0].logprobs == ({"sent": -0.1, "***": -2.0},)
        kept = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
        assert len(kept) == 1
        assert not any("secret" in text or "u0073" in text for text in kept)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
    def test_no_error_shows_it(
        self, stub: StubEndpoint, make: Make, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        monkeypatch.setenv("JUDGE_KEY", KEY)
        stub.answer = lambda body: error(status, f"Incorrect key: Authorization: {stub.headers[-1]['authorization']}")
        with pytest.raises((InputError, RunFailed)) as caught:
            replies(make(key_env="JUDGE_KEY", retries=0), [ask("q")])
        assert not leaks(str(caught.value))
        # Nor does an exception that would be shown with it.
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        assert not leaks("".join(LINES))

    def test_a_piece_of_it_is_not_shown_either(
        self, stub: StubEndpoint, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JUDGE_KEY", KEY)
        stub.answer = lambda body: error(400, f"Incorrect API key provided: {KEY[:9]}*****{KEY[-6:]}, and so on")
        with pytest.raises(InputError) as caught:
            replies(make(key_env="JUDGE_KEY", retries=0), [ask("q")])
        assert "Incorrect API key provided: ********, and so on" in str(caught.value).replace("***********", "********")
        assert not leaks(str(caught.value))

    def test_without_one_none_is_sent(self, stub: StubEndpoint, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        # Whatever server this is, the key of another one is not for it.
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
        for name in ("Authorization", "authorization"):
            monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"{name}: Bearer {KEY}")
            replies(make(), [ask(name)])
        assert len(stub.headers) == 2
        assert not any("authorization" in headers for headers in stub.headers)
        assert not leaks(json.dumps(stub.headers))

    @pytest.mark.parametrize("key_env", [None, "JUDGE_KEY"])
    def test_nor_the_account_of_another_endpoint(
        self, stub: StubEndpoint, make: Make, monkeypatch: pytest.MonkeyPatch, key_env: str | None
    ) -> None:
        monkeypatch.setenv("JUDGE_KEY", KEY)
        monkeypatch.setenv("OPENAI_ORG_ID", "org-of-ours")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-of-ours")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "openai-project: proj-of-ours")
        replies(make(key_env=key_env), [ask("q")])
        assert stub.headers[0].get("authorization") == (key_env and f"Bearer {KEY}")
        assert "of-ours" not in json.dumps(stub.headers)


def leaks(text: str) -> bool:
    return any(KEY[start : start + 6] in text for start in range(len(KEY) - 5))


class TestChecking:
    def test_it_asks_as_the_requests_to_come_do_and_once(self, stub: StubEndpoint, make: Make) -> None:
        endpoint = make(token_limit_field="max_completion_tokens")
        endpoint.check()
        make(token_limit_field="max_completion_tokens").check()
        assert [sorted(body) for body in stub.requests] == [
            ["max_completion_tokens", "messages", "model", "temperature"]
        ]
        assert LINES[-1].startswith("stub at ")
        assert LINES[-1].endswith(": a first question: 1 request (1 from the cache), 0 + 0 tokens")

    def test_it_is_no_part_of_what_a_benchmark_asked(self, stub: StubEndpoint, make: Make) -> None:
        stub.script(say("OK, that is", finish_reason="length"))
        endpoint = make(price=PriceSpec(input=1.0, output=1.0))
        endpoint.check()
        assert endpoint.usage == Usage(endpoint.spec.price)
        replies(endpoint, questions(2))
        assert (endpoint.usage.requests, endpoint.usage.cut, endpoint.usage.prompt_tokens) == (2, 0, 20)

    def test_what_is_wrong_is_known_early(self, stub: StubEndpoint, make: Make) -> None:
        stub.script(error(404, "no such model"))
        with pytest.raises(InputError, match="knows no such model"):
            make().check()

    def test_log_probabilities_are_missed_until_there_are_some(self, stub: StubEndpoint, make: Make) -> None:
        make().check()
        with pytest.raises(InputError, match="gives no log-probabilities"):
            make().check(top_logprobs=5)
        stub.script(say("OK", logprobs=[{"OK": -0.1}]))
        make().check(top_logprobs=5)
        make().check(top_logprobs=5)
        assert [body.get("top_logprobs") for body in stub.requests] == [None, 5, 5]


def test_progress_says_rate_and_cost(stub: StubEndpoint, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preceptor.evaluation.progress.REPORT_SECONDS", 0.0)
    endpoint = make(concurrency=1, price=PriceSpec(input=3.0, output=15.0))
    replies(endpoint, questions(2))
    replies(endpoint, questions(4))
    assert "judging: 2 of 4 replies are in the cache" in LINES
    said = next(line for line in LINES if "3 of 4" in line)
    assert "requests/s" in said
    assert "s left" in said
    assert "10 + 5 tokens, cost 0.0001" in said
    assert LINES[-1] == (
        "judging: 4 requests (2 from the cache), 20 + 10 tokens, cost 0.00021 (0.00042 with the cached ones)"
    )
    assert endpoint.usage.requests == 6


def test_fields_to_omit_are_not_sent(stub: StubEndpoint, make: Make) -> None:
    replies(make(omit=["temperature", "seed"]), [ask("q", seed=3)])
    assert stub.requests[0].keys() == {"model", "messages", "max_tokens"}
