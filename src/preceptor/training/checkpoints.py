"""Checkpoints that are whole or absent: written aside, synced, listed with checksums, and renamed into view."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preceptor.errors import InputError
from preceptor.system.files import (
    move_aside,
    publish_directory,
    remove_directory,
    remove_interrupted,
    verify_directory,
    write_atomic,
)

_NAME = re.compile(r"checkpoint-(\d+)")
ASIDE = ".writing"
UNSCHEDULED = "unscheduled"  # a file in the checkpoint of an interruption


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """Visible checkpoints by step, ascending."""
    if not folder.is_dir():
        return {}
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def last_checkpoint(folder: Path, log: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest checkpoint that is whole by its checksums; what an interrupted write left aside is removed.

    Newer ones that are damaged are renamed to `checkpoint-STEP.damaged`, and `log` is told: to go on from an older
    one costs time and changes no number.

    Raises:
        InputError: when all are damaged, for then all the work would be done anew.
    """
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    remove_interrupted(folder)
    damaged: list[tuple[Path, str]] = []
    for path in reversed(checkpoint_steps(folder).values()):
        try:
            verify_directory(path)
        except InputError as error:
            damaged.append((path, str(error)))
            continue
        for each, said in damaged:
            moved = move_aside(each, each.with_name(f"{each.name}.damaged"))
            cause = said.rpartition("; ")[0]
            log(f"{each.name} is damaged ({cause}); it is now {moved.name} and may be deleted")
        return path
    if damaged:
        raise InputError(
            f"{damaged[0][1]}; no older checkpoint is whole either, so to start over delete the folder {folder}"
        )
    return None


def last_of_all(folder: Path, log: Callable[[str], None], *, processes: int, main: bool) -> Path | None:
    """`last_checkpoint`, looked for by the main one of several processes alone: it renames and removes."""
    if processes == 1:
        return last_checkpoint(folder, log)
    found: list[Any] = [None, None]
    if main:
        try:
            found[0] = last_checkpoint(folder, log)
        except InputError as error:
            found[1] = str(error)
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise InputError(found[1])
    path: Path | None = found[0]
    return path


def check_best(best: Path) -> None:
    """Raises InputError when the best checkpoint is not whole, of which a training is to end with the weights.

    Nothing where there is none: the best step need not be one that is saved.
    """
    if not best.is_dir():
        return
    try:
        verify_directory(best)
    except InputError as error:
        raise InputError(
            f"{str(error).rpartition('; ')[0]}; it is the best checkpoint, which `load_best_model_at_end` takes in the "
            f"end; put a whole copy of it there, or delete {best.parent} to start over"
        ) from None


def best_known_to(checkpoint: Path) -> Path | None:
    """The best checkpoint of the steps before `checkpoint`, which it names."""
    best = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")).get("best_global_step")
    return None if best is None else checkpoint.with_name(f"checkpoint-{best}")


def publish_checkpoint(
    aside: Path, folder: Path, *, keep: int | None, best: int | None, unscheduled: bool = False
) -> Path:
    """Make a checkpoint visible, and drop those that it makes superfluous."""
    if unscheduled:
        write_atomic(aside / UNSCHEDULED, "Written because the training was interrupted.\n")
    final = folder / aside.name
    publish_directory(aside, final)
    shutil.rmtree(aside.parent, ignore_errors=True)
    drop_spare(folder, keep=keep, best=best)
    return final


def drop_spare(folder: Path, *, keep: int | None, best: int | None) -> None:
    """Drop the oldest checkpoints beyond `keep`, never the newest nor that of step `best`.

    An unscheduled one goes when there is a newer one, and none goes for it: a training that was interrupted keeps the
    checkpoints of one that was not.
    """
    steps = checkpoint_steps(folder)
    unscheduled = {step for step, path in steps.items() if (path / UNSCHEDULED).exists()}
    newest = max(steps)
    spare = unscheduled - {newest}
    if keep is not None and keep > 0 and newest not in unscheduled:
        others = [step for step in steps if step not in (newest, best) and step not in spare]
        spare |= set(others[: max(0, len(steps) - len(spare) - keep)])
    for step in spare:
        remove_directory(steps[step])


class SaveLast(TrainerCallback):
    """Puts a step's checkpoint after all its log lines, so that a resumed run neither repeats nor misses one.

    Trainer saves every so many steps before it logs or evaluates at the end of an epoch. The last step is logged as
    well, whatever `logging_steps` is: what it sums up would be lost.
    """

    _postponed = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.best_global_step is not None:
            # Where it is now: Trainer ends without a best model, after a warning, when a run's folder was moved.
            best = Path(args.output_dir, f"checkpoint-{state.best_global_step}")
            state.best_model_checkpoint = str(best) if best.is_dir() else None
        # A process that was killed after publishing a checkpoint has not dropped those that it made superfluous.
        folder = Path(args.output_dir)
        if state.is_world_process_zero and state.global_step == max(checkpoint_steps(folder), default=0) > 0:
            drop_spare(folder, keep=args.save_total_limit, best=state.best_global_step)

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
