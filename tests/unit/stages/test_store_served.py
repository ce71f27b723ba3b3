"""A store filled from a served teacher is the store of that teacher loaded; and what servers get wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import preceptor
import stored_recipes
import stores
from preceptor.errors import InputError, InputErrors, RunFailed
from preceptor.models.load import load_model
from preceptor.models.tokenizers import load_tokenizer
from preceptor.objective import Logits
from preceptor.objective.terms import HeadChunk
from preceptor.recipe import ModelSpec, Recipe, StoreStage, parse_recipe
from preceptor.running.identity import stage_identities
from preceptor.stages.stores import check_served
from preceptor.stored_signals import TopTokens
from preceptor.system.hashes import Hashes
from preceptor.teachers.served import ServedTeacher, _taken
from preceptor.teachers.store import Store
from preceptor.teachers.store_modes import TopMode
from vllm_stub import Reply, Stub, serving

KEY = "sk-no-one-may-see-this"


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose run has a teacher, a student, and a store of the teacher loaded here."""
    folder = tmp_path_factory.mktemp("made")
    for stage in ("teacher", "student", "st"):
        preceptor.run(stored_recipes.recipe(folder, store={"mode": "topk", "k": 6}), only=stage, log=quiet)
    return folder


@pytest.fixture
def stub(made: Path) -> Iterator[Stub]:
    spec = ModelSpec(path=str(made / "runs/r/teacher/model"))
    tokenizer = load_tokenizer(spec)
    with serving(Stub(load_model(spec, role="teacher"), lambda token: str(tokenizer.decode([token])))) as stub:
        yield stub


def served(made: Path, stub: Stub, runs: str, **changes: Any) -> Recipe:
    teacher = {"endpoint": stub.url, "model": "big", "retries": 2, **changes.pop("teacher", {})}
    store = {"teacher": teacher, "mode": "topk", "k": 6, **changes}
    document = stored_recipes.document(made, runs, store=store, teacher="stage:st")
    return parse_recipe(document, folder=made)


def run(made: Path, stub: Stub, runs: str, **changes: Any) -> dict[str, Any]:
    recipe = served(made, stub, runs, **changes)
    for stage in ("teacher", "student", "st"):
        done = preceptor.run(recipe, only=stage, log=quiet)
    return dict(done["stages"]["st"])


def test_it_is_the_store_of_the_teacher_loaded_here(made: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    stub.fails = [(503, {"error": "starting"}), (429, {"error": "slow down"})]
    result = run(made, stub, "served", teacher={"key_env": "KEY_OF_TEST"})
    here, there = Store(made / "runs/r/st/store"), Store(made / "served/r/st/store")
    assert stores.keys(here).keys() == stores.keys(there).keys()
    for key, place in stores.keys(here).items():
        ours, theirs = here.read([place]), there.read([stores.keys(there)[key]])
        assert isinstance(ours, TopTokens)
        assert isinstance(theirs, TopTokens)
        assert torch.equal(ours.token_NK, theirs.token_NK)
        torch.testing.assert_close(theirs.log_prob_NK, ours.log_prob_NK, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(theirs.log_tail_N, ours.log_tail_N, atol=1e-4, rtol=1e-4)
    assert result["store"]["teacher"]["model"] == f"big at {stub.url}"
    assert set(stub.keys) == {f"Bearer {KEY}"}
    assert len(stub.asked) == 40 + 2
    assert all(set(body) == {"model", "prompt", "max_tokens", "temperature", "prompt_logprobs"} for body in stub.asked)
    written = [path for path in (made / "served").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_a_student_learns_from_it(made: Path, stub: Stub) -> None:
    recipe = served(made, stub, "learned")
    result = preceptor.run(recipe, log=quiet)["stages"]["kd"]
    assert result["after"]["shop"]["logits"] < result["before"]["shop"]["logits"]


def test_transport_makes_no_other_store(made: Path, stub: Stub) -> None:
    run(made, stub, "same")
    run_again = preceptor.run(
        served(made, stub, "same", teacher={"concurrency": 1, "timeout": 5.0}), only="st", log=quiet
    )
    assert run_again["stages"]["st"]["status"] == "kept"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "sample", "k": 6}, "k is for mode: topk, and the mode is sample"),
        ({"mode": "full"}, "mode is full, and a served teacher tells its most probable tokens only; write mode: topk"),
        ({"temperature": 2.0}, "temperature is 2, and a served teacher's log-probabilities are unscaled whatever"),
    ],
)
def test_what_a_served_teacher_cannot_give(made: Path, stub: Stub, change: dict[str, Any], words: str) -> None:
    document = stored_recipes.document(
        made, store={"teacher": {"endpoint": stub.url, "model": "big"}, "mode": "topk", **change}
    )
    with pytest.raises(InputErrors, match=words):
        parse_recipe(document, folder=made)
    assert not stub.asked


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {"error": KEY}), r"refuses the key \(401\); set `key_env`"),
        ((404, {"error": "no model big"}), r"refuses a row of \d+ tokens \(404: .*no model big"),
        ((200, {"choices": [{"text": "x"}]}), "answers without `prompt_logprobs` for each token"),
        ((200, {"choices": [{"prompt_logprobs": [None]}]}), "answers without `prompt_logprobs` for each token"),
    ],
)
def test_a_server_that_refuses(made: Path, stub: Stub, reply: Any, words: str, tmp_path: Path) -> None:
    stub.fails = [reply] * 100
    with pytest.raises(InputError, match=words) as error:
        run(made, stub, f"refused-{tmp_path.name}")
    assert KEY not in str(error.value)


def test_a_server_of_few_logprobs(made: Path, stub: Stub) -> None:
    stub.max_logprobs = 5
    with pytest.raises(InputError, match=r"greater than max allowed: 5.*start vLLM with --max-logprobs"):
        run(made, stub, "few")


def test_a_server_of_other_tokens(made: Path, stub: Stub) -> None:
    stub.spell = lambda token: "zebra"
    with pytest.raises(InputError, match=r"token \d+ is 'zebra' there and '\w+' in the student's tokenizer"):
        run(made, stub, "others")


def test_a_server_of_some_other_tokens(made: Path, stub: Stub) -> None:
    """One letter in about twelve: a tokenizer that shares most of its tokens."""
    spell = stub.spell
    stub.spell = lambda token: "zebra" if spell(token).strip() == "a" else spell(token)
    with pytest.raises(InputError, match=r"token \d+ is 'zebra' there and 'a' in the student's tokenizer"):
        run(made, stub, "some")


def test_a_server_that_is_gone_can_be_gone_on_with(made: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("preceptor.teachers.store_files._PATIENCE", -1.0)
    answer = stub.answer
    monkeypatch.setattr(
        stub, "answer", lambda body, key: answer(body, key) if len(stub.asked) < 12 else (500, {"error": "gone"})
    )
    with pytest.raises(RunFailed, match=r"teacher big at .* does not answer \(500"):
        run(made, stub, "gone")
    monkeypatch.undo()
    said: list[str] = []
    preceptor.run(served(made, stub, "gone"), only="st", log=said.append)
    assert [line for line in said if line.startswith("st: goes on after")]
    assert len(stub.asked) < 12 + 40 - 7
    manifest = json.loads((made / "gone/r/st/store/manifest.json").read_text())
    assert manifest["rows"] == 40


def test_a_redirect_is_not_followed(made: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key would go to another host. 302 is what urllib follows for a POST; the other server hears nothing."""
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    with serving(Stub(stub.model, stub.spell)) as other:
        stub.fails = [(302, {"to": f"{other.url}/completions"})] * 100
        with pytest.raises(InputError, match=r"sends requests on to another address \(302\), which would be given"):
            run(made, stub, "redirected", teacher={"key_env": "KEY_OF_TEST"})
        assert other.heard == 0
    assert stub.heard > 0


def test_a_key_that_is_not_set(made: Path, stub: Stub) -> None:
    words = r"stages.st.teacher.key_env: the environment variable NO_SUCH_KEY is not set; run `export NO_SUCH_KEY="
    with pytest.raises(InputError, match=words):
        run(made, stub, "keyless", teacher={"key_env": "NO_SUCH_KEY"})
    assert not stub.asked


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "the environment variable KEY_OF_TEST is not set"),
        (" \n", "the environment variable KEY_OF_TEST is not set"),
        (f"{KEY}\nX-Other: 1", "what the environment variable KEY_OF_TEST holds can be no key"),
        (f"{KEY}\u00e9", "what the environment variable KEY_OF_TEST holds can be no key"),
    ],
)
def test_a_key_that_no_header_can_hold(
    made: Path, stub: Stub, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_TEST", value)
    with pytest.raises(InputError, match=words) as error:
        run(made, stub, "unkeyed", teacher={"key_env": "KEY_OF_TEST"})
    assert "no-one" not in str(error.value)
    assert not stub.asked
    if value.strip():
        with pytest.raises(InputError, match="is empty or holds signs that no header can hold") as error:
            ServedTeacher(stub.url, "big", key=value)
        assert "no-one" not in str(error.value)


def test_a_line_end_after_the_key_is_no_part_of_it(made: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `export KEY="$(cat file)"` may leave it."""
    monkeypatch.setenv("KEY_OF_TEST", f"{KEY}\n")
    run(made, stub, "newline", teacher={"key_env": "KEY_OF_TEST"})
    assert set(stub.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"key_env": "no-name"}, r"teacher.key_env: is no name of an environment variable"),
        ({"endpoint": "ftp://127.0.0.1/v1"}, r"teacher.endpoint: 'ftp://127.0.0.1/v1' is no URL of an endpoint"),
    ],
)
def test_what_is_refused_of_a_served_teacher_before_anything_runs(
    made: Path, stub: Stub, teacher: dict[str, Any], words: str
) -> None:
    stage = served(made, stub, "ahead", teacher=teacher).stages["st"]
    assert isinstance(stage, StoreStage)
    with pytest.raises(InputErrors, match=words) as error:
        check_served(stage)
    assert "secret" not in str(error.value)
    assert KEY not in str(error.value)
    with pytest.raises(InputErrors, match=words):
        run(made, stub, "ahead", teacher=teacher)


def test_a_server_that_repeats_the_key(made: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or in pieces: in no message, and in no file."""
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    stub.fails = [(500, {"error": f"Bearer {KEY} is not {KEY[:14]}"})] * 100
    with pytest.raises(RunFailed, match=r"does not answer \(500") as error:
        run(made, stub, "echo", teacher={"key_env": "KEY_OF_TEST"})
    assert "no-one" not in str(error.value)
    files = [path for path in (made / "echo").rglob("*") if path.is_file()]
    assert not [path for path in files if b"no-one-may" in path.read_bytes()]


def test_an_address_in_a_variable_is_hashed_as_what_it_says(
    made: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity() -> str:
        recipe = served(made, stub, "variable", teacher={"endpoint": "$SERVER_OF_TEST"})
        return str(stage_identities(recipe, ["st"], Hashes(made / "none"))["st"]["identity"])

    monkeypatch.setenv("SERVER_OF_TEST", stub.url)
    here = identity()
    done = run(made, stub, "variable", teacher={"endpoint": "$SERVER_OF_TEST"})
    there = run(made, stub, "plain")
    assert done["store"]["teacher"] == there["store"]["teacher"]
    monkeypatch.setenv("SERVER_OF_TEST", "http://127.0.0.1:9/v1")
    assert identity() != here


def changed(stub: Stub, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], object]) -> None:
    """Lets the server change what it says of each position."""
    answer = stub.answer

    def answers(body: dict[str, Any], key: str | None) -> Reply:
        status, reply = answer(body, key)
        for said in reply["choices"][0]["prompt_logprobs"][1:]:
            change(said)
        return status, reply

    monkeypatch.setattr(stub, "answer", answers)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.0, "much", None, True, [-1.0]])
def test_log_probabilities_that_are_none(
    made: Path, stub: Stub, value: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed(stub, monkeypatch, lambda said: next(iter(said.values())).update(logprob=value))
    with pytest.raises(RunFailed, match=r"as the log-probability of token '\d+', which is no log-probability"):
        run(made, stub, f"no-{tmp_path.name}")


def test_probabilities_that_sum_to_more_than_one(made: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(stub, monkeypatch, lambda said: [each.update(logprob=-0.5) for each in said.values()])
    with pytest.raises(RunFailed, match=r"sum to 3.64, and those of one distribution to no more than 1"):
        run(made, stub, "more")


def test_a_reply_that_is_cut_short_is_asked_for_again(made: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    stub.cut = 2
    run(made, stub, "cut")
    assert len(stub.asked) == 40 + 2


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "skew_kl"])
@pytest.mark.parametrize("top", [0.0, -1e-9, 0.01])
def test_a_certain_teacher_leaves_the_rest_a_little(divergence: Any, top: float) -> None:
    """A server that rounds to 0.0: the loss of a student that is not certain is tens of nats, not 1e30."""
    said = {str(token): {"logprob": top if token == 3 else -20.0} for token in (3, 5, 7)}
    mode = TopMode(11, 1.0, 3)
    stored = mode.unpack([(np.frombuffer(mode.pack(_taken([said] * 2, mode, "here")), np.uint8), 2)])
    logits = torch.randn(2, 11, generator=torch.Generator().manual_seed(0))
    chunk = HeadChunk(logits, torch.zeros(2, dtype=torch.int64), stored=stored)
    value, grad = Logits(divergence=divergence).evaluate(chunk, True)
    assert grad is not None
    assert bool(((value >= 0) & (value < 25)).all())
    assert bool((torch.isfinite(grad) & (grad.abs() < 25)).all())


def test_ctrl_c_waits_for_no_request() -> None:
    """Nor does the end of the process: a server that is silent would hold it for `timeout` and `retries`."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        teacher = ServedTeacher(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "big", timeout=30, retries=0)
        rows: Any = [SimpleNamespace(encoded=SimpleNamespace(input_ids=np.arange(5)))] * 3
        mode: Any = SimpleNamespace(temperature=1.0, kept=4)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        others = set(threading.enumerate())
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            begun = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                teacher.store(rows, mode, writer=None, spell=str)  # type: ignore[arg-type]
            assert time.monotonic() - begun < 20
            left = [each for each in set(threading.enumerate()) - others if not isinstance(each, threading.Timer)]
            assert all(each.daemon for each in left)
        finally:
            signal.signal(signal.SIGINT, before)
