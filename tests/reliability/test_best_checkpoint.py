"""The best checkpoint, with whose weights a training is to end: damaged, or moved with its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from invariant.test_resume import same
from invariant.trainers import Stop, StopAt, trainer, weights
from preceptor.errors import InputError

# It gets worse at once, so that the first step is the best.
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "learning_rate": 5.0,
    "load_best_model_at_end": True,
}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A training that was broken off in its last step."""
    with pytest.raises(Stop):
        trainer(tmp_path / "parts", StopAt(2), **SETTINGS).train()
    return tmp_path / "parts"


def test_a_training_does_not_go_on_towards_a_best_one_that_is_damaged(parts: Path) -> None:
    best = parts / "checkpoints/checkpoint-1"
    content = bytearray((best / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (best / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError) as refused:
        trainer(parts, StopAt(2), **SETTINGS).train(resume_from_checkpoint=True)  # before any step
    assert str(refused.value).startswith(f"{best / 'model.safetensors'}: is not the file that manifest.json lists")
    assert str(refused.value).endswith(
        "; it is the best checkpoint, which `load_best_model_at_end` takes in the end; put a whole copy of it there, "
        f"or delete {parts / 'checkpoints'} to start over"
    )


def test_one_that_is_damaged_while_it_trains_is_not_taken(parts: Path) -> None:
    made = trainer(parts, **SETTINGS)
    made.add_callback(Damages(parts / "checkpoints/checkpoint-1"))
    with pytest.raises(InputError, match="it is the best checkpoint"):
        made.train(resume_from_checkpoint=True)


class Damages(StopAt):
    def __init__(self, best: Path) -> None:
        super().__init__(2)
        self.best = best

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        (self.best / "model.safetensors").write_bytes(b"")


def test_a_run_that_was_moved_ends_with_it_all_the_same(parts: Path, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", **SETTINGS)
    whole.train()
    moved = parts.rename(tmp_path / "moved")
    found = trainer(moved, **{**SETTINGS, "save_strategy": "best", "metric_for_best_model": "loss"})
    found.train(resume_from_checkpoint=True)
    same(weights(found.model), weights(whole.model))
