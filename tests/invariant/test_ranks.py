"""Two gloo ranks, DDP and FSDP2, equal a float64 brute force on one process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from invariant import steps
from invariant.ranks import on_two_ranks
from oracle import brute


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_two_ranks(steps.on_rank, tmp_path_factory.mktemp("ranks"))


@cache
def expected(tied: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    student, teacher = steps.models(tied, torch.float64)
    return student, brute.train(student, teacher, steps.STEPS, steps.WEIGHTS, steps.LEARNING_RATE)


@pytest.mark.parametrize("case", steps.CASES, ids=lambda case: steps.case_name(*case))
def test_two_ranks_equal_brute_force(two_ranks: Path, case: tuple[str, bool, bool | None]) -> None:
    start, last = expected(case[1])
    got = torch.load(two_ranks / steps.case_name(*case), weights_only=True)
    assert steps.distance(got, last, start) <= 1e-7
