"""A signal that one of two ranks hears stops both at one step, and they go on as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from invariant.ranks import on_two_ranks
from preceptor.training.checkpoints import UNSCHEDULED, checkpoint_steps
from reliability.stopping_ranks import on_rank
from same_results import log_lines, same


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_two_ranks(on_rank, tmp_path_factory.mktemp("ranks"))


def told(folder: Path, rank: int) -> dict[str, Any]:
    return dict(json.loads((folder / f"told-{rank}.json").read_text()))


def test_both_stop_after_the_step_that_both_know_of(ranks: Path) -> None:
    """In the fourth step of nine, the first of an epoch; and in the last, after which all is told once more."""
    for rank in (0, 1):
        assert told(ranks, rank)["stopped in 4"] == [143, "step 4 of 9 is done and its checkpoint written"]
        assert told(ranks, rank)["stopped in 9"] == [143, "step 9 of 9 is done and its checkpoint written"]


def test_the_training_goes_on_to_the_bit(ranks: Path) -> None:
    for rank in (0, 1):
        got, expected = (torch.load(ranks / f"{name}-{rank}.pt", weights_only=True) for name in ("parts", "whole"))
        same(got, expected)
    assert log_lines(ranks / "parts") == log_lines(ranks / "whole")
    steps = checkpoint_steps(ranks / "parts/checkpoints")
    assert list(steps) == list(checkpoint_steps(ranks / "whole/checkpoints")) == [3, 6, 9]
    assert not any((path / UNSCHEDULED).exists() for path in steps.values())
    for path in steps.values():
        assert {file.name for file in path.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_each_rank_has_its_own_random_numbers_back(ranks: Path) -> None:
    for rank in (0, 1):
        whole, resumed = told(ranks, rank)["drawn"]
        assert list(resumed) == ["4", "5", "6", "7", "8"]
        assert resumed == {step: whole[step] for step in resumed}, "python, numpy, torch"
    assert told(ranks, 0)["drawn"] != told(ranks, 1)["drawn"]
