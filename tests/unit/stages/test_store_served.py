"""A store filled from a served teacher is the store of that teacher loaded; and what servers get wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import preceptor
import stored_recipes
import stores
from preceptor.errors import InputError, InputErrors, RunFailed
from preceptor.models.load import load_model
from preceptor.models.tokenizers import load_tokenizer
from preceptor.recipe import ModelSpec, Recipe, parse_recipe
from preceptor.stored_signals import TopTokens
from preceptor.teachers.store import Store
from vllm_stub import Stub, serving

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
    """The key would go to another host."""
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    stub.fails = [(307, {"to": "http://127.0.0.1:9/v1/completions"})] * 100
    with pytest.raises(InputError, match=r"refuses a row of \d+ tokens \(307"):
        run(made, stub, "redirected", teacher={"key_env": "KEY_OF_TEST"})


def test_a_key_that_is_not_set(made: Path, stub: Stub) -> None:
    with pytest.raises(InputError, match=r"stages.st.teacher.key_env: NO_SUCH_KEY is not set; export NO_SUCH_KEY"):
        run(made, stub, "keyless", teacher={"key_env": "NO_SUCH_KEY"})
