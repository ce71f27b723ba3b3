"""What two ranks do for test_kill_ranks.py: a training, one of which a signal to a single rank stops, and its rest."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from invariant.trainers import trainer, weights
from preceptor.system.interrupts import Interrupted, listening


class At(TrainerCallback):
    """Notes what the random generators give at the begin of steps; rank 1 sends itself a signal in one of them."""

    def __init__(self, rank: int, step: int | None = None) -> None:
        self.mine = step if rank == 1 else None
        self.drawn: dict[int, list[float]] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.drawn[state.global_step] = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        if state.global_step + 1 == self.mine:
            os.kill(os.getpid(), signal.SIGTERM)


def on_rank(rank: int, folder: Path) -> None:
    """Leaves each rank's account in `folder`."""
    settings = {"gradient_accumulation_steps": 1, "data_seed": 1}
    told: dict[str, Any] = {}
    whole = At(rank)
    _scatter(rank)
    made = trainer(folder / "whole", whole, **settings)
    _scatter(rank)
    made.train()
    torch.save(weights(made.model), folder / f"whole-{rank}.pt")
    for step in (4, 9):
        resumed = At(rank, step)
        try:
            with listening(lambda line: None):
                made = trainer(folder / "parts", resumed, **settings)
                _scatter(rank)
                made.train(resume_from_checkpoint=step > 4)
        except Interrupted as stop:
            told[f"stopped in {step}"] = [stop.code, str(stop)]
    made = trainer(folder / "parts", **settings)
    made.train(resume_from_checkpoint=True)
    torch.save(weights(made.model), folder / f"parts-{rank}.pt")
    told["drawn"] = [whole.drawn, resumed.drawn]
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


def _scatter(rank: int) -> None:
    """Each rank draws other numbers, as under engines that seed them apart."""
    random.seed(100 + rank)
    np.random.seed(100 + rank)
    torch.manual_seed(100 + rank)
