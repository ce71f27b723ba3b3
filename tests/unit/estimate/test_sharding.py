"""What each of several devices holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preceptor.estimate.sharding import Sharding, on_each, sharding_of
from preceptor.estimate.step import Simulated, simulate
from preceptor.estimate.storages import (
    ACTIVATIONS,
    OPTIMIZER,
    TEACHER_WEIGHTS,
    WEIGHTS,
)
from steps import SMALL, elements, row, setup, taught


@pytest.fixture(scope="module")
def found() -> Simulated:
    return simulate(taught(batch=(row(8),)))


def test_replicas_hold_all_and_a_second_copy_of_gradients(found: Simulated) -> None:
    alone, each = on_each(found, Sharding()), on_each(found, sharding_of({}, 4, low_precision=False))
    assert alone == found.storages.peak()
    assert each.total == alone.total + 4 * elements(SMALL)


def test_shards(found: Simulated) -> None:
    each = on_each(found, sharding_of({"fsdp": "full_shard"}, 4, low_precision=True))
    assert each.parts[ACTIVATIONS] < 4 * elements(SMALL) / 2  # no gradient goes for an activation
    layer = found.layer
    assert layer == (elements(SMALL) - 32 - 2 * 200 * 32) // 2
    weights = found.storages.most(WEIGHTS)
    assert abs(each.parts[WEIGHTS] - (weights / 4 + 2 * layer * 2)) <= 1
    assert abs(each.parts[OPTIMIZER] - found.storages.most(OPTIMIZER) / 4) <= 1
    assert abs(each.parts[TEACHER_WEIGHTS] - found.storages.most(TEACHER_WEIGHTS) / 4 - 4 * found.teacher_layer) <= 1


@pytest.mark.parametrize(("stage", "weights", "gradients"), [(1, 1.0, 1.0), (2, 1.0, 0.25), (3, 0.25, 0.25)])
def test_zero(stage: int, weights: float, gradients: float, found: Simulated, tmp_path: Path) -> None:
    sharding = sharding_of({"deepspeed": {"zero_optimization": {"stage": stage}}}, 4, low_precision=False)
    assert sharding.engine == f"zero{stage}"
    each = on_each(found, sharding)
    assert abs(each.parts[OPTIMIZER] - found.storages.most(OPTIMIZER) / 4) <= 1
    gathered = 2 * found.layer * 4 if stage == 3 else 0
    assert abs(each.parts[WEIGHTS] - weights * found.storages.most(WEIGHTS) - gathered) <= 1
    if stage < 3:
        assert each.parts[TEACHER_WEIGHTS] == found.storages.most(TEACHER_WEIGHTS)
    file = tmp_path / "zero.json"
    file.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    assert sharding_of({"deepspeed": str(file)}, 4, low_precision=False) == sharding
    assert gradients <= weights


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_in_bfloat16_keeps_two_bytes_and_updates_four(stage: int) -> None:
    found = simulate(setup(batch=(row(8),), arguments={"bf16": True}))
    config = {"deepspeed": {"zero_optimization": {"stage": stage}}}
    each = on_each(found, sharding_of(config, 4, low_precision=True))
    P = found.parameters
    assert abs(each.parts[OPTIMIZER] - 12 * P / 4) < 100  # two moments and the weights
    gathered = 2 * found.layer * 2 if stage == 3 else 0
    assert abs(each.parts[WEIGHTS] - gathered - 2 * P / (4 if stage == 3 else 1)) < 10


def test_teachers_are_parted_with_the_student() -> None:
    by: dict[str, Any] = {
        "fsdp": {"fsdp": True},
        **{f"zero{n}": {"deepspeed": {"zero_optimization": {"stage": n}}} for n in (2, 3)},
    }
    parted = {name: sharding_of(given, 2, low_precision=False).teachers for name, given in by.items()}
    assert parted == {"fsdp": True, "zero2": False, "zero3": True}


def test_layers_that_stay_gathered_are_held_beside_their_shards(found: Simulated) -> None:
    given = {"fsdp": True, "fsdp_config": {"reshard_after_forward": False}}
    each = on_each(found, sharding_of(given, 4, low_precision=False))
    assert abs(each.parts[WEIGHTS] - 1.25 * found.storages.most(WEIGHTS)) <= 1
