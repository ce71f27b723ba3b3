"""Trackers of a training (TensorBoard, Weights & Biases, …), as a stage's `training: {report_to: …}` names them.

transformers reports to them; what is settled here is that a misspelt or missing one is found before anything runs, that
TensorBoard's files lie with the stage's other results, and that a process which trains several stages makes one run of
each.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from preceptor.errors import InputError, accepted, did_you_mean

# The packages behind the names; tensorboardX is as good as tensorboard.
_PACKAGES = {
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dvclive": ("dvclive",),
    "mlflow": ("mlflow",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def check_trackers(report_to: Sequence[str]) -> None:
    """Makes sure that transformers knows each tracker and that its package is installed.

    Args:
        report_to: as `TrainingArguments` holds it: names, of which "none" and "all" are resolved already.

    Raises:
        InputError: otherwise.
    """
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(
                f"training.report_to: {name!r} is no tracker that transformers knows"
                f"{did_you_mean(name, INTEGRATION_TO_CALLBACK)}; write {accepted(sorted(INTEGRATION_TO_CALLBACK))}, or "
                "none alone"
            )
        packages = _PACKAGES.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise InputError(
                f"training.report_to: {name} is not installed; install it with `pip install {packages[0]}`, or leave "
                "it out"
            )


def lead_trackers(trainer: Trainer, *, directory: Path, name: str) -> None:
    """Gives the trackers of a new trainer their place and their name.

    TensorBoard writes to `directory/tensorboard` (or where the environment variable TENSORBOARD_LOGGING_DIR says), and
    hides on resume what was logged after the checkpoint. Where the recipe gives no `run_name`, runs are called `name`.
    A W&B run that the training began ends with it.
    """
    if trainer.args.run_name is None:
        trainer.args.run_name = name
    callbacks = trainer.callback_handler.callbacks
    for callback in [each for each in callbacks if isinstance(each, TensorBoardCallback)]:
        callback.logging_dir = callback.logging_dir or str(directory / "tensorboard")
        if importlib.util.find_spec("tensorboard"):
            # Before it: it opens a writer of its own where it has none.
            callbacks.insert(0, _Writer(callback))
    if "wandb" in trainer.args.report_to:
        trainer.add_callback(_WandbEnd())


class _Writer(TrainerCallback):
    """Opens TensorBoard's writer when training begins, hiding what an earlier attempt logged after the checkpoint."""

    def __init__(self, tensorboard: TensorBoardCallback) -> None:
        self._tensorboard = tensorboard

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            first = state.global_step + 1 if state.global_step else None
            self._tensorboard.tb_writer = SummaryWriter(log_dir=self._tensorboard.logging_dir, purge_step=first)


class _WandbEnd(TrainerCallback):
    """Ends the W&B run, to which the next stage of the same process would be added otherwise."""

    _ours = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # transformers' own callback, which comes first, has begun a run unless there was one.
        self._ours = state.is_world_process_zero

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._ours and "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            sys.modules["wandb"].finish()
