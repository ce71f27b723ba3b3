"""What the engine decides by itself, without processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from preceptor.models.sharding import count_parameters
from preceptor.training.engine import EngineTrainer


@pytest.mark.parametrize("first", [True, False])
def test_one_process_writes_a_gathered_student(first: bool, tmp_path: Path) -> None:
    """The others have no weights, and transformers' own `_save` once wrote in all of them, one over the other."""
    written: list[Any] = []

    class Stub(EngineTrainer):
        is_fsdp_enabled, is_deepspeed_enabled = True, False

        def __init__(self) -> None:
            pass

        def is_world_process_zero(self) -> bool:
            return first

        def whole_weights(self) -> dict[str, torch.Tensor]:
            return {}

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            written.append(output_dir)

    Stub().save_model(str(tmp_path))
    assert written == ([str(tmp_path)] if first else [])
    Stub().save_model(str(tmp_path), _internal_call=True)
    assert len(written) == first


def test_parameters_are_counted_whole_where_processes_hold_parts() -> None:
    model = toys.llama(1)
    whole = sum(p.numel() for p in model.parameters())
    model.lm_head.weight.requires_grad_(False)
    head = model.lm_head.weight
    size = head.numel()
    assert (count_parameters(model), count_parameters(model, trainable=True)) == (whole, whole - size)
    head.ds_numel, head.data = size, torch.empty(0)  # as ZeRO-3 leaves it
    assert (count_parameters(model), count_parameters(model, trainable=True)) == (whole, whole - size)
