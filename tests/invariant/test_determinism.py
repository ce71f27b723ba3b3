"""The same recipe gives the same bytes; `full_determinism` holds for its stage alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import set_seed

import preceptor
from invariant.recipes import TRAINING, recipe
from preceptor.trainer import DistillationTrainer
from same_results import log_lines


def trained(folder: Path, name: str, **training: Any) -> tuple[bytes, list[dict[str, Any]]]:
    """The finished student's file and the log without its times."""
    found = preceptor.run(recipe(folder, name, training={**TRAINING, **training}), log=lambda line: None)
    stage = Path(found["directory"], "kd")
    return (stage / "model/model.safetensors").read_bytes(), log_lines(stage)


def test_the_state_of_the_process_does_not_matter(tmp_path: Path) -> None:
    first = trained(tmp_path, "first")
    set_seed(99)
    torch.rand(7)
    assert trained(tmp_path, "second") == first


def test_full_determinism_is_on_in_its_stage_and_off_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[tuple[bool, str | None]] = []
    step = DistillationTrainer.training_step

    def watched(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        during.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", watched)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    strict = trained(tmp_path, "strict", full_determinism=True)
    assert set(during) == {(True, ":16:8")}
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == cudnn
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert os.environ["CUDA_LAUNCH_BLOCKING"] == "0"
    assert trained(tmp_path, "again", full_determinism=True) == strict


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_full_determinism_repeats_a_run_on_a_gpu(tmp_path: Path) -> None:
    first = trained(tmp_path, "first", full_determinism=True, use_cpu=False, bf16=True)
    assert trained(tmp_path, "second", full_determinism=True, use_cpu=False, bf16=True) == first
