"""A training stage that was stopped and resumed equals one that was not, bit for bit, its metrics included."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import preceptor
from invariant.recipes import MICRO, quiet, recipe
from invariant.trainers import Stop, StopAt, stop_before, trainer, weights
from preceptor.errors import InputError, RunFailed
from preceptor.system.files import MANIFEST
from preceptor.trainer import DistillationTrainer
from preceptor.training.checkpoints import ASIDE, checkpoint_steps, last_checkpoint
from same_results import flip, log_lines, same, same_checkpoint

# --- a recipe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["packed", "lora"])
def test_a_stopped_stage_goes_on_as_if_it_had_not(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"packing": True} if way == "packed" else {"lora": {"r": 2, "dropout": 0.1}}
    preceptor.run(recipe(tmp_path, "whole", **how), log=quiet)
    whole, parts = tmp_path / "whole/r/kd", tmp_path / "parts/r/kd"
    again = recipe(tmp_path, "parts", **how)
    # Before the first checkpoint; in the accumulation of step 9, second epoch behind; after the last checkpoint.
    stop_before(monkeypatch, 3 * MICRO + 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        preceptor.run(again, log=quiet)
    assert not checkpoint_steps(parts / "checkpoints")
    assert log_lines(parts)[-1]["step"] == 3
    stop_before(monkeypatch, 8 * MICRO + 3, Stop("no more"))
    with pytest.raises(RunFailed, match="no more"):
        preceptor.run(again, log=quiet)
    assert list(checkpoint_steps(parts / "checkpoints")) == [5]
    monkeypatch.undo()
    monkeypatch.setattr("preceptor.stages.train.save_trained", lambda *_: (_ for _ in ()).throw(Stop("full disk")))
    said: list[str] = []
    with pytest.raises(RunFailed, match="full disk"):
        preceptor.run(again, log=said.append)
    assert "kd: resumes from checkpoint-5" in said
    monkeypatch.undo()
    result = preceptor.run(again, log=said.append)["stages"]["kd"]
    assert "kd: resumes from checkpoint-15" in said

    assert log_lines(parts) == log_lines(whole)
    assert [line["step"] for line in log_lines(whole) if "loss" in line] == [2, 4, 6, 8, 10, 12, 14, 15]
    for step in (5, 10, 15):
        same_checkpoint(parts / f"checkpoints/checkpoint-{step}", whole / f"checkpoints/checkpoint-{step}")
    folder = "model" if way == "packed" else "adapter"
    weights = {file.name: file.read_bytes() for file in (whole / folder).glob("*.safetensors")}
    assert weights == {file.name: file.read_bytes() for file in (parts / folder).glob("*.safetensors")}
    assert weights
    expected = json.loads((whole / "stage.json").read_text())["results"]
    for key in ("steps", "before", "after", "data", "skipped_steps"):
        assert result[key] == expected[key]


# --- a trainer --------------------------------------------------------------------------------------------------


def stop_and_resume(folder: Path, step: int, **settings: Any) -> DistillationTrainer:
    """Trained to the start of the step after `step`, then by another trainer from the last checkpoint to the end."""
    with pytest.raises(Stop):
        trainer(folder, StopAt(step), **settings).train()
    torch.manual_seed(77)  # another process
    resumed = trainer(folder, **settings)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(folder / "checkpoints")))
    return resumed


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "steps": (5, {}),
    "log by epoch, save by steps": (4, {"logging_strategy": "epoch"}),
    "evaluate by epoch, save by steps": (4, {"eval_strategy": "epoch"}),
    "all by epoch": (5, {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"}),
    "best at the end": (
        8,
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_steps": 1,
            "learning_rate": 0.5,  # gets worse at once
            "load_best_model_at_end": True,
            "save_total_limit": 1,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_trainer_resumes_to_the_bit(case: str, tmp_path: Path) -> None:
    step, settings = CASES[case]
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = stop_and_resume(tmp_path / "parts", step, **settings)
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")
    same(weights(resumed.model), weights(whole.model))
    expected = checkpoint_steps(tmp_path / "whole/checkpoints")
    got = checkpoint_steps(tmp_path / "parts/checkpoints")
    assert list(got) == list(expected)
    for number in expected:
        same_checkpoint(got[number], expected[number])
    assert not (tmp_path / "whole/checkpoints" / ASIDE).exists()
    if case == "best at the end":
        losses = [line["eval_loss"] for line in log_lines(tmp_path / "whole") if "eval_loss" in line]
        best = losses.index(min(losses)) + 1
        assert best < 9
        assert list(expected) == [best]
        assert whole.evaluate()["eval_loss"] == min(losses)


def test_max_steps_hold_after_a_resume(tmp_path: Path) -> None:
    settings = {"max_steps": 5, "save_steps": 5}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    before = log_lines(tmp_path / "whole")
    resumed = trainer(tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoints/checkpoint-5"))
    assert resumed.state.global_step == 5
    same(weights(resumed.model), weights(whole.model))
    assert log_lines(tmp_path / "whole") == before


# --- damaged checkpoints ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    trainer(folder, num_train_epochs=2).train()
    return folder


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda path: flip(path / "model.safetensors"), "model.safetensors: is not the file"),
    "truncated": (
        lambda path: (path / "optimizer.pt").write_bytes((path / "optimizer.pt").read_bytes()[:-100]),
        "optimizer.pt: is not the file",
    ),
    "missing": (lambda path: (path / "scheduler.pt").unlink(), "scheduler.pt: is missing"),
    "added": (lambda path: (path / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin: was added"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), f"has no {MANIFEST}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_not_taken(damage: str, made: Path, tmp_path: Path) -> None:
    """Training goes on from the one before it; where there is none, all that was done is not done anew unasked."""
    shutil.copytree(made, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    break_it, sentence = DAMAGE[damage]
    break_it(folder / "checkpoint-6")
    with pytest.raises(InputError, match=sentence):
        trainer(tmp_path / "run").train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    said: list[str] = []
    assert last_checkpoint(folder, said.append) == folder / "checkpoint-3"
    assert len(said) == 1
    assert re.fullmatch(
        rf"checkpoint-6 is damaged \(.*{sentence}.*\); it is now checkpoint-6.damaged and may be deleted", said[0]
    )
    assert {path.name for path in folder.iterdir()} == {"checkpoint-3", "checkpoint-6.damaged"}

    break_it(folder / "checkpoint-3")
    with pytest.raises(InputError, match=sentence) as refused:
        last_checkpoint(folder)
    assert str(refused.value).endswith(
        f"no older checkpoint is whole either, so to start over delete the folder {folder}"
    )
    assert "\n" not in str(refused.value)
    assert {path.name for path in folder.iterdir()} == {"checkpoint-3", "checkpoint-6.damaged"}


def test_what_an_interrupted_write_left_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while its first checkpoint is written, a training starts over, and nothing of that write gets into it."""

    def full(*_: Any) -> None:
        raise Stop

    monkeypatch.setattr("preceptor.training.checkpoints.publish_directory", full)
    with pytest.raises(Stop):
        trainer(tmp_path).train()
    monkeypatch.undo()
    folder = tmp_path / "checkpoints"
    assert (folder / ASIDE / "checkpoint-3/model.safetensors").exists()
    assert checkpoint_steps(folder) == {}
    (folder / ASIDE / "checkpoint-3/rng_state_1.pth").write_bytes(b"of a process that is no more")
    trainer(tmp_path).train()
    assert not (folder / ASIDE).exists()
    assert list(checkpoint_steps(folder)) == [3, 6, 9]
    assert not (folder / "checkpoint-3/rng_state_1.pth").exists()
    (folder / ASIDE / "checkpoint-12").mkdir(parents=True)
    assert last_checkpoint(folder) == folder / "checkpoint-9"
    assert not (folder / ASIDE).exists()


def test_metrics_are_cut_to_the_checkpoint(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    whole = log_lines(tmp_path / "run")
    path.write_text(path.read_text() + '{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    resumed = trainer(tmp_path / "run", num_train_epochs=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoints/checkpoint-3"))
    assert log_lines(tmp_path / "run") == whole
    assert path.read_text().endswith("\n")
