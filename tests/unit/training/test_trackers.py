"""What TensorBoard is told of a training, and where; trackers that are not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import preceptor
from invariant.recipes import TRAINING, recipe
from invariant.trainers import Stop, StopAt, trainer
from preceptor.errors import InputError
from preceptor.training import trackers
from preceptor.training.trackers import check_trackers, lead_trackers


@pytest.fixture
def events() -> Any:
    return pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard: pip install tensorboard"
    )


def scalars(events: Any, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each scalar that TensorBoard shows."""
    read = events.EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def logged(path: Path, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]


def test_a_recipe_reports_its_terms_by_route(tmp_path: Path, events: Any) -> None:
    training = {**TRAINING, "num_train_epochs": 1, "report_to": "tensorboard", "eval_steps": 2}
    preceptor.run(recipe(tmp_path, "runs", training=training), log=lambda line: None)
    stage = tmp_path / "runs" / "r" / "kd"
    (file,) = stage.rglob("events.out.tfevents.*")
    seen = scalars(events, file.parent)
    for term in ("next_token", "logits", "attention"):
        for route in ("", "/shop", "/other"):
            assert seen[f"train/{term}{route}"] == logged(stage / "metrics.jsonl", f"{term}{route}")
            assert seen[f"eval/{term}{route}"] == logged(stage / "metrics.jsonl", f"eval_{term}{route}")
    for name in ("loss", "grad_norm", "learning_rate", "targets_per_second", "peak_memory_mb"):
        assert seen[f"train/{name}"] == logged(stage / "metrics.jsonl", name)


def test_files_lie_in_the_stage_and_a_resumed_run_shows_each_step_once(tmp_path: Path, events: Any) -> None:
    def train(*callbacks: Any) -> None:
        made = trainer(tmp_path, *callbacks, report_to="tensorboard", logging_steps=1)
        lead_trackers(made, directory=tmp_path, name="shop/kd")
        assert made.args.run_name == "shop/kd"
        made.train(resume_from_checkpoint=(tmp_path / "checkpoints").exists())

    with pytest.raises(Stop):
        train(StopAt(5))
    train()
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 2
    seen = scalars(events, tmp_path / "tensorboard")
    assert [step for step, _ in seen["train/next_token"]] == list(range(1, 10))
    assert seen["train/next_token/b"] == logged(tmp_path / "metrics.jsonl", "next_token/b")


def test_a_run_name_and_a_folder_of_ones_own_stay(tmp_path: Path, events: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    made = trainer(tmp_path / "kd", report_to="tensorboard", run_name="mine", max_steps=1)
    lead_trackers(made, directory=tmp_path / "kd", name="shop/kd")
    made.train()
    assert made.args.run_name == "mine"
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))
    assert not (tmp_path / "kd" / "tensorboard").exists()


def test_trackers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers([])
    with pytest.raises(InputError) as refused:
        check_trackers(["tensorbord"])
    message = str(refused.value)
    assert message.startswith(
        "training.report_to: 'tensorbord' is no tracker that transformers knows (did you mean 'tensorboard'?); write "
    )
    assert message.endswith(" or wandb, or none alone")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused:
        check_trackers(["wandb"])
    assert str(refused.value) == (
        "training.report_to: wandb is not installed; install it with `pip install wandb`, or leave it out"
    )


FAKE_WANDB = """\
import types

class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)

calls, run, config = [], None, Config()

def init(project, name):
    global run
    run = types.SimpleNamespace(_label=lambda **k: None, summary={})
    calls.append(("init", name))

def log(values):
    calls.append(("log", values["train/global_step"], sorted(name for name in values if "next_token" in name)))

def finish():
    global run
    run = None
    calls.append(("finish",))
"""


def test_each_stage_is_a_wandb_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packages" / "wandb"
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_WANDB)
    for folder in (package / "sdk", package / "sdk" / "lib"):
        (folder / "__init__.py").touch()
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    for name in [each for each in sys.modules if each.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        for stage in ("kd", "sft"):
            made = trainer(tmp_path / stage, report_to="wandb", max_steps=2)
            lead_trackers(made, directory=tmp_path / stage, name=f"shop/{stage}")
            made.train()
        calls = sys.modules["wandb"].calls
    finally:
        for name in [each for each in sys.modules if each.split(".")[0] == "wandb"]:
            del sys.modules[name]
    terms = ["train/next_token", "train/next_token/a", "train/next_token/b"]
    assert [call for call in calls if call != ("log", 2, [])] == [
        each for stage in ("kd", "sft") for each in (("init", f"shop/{stage}"), ("log", 2, terms), ("finish",))
    ]
