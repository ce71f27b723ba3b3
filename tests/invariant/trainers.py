"""A small training through DistillationTrainer, on a mixture of two toy datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PrinterCallback, TrainerCallback

import toys
from preceptor import ModelTeacher, NextToken, Objective
from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator
from preceptor.data.mixture import Mixture
from preceptor.objective import Term
from preceptor.trainer import DistillationTrainer
from preceptor.training.metrics import MetricsFile


class Stop(RuntimeError):  # noqa: N818 - not an error
    """What ends a run in the middle."""


def encoded(name: str, lengths: list[int], seed: int) -> list[EncodedRow]:
    made = toys.rows(seed, lengths, [max(1, length // 2) for length in lengths])
    return [EncodedRow(name, ids.numpy().astype(np.int32), is_target.numpy(), origin=name) for ids, is_target in made]


class StopAt(TrainerCallback):
    """Fails at the end of a step, after what that step logs and saves."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Stop


def stop_before(monkeypatch: pytest.MonkeyPatch, micro_batch: int, error: BaseException) -> None:
    """Let the trainer's call number `micro_batch` (from 0, counted from now on) fail."""
    monkeypatch.undo()
    step = DistillationTrainer.training_step
    calls = iter(range(10**6))

    def stopping(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == micro_batch:
            raise error
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", stopping)


def datasets() -> dict[str, list[EncodedRow]]:
    return {"a": encoded("a", [5, 7, 6, 9, 5, 8, 4], 1), "b": encoded("b", [6, 8, 5, 7], 2)}


def trainer(
    folder: Path,
    *callbacks: TrainerCallback,
    model: torch.nn.Module | None = None,
    terms: Sequence[Term] = (NextToken(),),
    teacher: ModelTeacher | None = None,
    **settings: Any,
) -> DistillationTrainer:
    """3 steps of 4 rows (the last one short by 2) per epoch, a log line after every second step."""
    rows = datasets()
    mixture = Mixture(rows, shares={"a": 0.6, "b": 0.4}, rows=10, seed=1, multiple_of=4)
    defaults = {
        "output_dir": str(folder / "checkpoints"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "learning_rate": 0.01,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    folder.mkdir(exist_ok=True)
    made = DistillationTrainer(
        toys.llama(1, attention_dropout=0.3) if model is None else model,
        toys.training_arguments(**{**defaults, **settings}),
        objective=Objective(terms, route_names=("a", "b")),
        teacher=teacher,
        train_dataset=mixture,
        eval_dataset=rows["a"][:3] + rows["b"][:2],
        data_collator=Collator(0, route_names=("a", "b")),
        callbacks=[MetricsFile(folder / "metrics.jsonl"), *callbacks],
    )
    made.remove_callback(PrinterCallback)
    return made


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
