"""What each of two gloo processes does in test_training_faults_ranks: a row that only one of them cannot take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from invariant.ranks import whole
from preceptor.errors import RunFailed
from reliability.faulty import BadGradient, made, rows, student

ENGINES: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {"fsdp": True}}
BAD = 5  # of the second step: the second process's first row there


def on_rank(rank: int, folder: Path) -> None:
    found = {name: engine(folder / name, rank, settings) for name, settings in ENGINES.items()}
    torch.save(found, folder / f"rank{rank}.pt")


def engine(folder: Path, rank: int, settings: dict[str, Any]) -> dict[str, Any]:
    settings = {"per_device_train_batch_size": 1, "optim_args": "momentum=0.9", "dataloader_num_workers": 0, **settings}
    bad = made(folder / "bad", rows(poisoned=[BAD]), model=student(dropout=0), said=[], **settings)
    assert isinstance(next(bad.model.parameters()), DTensor) == ("fsdp" in settings)
    bad.train()
    empty = made(
        folder / "empty", rows(poisoned=[BAD], empty=range(4, 8)), model=student(dropout=0), said=[], **settings
    )
    empty.train()
    found: dict[str, Any] = {
        "bad": whole(bad.model),
        "empty": whole(empty.model),
        "counted": (bad.step_metrics.nonfinite_total, bad.step_metrics.skipped_total),
    }
    dist.barrier()
    found["lines"] = [json.loads(line) for line in (folder / "bad/nonfinite.jsonl").read_text().splitlines()]
    try:
        made(folder / "none", rows(poisoned=[BAD]), model=student(dropout=0), limit=0, **settings).train()
    except RunFailed as error:
        found["failed"] = str(error).replace(str(folder), "FOLDER")
    if "fsdp" not in settings:
        hooked = [BadGradient(3)] if rank else []  # of one process alone, before gradients are reduced
        trainer = made(folder / "gradient", rows(), *hooked, model=student(dropout=0, poison=0), said=[], **settings)
        trainer.train()
        found["gradient"] = whole(trainer.model)
        trainer = made(
            folder / "no gradient", rows(empty=range(4, 8)), model=student(dropout=0, poison=0), said=[], **settings
        )
        trainer.train()
        found["no gradient"] = whole(trainer.model)
    return found
