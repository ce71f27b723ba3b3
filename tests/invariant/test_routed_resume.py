"""An adapter student whose teachers stand on its own base: what it saves, and that it resumes to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import preceptor
from invariant import routed_recipes
from invariant.recipes import quiet
from invariant.trainers import Stop, stop_before
from preceptor.errors import RunFailed
from preceptor.training.checkpoints import checkpoint_steps
from same_results import log_lines, same_checkpoint

# 3 steps of 2 micro-batches in each of 2 epochs.
TRAINING = {
    **routed_recipes.TRAINING,
    "num_train_epochs": 2,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 3,
}


def lora(folder: Path, runs: str, *, dtype: str | None = None, **more: Any) -> Any:
    """The recipe; with a `dtype`, each teacher has weights of its own."""
    models = [{"path": f"stage:{stage}", **({} if dtype is None else {"dtype": dtype})} for stage in ("adapter", "kd")]
    settings: dict[str, Any] = {
        "lora": {"r": 2, "dropout": 0.3},
        "teacher": {"routes": dict(zip(("shop", "general"), models))},
        "objective": [{"kind": "logits"}, {"kind": "attention", "weight": 0.5}],
        "training": TRAINING,
        **more,
    }
    return routed_recipes.recipe(folder, runs, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    preceptor.run(lora(folder, "whole"), log=quiet)
    return folder


def saved(stage: Path) -> dict[str, torch.Tensor]:
    return load_file(stage / "adapter/adapter_model.safetensors")


def test_only_the_students_own_adapter_is_saved(whole: Path) -> None:
    stage = whole / "whole/r/dae"
    assert not [path for path in (stage / "adapter").iterdir() if path.is_dir()]
    config = json.loads((stage / "adapter/adapter_config.json").read_text())
    assert config["r"] == 2
    assert config["lora_dropout"] == 0.3
    got, teachers = saved(stage), saved(whole / "whole/r/adapter")
    assert {tensor.shape for name, tensor in got.items() if "lora_A" in name} <= {(2, 16), (2, 24)}
    assert got.keys() == teachers.keys()
    assert not any(torch.equal(got[name], teachers[name]) for name in got)
    assert all(bool(tensor.any()) for name, tensor in got.items() if "lora_B" in name), "every layer has learnt"


def test_one_copy_of_the_base_trains_as_three_do(whole: Path) -> None:
    """Teachers on the student's base give the gradients of teachers of their own, to the last step."""
    preceptor.run(lora(whole, "apart", dtype="float32"), log=quiet)
    one, three = saved(whole / "whole/r/dae"), saved(whole / "apart/r/dae")
    for name, tensor in three.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-4, atol=1e-6)
    logs = [
        [
            {key: value for key, value in line.items() if "memory" not in key}
            for line in log_lines(whole / runs / "r/dae")
        ]
        for runs in ("whole", "apart")
    ]
    for got, wanted in zip(*logs, strict=True):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_base_is_what_it_was(whole: Path) -> None:
    """The reference is the base: before the first step its KL is nothing, whatever adapters are around."""
    before = json.loads((whole / "whole/r/dae/before.json").read_text())
    assert before["general"]["logits"] == pytest.approx(0, abs=1e-6)
    assert before["shop"]["logits"] > 1e-4


def test_a_stopped_stage_resumes_to_the_bit(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = lora(whole, "parts")
    for stage in ("start", "kd", "expert", "adapter"):
        preceptor.run(again, only=stage, log=quiet)
    stop_before(monkeypatch, 4 * 2 + 1, Stop("no more"))  # in the fifth step, second epoch
    with pytest.raises(RunFailed, match="no more"):
        preceptor.run(again, log=quiet)
    stage = whole / "parts/r/dae"
    assert list(checkpoint_steps(stage / "checkpoints")) == [2, 4]
    monkeypatch.undo()
    said: list[str] = []
    preceptor.run(again, log=said.append)
    assert "dae: resumes from checkpoint-4" in said
    expected = whole / "whole/r/dae"
    assert log_lines(stage) == log_lines(expected)
    for step in (2, 4, 6):
        same_checkpoint(stage / f"checkpoints/checkpoint-{step}", expected / f"checkpoints/checkpoint-{step}")
    for name, tensor in saved(expected).items():
        assert torch.equal(saved(stage)[name], tensor), name
