"""What must not matter on one process does not: batch size, accumulation, padding, packing, checkpointing, Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import toys
from invariant import steps
from invariant.ranks import whole
from oracle import brute
from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher
from preceptor.trainer import DistillationTrainer


def chunks(size: int, **how: Any) -> Callable[[steps.Rows], Sequence[TokenBatch]]:
    return lambda rows: [toys.batch([[row] for row in rows[i : i + size]], **how) for i in range(0, len(rows), size)]


def packed(rows: steps.Rows) -> Sequence[TokenBatch]:
    return [toys.batch([[rows[0], rows[4]], [rows[1], rows[2], rows[6]], [rows[3]], [rows[7], rows[5]]])]


CUTS: dict[str, tuple[Callable[[steps.Rows], Sequence[TokenBatch]], bool | None]] = {
    "8x1": (chunks(8), None),
    "1x8": (chunks(1), None),
    "3+3+2": (chunks(3), None),
    "left padding": (chunks(8, padding_side="left"), None),
    "more padding": (chunks(4, extra=5), None),
    "packed": (packed, None),
    "reentrant checkpointing": (chunks(4), True),
    "checkpointing": (chunks(4, padding_side="left"), False),
    "packed, checkpointing": (packed, True),
}


@cache
def expected(tied: bool) -> tuple[nn.Module, nn.Module]:
    student, teacher = steps.models(tied, torch.float64)
    return student, brute.train(student, teacher, steps.STEPS, steps.WEIGHTS, steps.LEARNING_RATE)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-7), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", CUTS)
def test_six_steps_equal_brute_force(name: str, dtype: torch.dtype, limit: float) -> None:
    cut, checkpointing = CUTS[name]
    student, teacher = steps.models(True, dtype)
    steps.run(student, teacher, cut, checkpointing=checkpointing)
    start, last = expected(True)
    if dtype == torch.float32:  # rounding of the models' own forwards is not ours: compare with the first way
        last = reference()
    assert steps.distance(whole(student), last, start) <= limit


@cache
def reference() -> nn.Module:
    student, teacher = steps.models(True, torch.float32)
    steps.run(student, teacher, chunks(8))
    return student


def test_float32_is_near_float64() -> None:
    start, last = expected(True)
    assert steps.distance(whole(reference()), last, start) <= 1e-4


# --- the Trainer ------------------------------------------------------------------------------------------------


def encoded(rows: steps.Rows) -> list[EncodedRow]:
    return [
        EncodedRow("rows", ids.numpy().astype(np.int32), is_target.numpy().astype(np.bool_), origin="toy")
        for ids, is_target in rows
    ]


class InOrder(torch.utils.data.Dataset[EncodedRow]):
    """The toy steps' rows, one after another."""

    def __init__(self) -> None:
        self.rows = encoded([row for step in steps.STEPS for row in step])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedRow:
        return self.rows[index]


class Sequential(DistillationTrainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def make_trainer(directory: Path, dtype: torch.dtype, batch: int, packing: bool = False, **more: Any) -> Sequential:
    student, teacher = steps.models(True, dtype)
    settings: dict[str, Any] = {
        **steps.SGD,
        "output_dir": str(directory),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 8 // batch,
    }
    objective = steps.objective()
    objective.route_names = ("rows",)
    return Sequential(
        student, toys.training_arguments(**{**settings, **more}),
        objective=objective, teacher=ModelTeacher(teacher), train_dataset=InOrder(),
        data_collator=Collator(3, route_names=["rows"], packing=packing, max_length=32),
    )  # fmt: skip


@pytest.mark.parametrize(("batch", "packing"), [(8, False), (1, False), (2, True)])
def test_trainer_equals_brute_force(batch: int, packing: bool, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, torch.float64, batch, packing)
    trainer.train()
    start, last = expected(True)
    assert steps.distance(whole(trainer.model), last, start) <= 1e-7
    logs = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["targets"] for line in logs] == [
        sum(int(is_target[1:].sum()) for _, is_target in rows) for rows in steps.STEPS
    ]
    for line in logs:
        total = sum(steps.WEIGHTS[name] * line[name] for name in steps.WEIGHTS)
        assert line["loss"] == pytest.approx(total, rel=1e-9)
