"""DistillationTrainer under DeepSpeed's ZeRO-2 and ZeRO-3 on two gloo ranks, the teacher cut by FSDP2, is one process.

Runs where DeepSpeed is installed; on CPUs it wants DS_ACCELERATOR=cpu, and it compiles a library when it first starts.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from invariant import steps, zero_ranks
from invariant.ranks import on_two_ranks
from oracle import brute

pytestmark = [
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="its processes have no GPU each"),
    pytest.mark.slow,
]

STAGES = [str(stage) for stage in zero_ranks.STAGES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        return on_two_ranks(zero_ranks.on_rank, tmp_path_factory.mktemp("zero"))


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@cache
def expected() -> tuple[torch.nn.Module, torch.nn.Module]:
    student, teacher = steps.models(False, torch.float64)
    return student, brute.train(student, teacher, steps.STEPS, steps.WEIGHTS, steps.LEARNING_RATE)


@pytest.mark.parametrize("stage", STAGES)
def test_it_equals_brute_force(ranks: list[dict[str, Any]], stage: str) -> None:
    """As far as float32 goes, in which DeepSpeed keeps what it updates."""
    assert ranks[0][stage]["partitioned"] == (stage == "3")
    start, last = expected()
    assert steps.distance(ranks[0][stage]["whole"], last, start) <= 5e-6


@pytest.mark.parametrize("stage", STAGES)
def test_it_resumes_to_the_bit(ranks: list[dict[str, Any]], stage: str) -> None:
    for name, value in ranks[0][stage]["whole"].items():
        assert torch.equal(ranks[0][stage]["again"][name], value), name


@pytest.mark.parametrize("stage", STAGES)
def test_its_export_is_a_plain_checkpoint(ranks: list[dict[str, Any]], folder: Path, stage: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / stage / "exported", dtype=torch.float64)
    for name, value in model.state_dict().items():
        assert torch.equal(value, ranks[0][stage]["again"][name]), name


@pytest.mark.parametrize("stage", STAGES)
def test_it_measures_what_one_process_does(ranks: list[dict[str, Any]], stage: str, tmp_path: Path) -> None:
    alone = zero_ranks.alone(tmp_path)["evaluated"]
    for each in ranks:
        for key, value in alone.items():
            assert each[stage]["evaluated"][key] == pytest.approx(value, rel=1e-4), key
