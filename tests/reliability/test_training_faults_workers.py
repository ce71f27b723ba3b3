"""Processes that prepare batches and die: a sentence that says so, none left behind, and a stage that goes on."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import preceptor
from every_kind import outcome
from invariant.recipes import MICRO, TRAINING, quiet, recipe
from preceptor.data.collator import Collator
from preceptor.errors import RunFailed
from preceptor.trainer import DistillationTrainer

SETTINGS = {**TRAINING, "num_train_epochs": 2, "save_steps": 2, "eval_strategy": "no"}  # 6 steps
WORKERS = {**SETTINGS, "dataloader_num_workers": 2}


def fail_in(monkeypatch: pytest.MonkeyPatch, micro_batch: int, fault: Callable[[], object]) -> None:
    """Let `fault()` happen in the forward of micro-batch `micro_batch`, from 0."""
    calls = iter(range(10**6))
    compute = DistillationTrainer.compute_loss

    def failing(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == micro_batch:
            fault()
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", failing)


def kill_one() -> None:
    worker = multiprocessing.active_children()[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)  # the signal that tells of it may take a moment


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What comes of the stage without workers and without faults."""
    folder = tmp_path_factory.mktemp("whole")
    preceptor.run(recipe(folder, "runs", training=SETTINGS), log=quiet)
    return outcome(folder / "runs/r/kd")


def none_left() -> bool:
    gc.collect()
    for child in multiprocessing.active_children():
        child.join(10)
    return not multiprocessing.active_children()


def test_a_worker_that_is_killed(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in(monkeypatch, 3 * MICRO, kill_one)  # the second epoch has just begun
    begun = time.monotonic()
    with pytest.raises(RunFailed) as failed:
        preceptor.run(recipe(tmp_path, "runs", training=WORKERS), log=quiet)
    assert time.monotonic() - begun < 120
    monkeypatch.undo()
    said = str(failed.value)
    assert said.startswith("stage kd failed: a process that prepares batches (pid ")
    assert (
        ") was killed by SIGKILL in step 4; it may have run out of memory, which `training.dataloader_num_workers: 0` "
        "spares (the main process then prepares the batches, with the same result); what is finished is kept, and once "
        "the cause is mended `preceptor run recipe` goes on from there"
    ) in said
    del failed
    assert none_left()
    lines: list[str] = []
    preceptor.run(recipe(tmp_path, "runs", training={**WORKERS, "dataloader_num_workers": 1}), log=lines.append)
    assert "kd: resumes from checkpoint-2" in lines
    assert outcome(tmp_path / "runs/r/kd") == whole
    assert none_left()


def test_a_worker_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collate = Collator.__call__

    def failing(self: Collator, rows: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            raise ValueError("this row cannot be read")
        return collate(self, rows)

    monkeypatch.setattr(Collator, "__call__", failing)
    with pytest.raises(RunFailed) as failed:
        preceptor.run(recipe(tmp_path, "runs", training=WORKERS), log=quiet)
    assert str(failed.value).startswith(
        "stage kd failed: a process that prepares batches failed (ValueError: this row cannot be read) in step 1; "
        "`training.dataloader_num_workers: 0` has the main process prepare them, with the same result; what is "
    )
    del failed
    assert none_left()
