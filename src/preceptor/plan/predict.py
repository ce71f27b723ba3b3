"""What a stage needs: memory by part, time, tokens, disk; and what to change where it does not fit."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from preceptor.data.chat import EncodedRow
from preceptor.estimate.alternatives import try_all
from preceptor.estimate.device import overhead
from preceptor.estimate.setups import Setup, StoreSetup
from preceptor.estimate.sharding import Sharding, on_each, sharding_of
from preceptor.estimate.step import Simulated
from preceptor.estimate.storages import Peak
from preceptor.estimate.storing import simulate_storing
from preceptor.estimate.target import Device
from preceptor.plan.epoch import Epoch, training_steps
from preceptor.plan.setups import ASSUMED
from preceptor.plan.sources import why
from preceptor.recipe import DistillStage, SftStage

_TRYING = 60.0
"""Seconds of work on what helps, per stage that does not fit."""
KEPT = 2
"""Checkpoints that are kept where `save_total_limit` is left out."""


def predict(
    stage: SftStage | DistillStage,
    make: Callable[[], Setup],
    epoch: Epoch | None,
    device: Device,
    simulate: Callable[[Setup], Simulated],
) -> dict[str, Any]:
    """`memory`, `time`, `tokens` and `disk` of a training stage; where one is not known, `{"unknown": why}`.

    `make` gives the step and `simulate` runs it; `epoch` is None while some of the stage's rows are yet to be written.
    """
    try:
        setup = make()
        found = simulate(setup)
    except Exception as error:
        # Whatever an architecture does that no tensor without values can follow; a plan is more than this.
        return {key: {"unknown": why(error)} for key in ("memory", "time", "disk")}
    low = bool(setup.arguments.bf16 or setup.arguments.fp16)
    sharding = sharding_of(stage.training, device.devices, low_precision=low)
    if isinstance(stage, DistillStage) and sharding.devices > 1:
        sharding = replace(sharding, teachers=_teachers_parted(stage, setup, sharding))
    peak = on_each(found, sharding)
    result: dict[str, Any] = {
        "memory": _needed(peak, setup.batch, found.tokens, sharding, device),
        "time": _time(stage, found, epoch, setup, device),
        "disk": _disk(stage, found, epoch, setup),
    }
    if epoch is not None:
        steps = training_steps(stage, epoch)
        assert steps is not None
        result["tokens"] = {
            "per_step": round(epoch.tokens / epoch.micro_batches * setup.accumulation * device.devices),
            "total": round(epoch.tokens / epoch.rows * stage.rows_per_step * steps),
        }
    memory = result["memory"]
    if not memory["fits"]:
        memory.update(_helps(setup, memory, sharding, device, simulate))
    return result


def predict_store(make: Callable[[], StoreSetup], device: Device) -> dict[str, Any]:
    """`memory` of a stage that stores a teacher's predictions; `{"unknown": why}` where it is not known."""
    try:
        setup = make()
        found = simulate_storing(setup)
    except Exception as error:
        return {"memory": {"unknown": why(error)}}
    return {"memory": _needed(found.storages.peak(), setup.batch, found.tokens, Sharding(), device)}


def _teachers_parted(stage: DistillStage, setup: Setup, sharding: Sharding) -> bool:
    """Whether all teachers are parted; where only some are, they are taken as whole, the more memory of the two."""
    said = {teacher.sharded for teacher in stage.teachers.values()}
    packed = any(base.quantization is not None or base.packed_bytes is not None for base in setup.bases.values())
    return said == {True} or (said <= {True, None} and sharding.teachers and not packed)


# --- memory ---------------------------------------------------------------------------------------------------------


def _needed(peak: Peak, batch: Sequence[EncodedRow], tokens: int, sharding: Sharding, device: Device) -> dict[str, Any]:
    beside = overhead(device.kind, peak.total)
    needed = peak.total + beside
    return {
        "needed": needed,
        "available": device.memory,
        "fits": needed <= device.memory,
        "device": device.kind,
        "devices": sharding.devices,
        "engine": sharding.engine,
        "parts": {**peak.parts, "overhead": beside},
        "phase": peak.phase,
        "micro_batch": {
            "rows": len(batch),
            "tokens": tokens,
            "assumed": any(row.origin == ASSUMED for row in batch),
        },
    }


def _helps(
    setup: Setup,
    memory: Mapping[str, Any],
    sharding: Sharding,
    device: Device,
    simulate: Callable[[Setup], Simulated],
) -> dict[str, Any]:
    available, kind = device.memory, device.kind

    def needs(changed: Setup) -> int:
        try:
            total = on_each(simulate(changed), sharding).total
        except Exception:
            return int(memory["needed"])  # of no help
        finally:
            gc.collect()
        return total + overhead(kind, total)

    tried, together, left = try_all(setup, needs, memory["needed"], available, seconds=_TRYING)
    helps = [{"change": t.change, "needed": t.needed, "saves": memory["needed"] - t.needed} for t in tried]
    result: dict[str, Any] = {"helps": helps, "not_tried": left}
    if together is not None:
        result["together"] = {
            "change": together.change,
            "needed": together.needed,
            "saves": memory["needed"] - together.needed,
        }
    return result


# --- time -----------------------------------------------------------------------------------------------------------


def _time(
    stage: SftStage | DistillStage, found: Simulated, epoch: Epoch | None, setup: Setup, device: Device
) -> dict[str, Any]:
    """Seconds of a step and of the whole training; steps of rows that are not there yet are as long as may be."""
    low = torch.bfloat16 if setup.arguments.bf16 else torch.float16 if setup.arguments.fp16 else torch.float32
    dtypes = {low, torch.float32, *(base.dtype for base in setup.bases.values())}
    rates = device.rates(dtypes)
    phases = found.costs.phases
    worked = [phases[name] for name in ("teacher", "forward", "backward") if name in phases]
    micro = sum(cost.seconds(rates) for cost in worked)
    flops = sum(cost.total_flops for cost in worked)
    update = phases["update"].seconds(rates) if "update" in phases else 0.0
    mean = 1.0 if epoch is None else epoch.tokens / epoch.micro_batches / found.tokens
    result: dict[str, Any] = {
        "step_seconds": setup.accumulation * micro * mean + update,
        "longest_step_seconds": setup.accumulation * micro + update,
        "flops_per_step": setup.accumulation * flops * mean * device.devices,
        "rate": "measured on this machine" if device.flops is None else "stated",
        "flops_per_second": rates.flops.get(low, rates.default),
    }
    steps = training_steps(stage, epoch)
    if steps is None:
        return {**result, "steps": None, "seconds": None}
    assert epoch is not None
    seconds = steps * result["step_seconds"]
    measured = [phases[name] for name in ("held-out teacher", "held-out") if name in phases]
    if measured and found.held_out_tokens:
        # Before and after training.
        once = sum(cost.seconds(rates) for cost in measured) * epoch.held_out_tokens / found.held_out_tokens
        seconds += 2 * once / device.devices
    return {**result, "steps": steps, "seconds": seconds}


# --- disk -----------------------------------------------------------------------------------------------------------


def _disk(stage: SftStage | DistillStage, found: Simulated, epoch: Epoch | None, setup: Setup) -> dict[str, int]:
    """Bytes of the model or adapter that is saved, and of the most checkpoints that are there at once."""
    whole = stage.lora is None
    saved = (found.parameters if whole else found.trainable) * setup.stored_dtype.itemsize
    checkpoint = (found.parameters if whole else found.trainable) * 4 + found.optimizer_bytes
    limit = stage.training.get("save_total_limit", KEPT)
    steps = training_steps(stage, epoch)
    every = stage.training.get("save_steps", 500)
    strategy = str(stage.training.get("save_strategy", "steps"))
    count = 0 if strategy == "no" else math.inf if limit is None else int(limit) + 1  # one more while it is written
    if steps is not None and strategy == "steps" and isinstance(every, int):
        count = min(count, math.ceil(steps / every))
    checkpoints = checkpoint * (1 if count is math.inf else int(count))
    return {"model": saved, "checkpoint": checkpoint, "checkpoints": checkpoints, "total": saved + checkpoints}
