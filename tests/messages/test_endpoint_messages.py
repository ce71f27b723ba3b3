"""What a user is told about an endpoint that cannot be asked: one sentence with URL and model, never with the key."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from endpoint_stub import Step, StubEndpoint, answering, error, malformed, reset, say
from preceptor.errors import InputError, RunFailed
from preceptor.evaluation import endpoint_batch
from preceptor.evaluation.endpoint import Completion, Endpoint
from preceptor.evaluation.endpoint_cache import EndpointCache
from preceptor.recipe.suites import EndpointSpec

KEY = "sk-proj-0123456789abcdefXYZ"
WHERE = "stages.scores.mt_bench.judge"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_batch, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for name in ("EMPTY_KEY", "TWO_LINES"):
        monkeypatch.setenv(name, {"EMPTY_KEY": " ", "TWO_LINES": f"{KEY}\nsecret"}[name])
    monkeypatch.delenv("UNSET_KEY", raising=False)


def endpoint(cache: Path, url: str, **given: Any) -> Endpoint:
    spec = EndpointSpec(**{"endpoint": url, "model": "grader", "timeout": 5.0, "retries": 2, **given})
    return Endpoint(spec, cache=cache, log=lambda line: None, where=WHERE)


def ask(*texts: str) -> list[Completion]:
    return [Completion(({"role": "user", "content": text},), 16) for text in texts]


# what the spec says -> what is said, after its place
SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "key variable unset": (
        {"key_env": "UNSET_KEY"},
        "key_env: the environment variable UNSET_KEY is not set; run `export UNSET_KEY=…` with the endpoint's key, or "
        "leave key_env out where none is needed",
    ),
    "key variable empty": (
        {"key_env": "EMPTY_KEY"},
        "key_env: the environment variable EMPTY_KEY is not set; run `export EMPTY_KEY=…` with the endpoint's key, or "
        "leave key_env out where none is needed",
    ),
    "the key for the variable's name": (
        {"key_env": KEY},
        "key_env: is no name of an environment variable (letters, digits and underscores); put the key into a variable "
        "such as JUDGE_KEY, and write that name",
    ),
    "a key that could be a name": (
        {"key_env": KEY.replace("-", "_")},
        "key_env: the environment variable it names is not set; write the name of a variable that holds the endpoint's "
        "key, not the key itself, or leave key_env out where none is needed",
    ),
    "key of two lines": (
        {"key_env": "TWO_LINES"},
        "key_env: what the environment variable TWO_LINES holds can be no key; a key is one line of letters, digits "
        "and signs without spaces",
    ),
    "no scheme": (
        {"endpoint": "localhost:8000/v1"},
        "endpoint: 'localhost:8000/v1' is no URL of an endpoint; write its base URL, such as http://127.0.0.1:8000/v1",
    ),
    "no host": (
        {"endpoint": "http:///v1"},
        "endpoint: 'http:///v1' is no URL of an endpoint; write its base URL, such as http://127.0.0.1:8000/v1",
    ),
    "a port that is none": (
        {"endpoint": "http://judge:80000/v1"},
        "endpoint: 'http://judge:80000/v1' is no URL of an endpoint (Port out of range 0-65535); write its base URL, "
        "such as http://127.0.0.1:8000/v1",
    ),
    "a space": (
        {"endpoint": "http://judge:8000 /v1"},
        "endpoint: 'http://judge:8000 /v1' is no URL of an endpoint",
    ),
    "the whole path": (
        {"endpoint": "http://judge:8000/v1/chat/completions"},
        "endpoint: 'http://judge:8000/v1/chat/completions' is no URL of an endpoint but of its chat completions; "
        "write http://judge:8000/v1",
    ),
    "a query": (
        {"endpoint": "http://judge/v1?api-version=1"},
        "endpoint: 'http://judge/v1?api-version=1' is no URL of an endpoint, since it holds a `?` or a `#`; write its "
        "base URL, such as http://127.0.0.1:8000/v1",
    ),
    "a password": (
        {"endpoint": f"http://user:{KEY}@judge/v1"},
        "endpoint: the URL of judge holds a user name or password, which would be written to files; take it out and "
        "give the key with `key_env`",
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_spec_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    given, expected = SPECS[case]
    with pytest.raises(InputError) as caught:
        endpoint(tmp_path / "cache.jsonl", **{"url": "http://127.0.0.1:8000/v1", **_url(given)})
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: {expected}")
    assert case == "a space" or message == f"{WHERE}: {expected}"
    assert not any(KEY[start : start + 7] in message.replace("_", "-") for start in range(len(KEY) - 6))
    assert list(tmp_path.iterdir()) == []


def _url(given: dict[str, Any]) -> dict[str, Any]:
    return {("url" if name == "endpoint" else name): value for name, value in given.items()}


@dataclass(frozen=True)
class Case:
    """What the endpoint does and what is said; AT stands for the model and its URL, URL for the URL alone."""

    step: Step
    said: str
    spec: dict[str, Any] = field(default_factory=dict)
    kind: type[Exception] = InputError


FAILED = "; 0 of 2 replies are kept in CACHE"
CASES: dict[str, Case] = {
    "wrong key": Case(
        error(401, f"Incorrect API key provided: {KEY}"),
        "AT: the endpoint refuses the key in the environment variable JUDGE_KEY (401); put a valid key for this model "
        "there",
        {"key_env": "JUDGE_KEY"},
    ),
    "key without the right": Case(
        error(403, "no access"),
        "AT: the endpoint refuses the key in the environment variable JUDGE_KEY (403: no access); put a "
        "valid key for this model there",
        {"key_env": "JUDGE_KEY"},
    ),
    "no key": Case(
        error(401, "Unauthorized"),
        "AT: the endpoint wants a key (401); set `key_env` to the environment variable that holds it",
    ),
    "unknown model": Case(
        error(404, "The model `grader` does not exist."),
        "AT: the endpoint knows no such model (404: The model `grader` does not exist.); write `model` as URL/models "
        "lists it",
    ),
    "unknown model, said with 400": Case(
        error(400, "grader is not a valid model ID"),
        "AT: the endpoint knows no such model (400: grader is not a valid model ID); write `model` as URL/models "
        "lists it",
    ),
    "wrong path": Case(
        Step(404, b'{"detail":"Not Found"}'),
        "AT: the endpoint has no chat completions there (404: Not Found); `endpoint` is the base URL, which often "
        "ends in /v1",
    ),
    "max_tokens refused": Case(
        error(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",  # noqa: E501
        ),
        "AT: the endpoint refuses the field max_tokens (400: Unsupported parameter: 'max_tokens' is not supported with "
        "this model. Use 'max_completion_tokens' instead.); set `token_limit_field: max_completion_tokens`",
    ),
    "max_completion_tokens refused": Case(
        error(422, "Unexpected fields in the request: {'max_completion_tokens'}"),
        "AT: the endpoint refuses the field max_completion_tokens (422: Unexpected fields in the request: "
        "{'max_completion_tokens'}); set `token_limit_field: max_tokens`",
        {"token_limit_field": "max_completion_tokens"},
    ),
    "a limit that is too large": Case(
        error(400, "max_tokens is too large: 99999"),
        "AT: the endpoint refuses the request (400: max_tokens is too large: 99999)",
    ),
    "another field refused": Case(
        Step(422, b'{"detail": [{"loc": ["body", "top_logprobs"], "msg": "extra fields not permitted"}]}'),
        'AT: the endpoint refuses the request (422: [{"loc": ["body", "top_logprobs"], "msg": "extra fields not '
        'permitted"}]); `preference: ranking` needs no log-probabilities',
    ),
    "refused without a word": Case(Step(413), "AT: the endpoint refuses the request (413 without a word)"),
    "no quota": Case(
        Step(429, answering({"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}).body),
        "AT: the account has no quota left (429: You exceeded your quota.); raise it, and run the same command again",
    ),
    "always busy": Case(
        error(429, "Rate limit reached", retry_after=0.01),
        "AT: a request came to no reply in 3 attempts, at last: 429: Rate limit reached, asking to wait 0 s" + FAILED,
        kind=RunFailed,
    ),
    "always broken": Case(
        Step(502, b"<html>\n<b>Bad Gateway</b>\n</html>"),
        "AT: a request came to no reply in 3 attempts, at last: 502: <html> <b>Bad Gateway</b> </html>" + FAILED,
        kind=RunFailed,
    ),
    "never in time": Case(
        say("late").after(60),
        "AT: a request came to no reply in 1 attempt, at last: no whole reply within 1 s" + FAILED,
        {"timeout": 1.0, "retries": 0},
        RunFailed,
    ),
    "no JSON": Case(
        malformed(),
        'AT: a request came to no reply in 3 attempts, at last: a reply that is no JSON: {"choices": [{"mess' + FAILED,
        kind=RunFailed,
    ),
    "no choices": Case(
        answering({"choices": []}),
        'AT: a request came to no reply in 3 attempts, at last: a reply without choices: {"choices": []}' + FAILED,
        kind=RunFailed,
    ),
    "an error with 200": Case(
        answering({"error": {"message": "upstream is down"}}),
        "AT: a request came to no reply in 3 attempts, at last: an error in place of a reply: upstream is down"
        + FAILED,
        kind=RunFailed,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_endpoint_that_refuses_or_fails(tmp_path: Path, case: str) -> None:
    asked = CASES[case]
    cache = tmp_path / "cache.jsonl"
    with StubEndpoint(lambda body: asked.step) as stub, pytest.raises(asked.kind) as caught:
        list(endpoint(cache, stub.url, **asked.spec).complete(ask("a", "b"), "judging"))
    expected = asked.said.replace("AT", f"{WHERE}: grader at URL").replace("URL/", f"{stub.url}/")
    assert str(caught.value) == expected.replace("at URL", f"at {stub.url}").replace("CACHE", str(cache))
    assert KEY[:6] not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_always_breaks(tmp_path: Path) -> None:
    with StubEndpoint(lambda body: reset()) as stub, pytest.raises(RunFailed) as caught:
        list(endpoint(tmp_path / "cache.jsonl", stub.url).complete(ask("a"), "judging"))
    assert re.fullmatch(
        rf"{WHERE}: grader at {stub.url}: a request came to no reply in 3 attempts, at last: the connection was lost "
        rf"\(.+\); 0 of 1 replies are kept in {tmp_path}/cache\.jsonl",
        str(caught.value),
    )


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(InputError) as caught:
            list(endpoint(tmp_path / "cache.jsonl", url).complete(ask("a"), "judging"))
    assert re.fullmatch(
        rf"{WHERE}: grader at {url}: no connection \(.+\); start the server, or set `endpoint` to the URL of one that "
        "runs",
        str(caught.value),
    )
    assert list(tmp_path.iterdir()) == []


def test_nobody_answers_the_door(tmp_path: Path) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]  # more than the queue holds: further connections hang
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        with pytest.raises(InputError) as caught:
            list(endpoint(tmp_path / "cache.jsonl", url, timeout=2.0).complete(ask("a"), "judging"))
        for each in waiting:
            each.close()
    assert str(caught.value) == (
        f"{WHERE}: grader at {url}: no connection within 2 s; start the server, or set `endpoint` to the URL of one "
        "that runs"
    )


# what happens after one reply -> what is said
LATER: dict[str, tuple[Step, str]] = {
    "request refused": (error(422, "no such field"), "1 attempt, at last: 422: no such field"),
    "key refused": (
        error(401, "expired"),
        "1 attempt, at last: the endpoint refuses the key in the environment variable JUDGE_KEY (401); put a valid "
        "key for this model there",
    ),
    "quota used up": (
        Step(429, answering({"error": {"message": "No money.", "code": "insufficient_quota"}}).body),
        "1 attempt, at last: 429: No money.",
    ),
    "broken": (error(500, "oh"), "3 attempts, at last: 500: oh"),
    "come back tomorrow": (
        error(429, "daily limit", retry_after=86_400),
        "1 attempt, at last: 429: daily limit, asking to wait 86,400 s",
    ),
}


@pytest.mark.parametrize("case", LATER)
def test_an_endpoint_that_stops_replying(tmp_path: Path, case: str) -> None:
    step, said = LATER[case]
    cache = tmp_path / "cache.jsonl"
    with StubEndpoint(lambda body: "fine" if len(stub.requests) <= 2 else step) as stub:
        asking = endpoint(cache, stub.url, key_env="JUDGE_KEY", concurrency=1)
        with pytest.raises(RunFailed) as caught:
            list(asking.complete(ask("a", "b", "c", "d"), "judging"))
    assert str(caught.value) == (
        f"{WHERE}: grader at {stub.url}: a request came to no reply in {said}; 2 of 4 replies are kept in {cache}"
    )


def test_no_log_probabilities(tmp_path: Path) -> None:
    found = endpoint(tmp_path / "cache.jsonl", "http://judge:8000/v1").no_logprobs()
    assert str(found) == (
        f"{WHERE}: grader at http://judge:8000/v1: the endpoint gives no log-probabilities, which `preference: "
        "logprobs` reads; use an endpoint that gives them (`logprobs` and `top_logprobs`), or `preference: ranking`"
    )


def test_a_cache_in_use(tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    cache.touch()
    with EndpointCache(cache), pytest.raises(InputError) as caught:
        list(endpoint(cache, "http://judge:8000/v1").complete(ask("a"), "judging"))
    assert str(caught.value) == (
        f"{cache}: the cache of replies is in use by another process; wait until it ends, or write the results to "
        "another folder"
    )


def test_a_cache_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        list(endpoint(tmp_path, "http://judge:8000/v1").complete(ask("a"), "judging"))
    assert str(caught.value) == (
        f"{tmp_path}: the cache of replies cannot be written (Is a directory); make it writable, or write the results "
        "to another folder"
    )


def test_a_cache_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "requests").write_text("")
    with StubEndpoint() as stub, pytest.raises(InputError) as caught:
        list(endpoint(tmp_path / "requests" / "cache.jsonl", stub.url).complete(ask("a"), "judging"))
    assert str(caught.value) == (
        f"{tmp_path}/requests/cache.jsonl: the cache of replies cannot be written (File exists); make it writable, or "
        "write the results to another folder"
    )


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write: Callable[[int, bytes], int] = os.write
    cache = tmp_path / "cache.jsonl"
    with StubEndpoint() as stub:
        asking = endpoint(cache, stub.url)
        monkeypatch.setattr(
            os, "write", lambda handle, data: full(handle, data) if b'"key"' in data else write(handle, data)
        )
        with pytest.raises(RunFailed) as caught:
            list(asking.complete(ask("a"), "judging"))
    assert str(caught.value) == (f"{cache}: the cache of replies cannot be written (No space left on device)")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(InputError) as caught:
        list(endpoint(tmp_path / "cache.jsonl", "http://judge:8000/v1").complete(ask("a"), "judging"))
    assert str(caught.value) == (
        "an endpoint needs the package openai, which is not installed; run `pip install openai`"
    )
