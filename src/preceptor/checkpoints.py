"""Checkpoints that are whole or absent: written aside, synced, listed with checksums, and renamed into view."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preceptor.errors import InputError
from preceptor.files import publish_directory, verify_directory

_NAME = re.compile(r"checkpoint-(\d+)")
ASIDE = ".writing"


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """Visible checkpoints by step, ascending."""
    if not folder.is_dir():
        return {}
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint, its checksums verified; what an interrupted write left aside is removed.

    Raises:
        InputError: when a file of the newest checkpoint is missing or differs from its manifest.
    """
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    steps = checkpoint_steps(folder)
    if not steps:
        return None
    path = steps[max(steps)]
    try:
        verify_directory(path)
    except InputError as error:
        raise InputError(
            f"{error}; to go on from the checkpoint before it (or from the start) delete the folder {path}"
        ) from error
    return path


def publish_checkpoint(aside: Path, folder: Path, *, keep: int | None, best: int | None) -> Path:
    """Make a checkpoint visible, then drop the oldest beyond `keep`, never the newest nor that of step `best`."""
    final = folder / aside.name
    publish_directory(aside, final)
    shutil.rmtree(aside.parent, ignore_errors=True)
    steps = checkpoint_steps(folder)
    if keep is not None and keep > 0:
        spare = [path for step, path in steps.items() if step not in (max(steps), best)]
        for path in spare[: max(0, len(steps) - keep)]:
            shutil.rmtree(path)
    return final


class SaveLast(TrainerCallback):
    """Puts a step's checkpoint after all its log lines, so that a resumed run neither repeats nor misses one.

    Trainer saves every so many steps before it logs or evaluates at the end of an epoch. The last step is logged as
    well, whatever `logging_steps` is: what it sums up would be lost.
    """

    _postponed = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        last = state.global_step >= state.max_steps
        if last and args.logging_strategy != "no":
            control.should_log = True
        if control.should_save and (last or float(state.epoch or 0).is_integer()):
            self._postponed = "epoch" in (args.logging_strategy, args.eval_strategy)
            control.should_save = not self._postponed
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        control.should_save |= self._postponed
        self._postponed = False
        return control
