"""A training in a known order, one of whose rows holds a token that the student cannot take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback

import toys
from preceptor import NextToken, Objective
from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator
from preceptor.objective import Term
from preceptor.signals import Teacher
from preceptor.trainer import DistillationTrainer
from preceptor.training.metrics import MetricsFile
from preceptor.training.nonfinite import NonFiniteSteps

POISON = toys.VOCABULARY - 1
PER_STEP = 4
ROWS = 6 * PER_STEP


class InOrder(DistillationTrainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class BadGradient(TrainerCallback):
    """Makes one entry of a gradient infinite in micro-batch `at`, from 0."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        calls = iter(range(10**6))

        def hook(gradient: torch.Tensor) -> torch.Tensor:
            if next(calls) == self.at:
                gradient = gradient.clone()
                gradient[0, 0] = torch.inf
            return gradient

        (weight,) = (each for name, each in model.named_parameters() if name.endswith("lm_head.weight"))
        weight.register_hook(hook)


def rows(
    *, poisoned: Sequence[int] = (), empty: Sequence[int] = (), routes: Sequence[str] = ("a",)
) -> list[EncodedRow]:
    """6 steps of 4 rows; rows `poisoned` hold the bad token, rows `empty` no target."""
    made = toys.rows(11, [5 + i % 5 for i in range(ROWS)], [3] * ROWS)
    found = []
    for i, (ids, is_target) in enumerate(made):
        tokens = ids.numpy().astype(np.int32) % POISON
        tokens[1] = POISON if i in poisoned else tokens[1]
        target = np.zeros_like(is_target.numpy()) if i in empty else is_target.numpy()
        found.append(EncodedRow(routes[i % len(routes)], tokens, target, origin=f"rows.jsonl:{i + 1}"))
    return found


def student(seed: int = 1, *, dropout: float = 0.3, poison: float = float("nan"), **changes: Any) -> Any:
    model = toys.llama(seed, attention_dropout=dropout, **changes)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = poison
    return model


def made(
    folder: Path,
    data: Sequence[EncodedRow],
    *callbacks: TrainerCallback,
    model: nn.Module | None = None,
    terms: Sequence[Term] = (NextToken(),),
    routes: Sequence[str] = ("a",),
    teacher: Teacher | None = None,
    limit: int = 10,
    said: list[str] | None = None,
    packing: bool = False,
    **settings: Any,
) -> DistillationTrainer:
    """2 micro-batches of 2 rows a step in one process."""
    folder.mkdir(exist_ok=True, parents=True)
    defaults: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 5,
    }
    torch.manual_seed(9)
    trainer = InOrder(
        student() if model is None else model,
        toys.training_arguments(**{**defaults, **settings}),
        objective=Objective(terms, route_names=routes),
        teacher=teacher,
        train_dataset=data,
        data_collator=Collator(0, route_names=routes, packing=packing, max_length=64),
        nonfinite=NonFiniteSteps(limit, path=folder / "nonfinite.jsonl", say=print if said is None else said.append),
        callbacks=[MetricsFile(folder / "metrics.jsonl"), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
