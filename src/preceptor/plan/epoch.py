"""How long a stage trains: its rows, their tokens, and the optimiser steps that they make."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preceptor.data.collator import Collator
from preceptor.recipe import DistillStage, SftStage
from preceptor.recipe.training import DEFAULT_BATCH

if TYPE_CHECKING:
    from preceptor.data.chat import EncodedRow
    from preceptor.data.mixture import Mixture
    from preceptor.data.prepare import PreparedDataset

_LOOKED = 1000
EPOCHS = 3.0
"""What transformers.TrainingArguments takes where `num_train_epochs` is left out."""


@dataclass(frozen=True)
class Epoch:
    """One epoch of a stage: rows, micro-batches of all devices, and tokens, those of padding included."""

    rows: int
    micro_batches: int
    tokens: int
    held_out_tokens: int
    largest: tuple[EncodedRow, ...] | None = None
    """Where rows are packed, the micro-batch that takes most tokens; unpacked, the longest rows tell."""


def epoch_of(
    stage: SftStage | DistillStage, mixture: Mixture, datasets: Iterable[PreparedDataset], devices: int
) -> Epoch:
    """The first epoch of a mixture; of packed rows, as far as its first micro-batches tell."""
    size = int(stage.training.get("per_device_train_batch_size", DEFAULT_BATCH))
    rows = list(mixture)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    held_out = sum(len(row) for data in datasets for part in (data.holdout, data.test) for row in part)
    if not stage.packing:
        tokens = [max(map(len, batch)) * len(batch) for batch in batches]
        return Epoch(mixture.epoch_rows, len(batches), sum(tokens), held_out)
    routes = sorted({row.route for row in rows})
    collator = Collator(0, route_names=routes, packing=True, max_length=stage.max_length)
    looked = batches[:_LOOKED]  # enough to tell the mean
    tokens = [collator(batch)["input_ids"].numel() for batch in looked]
    largest = tuple(looked[max(range(len(looked)), key=tokens.__getitem__)])
    return Epoch(mixture.epoch_rows, len(batches), sum(tokens) * len(batches) // len(looked), held_out, largest)


def training_steps(stage: SftStage | DistillStage, epoch: Epoch | None) -> int | None:
    """Optimiser steps of a stage; None while its rows are not known."""
    most = stage.training.get("max_steps", -1)
    if epoch is None:
        return None
    per_epoch = math.ceil(epoch.rows / stage.rows_per_step)
    return int(most) if most > 0 else math.ceil(float(stage.training.get("num_train_epochs", EPOCHS)) * per_epoch)
