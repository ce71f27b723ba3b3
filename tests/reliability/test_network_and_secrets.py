"""A recipe of every kind that names nothing remote: nobody leaves the machine, and no secret leaves the environment."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import every_kind
import guarded
from endpoint_stub import StubEndpoint, error
from preceptor.cli import main
from preceptor.recipe import Recipe, parse_recipe
from preceptor.running.network import named_elsewhere, only_what_is_named

SECRETS = {
    "JUDGE_KEY": "jk-planted-4f2a9c1e7b",
    "HF_TOKEN": "hf-planted-0d8e6b3a51",
    "WANDB_API_KEY": "wb-planted-97c5e1f0aa",
    "OPENAI_API_KEY": "oa-planted-2b7d4e9c66",
}
PROGRAM = """
import sys
from endpoint_stub import StubEndpoint
from preceptor.cli import main

codes = []
with StubEndpoint(lambda body: "[[7]]") as stub:
    sys.argv = [each.replace("ENDPOINT", stub.url) for each in sys.argv]
    for command in " ".join(sys.argv[1:]).split(" -- "):
        codes.append(main(command.split()))
    keys = {each["authorization"] for each in stub.headers}
print("codes", codes, sorted(keys), file=sys.stderr)
"""


@dataclass(frozen=True)
class Told:
    """What a guarded child did."""

    folder: Path
    out: str
    err: str
    attempts: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """plan, run, report and evaluate, by a child with secrets and without a network."""
    folder = tmp_path_factory.mktemp("every")
    raw = every_kind.document(folder, folder / "runs", "ENDPOINT", tasks=True)
    raw["stages"]["scores"]["mt_bench"]["judge"]["key_env"] = "JUDGE_KEY"
    for name in ("kd", "expert"):
        raw["stages"][name]["training"] = {**every_kind.TRAINING, "report_to": ["tensorboard"]}
    path = every_kind.write(folder, raw)
    judge = "stages.scores.mt_bench.judge.endpoint=ENDPOINT"
    commands = (
        f"plan {path} {judge} --rate 1 --json",
        f"run {path} {judge} --json",
        "report runs/r --out again",
        f"evaluate a=runs/r/kd/model --general {folder}/general.jsonl --out ev stages.scores.rows=2",
    )
    env = guarded.environment(folder / "guard", **SECRETS)
    done = guarded.child(PROGRAM, " -- ".join(commands).split(), env, folder, alone=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"codes [0, 0, 0, 0] ['Bearer {SECRETS['JUDGE_KEY']}']" in done.stderr, done.stderr[-3000:]
    err = done.stderr[: done.stderr.index("codes [")]
    return Told(folder, done.stdout, err, guarded.attempts(folder / "guard"))


def test_nobody_leaves_the_machine(told: Told) -> None:
    assert told.attempts == ""


def test_every_kind_of_stage_was_done(told: Told) -> None:
    kinds = {json.loads(path.read_text())["kind"] for path in (told.folder / "runs/r").glob("*/stage.json")}
    assert kinds == every_kind.KINDS
    assert (told.folder / "again/report.html").exists()
    assert list((told.folder / "runs/r/kd/tensorboard").iterdir()), "a tracker was at work"


def test_secrets_are_in_nothing_that_was_written_or_said(told: Told) -> None:
    assert not [name for name, secret in SECRETS.items() if secret in told.out + told.err]
    assert not found_in(told.folder)


def found_in(folder: Path) -> list[str]:
    return [
        f"{name} in {path.relative_to(folder)}"
        for path in folder.rglob("*")
        if path.is_file()
        for name, secret in SECRETS.items()
        if secret.encode() in path.read_bytes() or secret in path.name
    ]


def test_the_guard_sees_what_it_should(tmp_path: Path) -> None:
    program = (
        "import socket, urllib.request\n"
        "for name in ('http://example.invalid', 'http://192.0.2.1'):\n"
        "    try: urllib.request.urlopen(name, timeout=5)\n"
        "    except OSError: pass\n"
    )
    env = {**guarded.environment(tmp_path), "no_proxy": "*"}
    assert guarded.child(program, [], env, tmp_path).returncode == 0
    assert "== getaddrinfo example.invalid\n" in guarded.attempts(tmp_path)
    assert "192.0.2.1" in guarded.attempts(tmp_path)


# --- failing with a secret at hand ------------------------------------------------------------------------------


def judged_files(folder: Path, endpoint: str, **judge: Any) -> Path:
    """Answers that are there, so that the judge alone is asked."""
    every_kind.document(folder, folder / "runs")
    answers = {"question_id": 81, "answer_id": "a", "model_id": "m", "choices": [{"index": 0, "turns": ["x", "y"]}]}
    (folder / "answers.jsonl").write_text(json.dumps({**answers, "tstamp": 1.5}) + "\n")
    bench = {
        "questions": "questions.jsonl",
        "prompts": "prompts.jsonl",
        "answers": {"m": "answers.jsonl"},
        "judge": {"endpoint": endpoint, "model": "judge", "key_env": "JUDGE_KEY", "retries": 0, **judge},
    }
    raw = {"name": "r", "runs_dir": str(folder / "runs"), "stages": {"scores": {"kind": "evaluate", "mt_bench": bench}}}
    return every_kind.write(folder, raw)


@pytest.mark.parametrize("status", [401, 500, 400])
def test_a_judge_that_repeats_its_key_as_it_refuses(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    asked: list[int] = []

    def echoes(body: Any) -> Any:
        asked.append(1)
        said = error(status, f"Bearer {SECRETS['JUDGE_KEY']} is no good, {SECRETS['JUDGE_KEY']}")
        return "OK" if len(asked) == 1 else said

    with StubEndpoint(echoes) as stub:
        path = judged_files(tmp_path, stub.url)
        assert main(["run", str(path), "--json"]) == 1
    out, err = capfd.readouterr()
    assert len(asked) > 1
    assert "what is finished is kept" in err
    assert (tmp_path / "runs/r/scores/error.txt").read_text().startswith("Traceback")
    assert not [name for name, secret in SECRETS.items() if secret in out + err]
    assert not found_in(tmp_path)


# --- what a recipe names ----------------------------------------------------------------------------------------


def recipe(folder: Path, **changes: Any) -> Recipe:
    raw = every_kind.document(folder, folder / "runs")
    for key, value in changes.items():
        raw["stages"][key] = {**raw["stages"].get(key, {}), **value}
    return parse_recipe(raw, folder=folder)


def test_what_may_be_on_the_hub(tmp_path: Path) -> None:
    assert named_elsewhere(recipe(tmp_path)) == []
    assert named_elsewhere(recipe(tmp_path, kd={"model": "org/base"})) == ["org/base"]
    adapted = {"path": "stage:kd", "adapter": "org/adapter"}
    assert named_elsewhere(recipe(tmp_path, written={"model": adapted})) == ["org/adapter"]
    assert named_elsewhere(recipe(tmp_path, scores={"tasks": {"names": ["arc_easy"]}})) == ["arc_easy"]
    raw = every_kind.document(tmp_path, tmp_path / "runs")
    raw["data"]["shop"] = {"path": "org/rows", "holdout": 4}
    assert named_elsewhere(parse_recipe(raw, folder=tmp_path)) == ["org/rows"]
    raw["data"]["shop"] = {"path": str(tmp_path / "shop.jsonl"), "test": "org/rows"}
    assert named_elsewhere(parse_recipe(raw, folder=tmp_path)) == ["org/rows"]
    raw["data"]["shop"] = {"path": "no/such/file.jsonl", "holdout": 4}
    assert named_elsewhere(parse_recipe(raw, folder=tmp_path)) == [], "what is nowhere is said where it is read"


def test_the_switch_is_set_where_nothing_is_named_and_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    from huggingface_hub import constants, is_offline_mode

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_UPDATE_DOWNLOAD_COUNTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    with only_what_is_named(recipe(tmp_path)):
        assert os.environ["HF_HUB_OFFLINE"] == "1", "for processes that are started"
        assert is_offline_mode()
        assert datasets.config.HF_HUB_OFFLINE
        assert not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    assert "HF_HUB_OFFLINE" not in os.environ
    assert not is_offline_mode()
    assert not datasets.config.HF_HUB_OFFLINE
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    with only_what_is_named(recipe(tmp_path, kd={"model": "org/base"})):
        assert not is_offline_mode(), "a model on the Hub can be fetched"
        assert not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, "nobody is told of it all the same"


def test_bitsandbytes_fetches_no_compiled_code_even_where_a_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.split(".")[0] in ("kernels", "bitsandbytes")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "kernels.py").write_text("fetched = True\n")
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes/__init__.py").write_text(
        "try:\n    import kernels\nexcept ImportError:\n    kernels = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    with only_what_is_named(recipe(tmp_path, kd={"model": "org/base"})):
        assert __import__("bitsandbytes").kernels is None
        assert __import__("kernels").fetched, "a quantised model of the user's may need them"
        del sys.modules["bitsandbytes"]
        assert __import__("bitsandbytes").kernels is None
        assert sys.modules["kernels"].fetched
    assert sys.meta_path == finders
    for name in ("kernels", "bitsandbytes"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("config", "trusted", "named"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "org/code--modeling.T"}}, True, True),
        ({"auto_map": {"AutoModelForCausalLM": "org/code--modeling.T"}}, False, False),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.T"}}, True, False),
        ({"quantization_config": {"quant_method": "mxfp4"}}, False, True),
        ({"quantization_config": {"quant_method": "gptq"}}, False, False),
        ([], False, False),
    ],
)
def test_a_model_here_whose_code_or_kernels_are_there(tmp_path: Path, config: Any, trusted: bool, named: bool) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    model = {"path": str(folder), "trust_remote_code": trusted}
    assert named_elsewhere(recipe(tmp_path, kd={"model": model})) == [str(folder)] * named
