"""What each of N devices holds and does, where weights, gradients and optimiser states are parted among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from preceptor.estimate.step import Simulated
from preceptor.estimate.storages import COPIES, GRADIENTS, OPTIMIZER, TEACHER_WEIGHTS, WEIGHTS, Peak

Engine = Literal["none", "ddp", "fsdp", "zero1", "zero2", "zero3"]


@dataclass(frozen=True)
class Sharding:
    """How devices work together.

    Args:
        engine: `none` for one device.
        devices: how many.
        teachers: whether teachers are parted too.
        regather: whether layers are gathered again for the backward (FSDP's `reshard_after_forward`); else they stay
            whole from the forward on.
        low_precision: whether layers are gathered, and under DeepSpeed parameters and gradients kept, in two bytes.
    """

    engine: Engine = "none"
    devices: int = 1
    teachers: bool = False
    regather: bool = True
    low_precision: bool = False

    @property
    def parts_weights(self) -> bool:
        return self.engine in ("fsdp", "zero3")


def sharding_of(training: Mapping[str, Any], devices: int, *, low_precision: bool) -> Sharding:
    """The sharding that a recipe's `training:` block asks for, on so many devices."""
    if devices == 1:
        return Sharding()
    if training.get("deepspeed"):
        stage = _zero_stage(training["deepspeed"])
        engine: Engine = {1: "zero1", 2: "zero2", 3: "zero3"}.get(stage, "ddp")  # type: ignore[assignment]
        return Sharding(engine, devices, teachers=engine == "zero3", low_precision=low_precision)
    if training.get("fsdp"):
        config = training.get("fsdp_config")
        after = config.get("reshard_after_forward", True) if isinstance(config, dict) else True
        return Sharding("fsdp", devices, teachers=True, regather=bool(after), low_precision=low_precision)
    return Sharding("ddp", devices)


def _zero_stage(config: Any) -> int:
    if isinstance(config, Mapping):
        given = config.get("zero_optimization")
        return int(given.get("stage", 0)) if isinstance(given, Mapping) else 0
    import json
    from pathlib import Path

    try:
        return _zero_stage(json.loads(Path(str(config)).expanduser().read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return 0


def on_each(found: Simulated, sharding: Sharding) -> Peak:
    """The peak of one device: its share of what is parted, and what is gathered or doubled for a while."""
    if sharding.engine == "none":
        return found.storages.peak()
    peak = found.storages.peak(_shares(found, sharding))
    parts = dict(peak.parts)
    if sharding.engine == "ddp":
        parts[GRADIENTS] += found.storages.most(GRADIENTS)  # the reducer's buckets, a second copy of all gradients
    if sharding.engine.startswith("zero") and sharding.low_precision:
        parts[OPTIMIZER] += 4 * found.trainable // sharding.devices  # the weights in float32, which are updated
    if sharding.parts_weights and sharding.regather:
        # The layer that works and the next one, prefetched; and the whole gradient of one before it is parted.
        layer = found.layer * (2 if sharding.low_precision else 4)
        parts[WEIGHTS] += 2 * layer
        parts[GRADIENTS] += layer
    if sharding.teachers and parts[TEACHER_WEIGHTS]:
        parts[TEACHER_WEIGHTS] += 2 * found.teacher_layer * 2
    return Peak(sum(parts.values()), parts, peak.phase)


def _shares(found: Simulated, sharding: Sharding) -> dict[str, float]:
    """Of each part that was found, what one device holds of it."""
    share = 1 / sharding.devices
    shares: dict[str, float] = {TEACHER_WEIGHTS: share} if sharding.teachers else {}
    if sharding.engine == "fsdp":
        shares |= {OPTIMIZER: share, GRADIENTS: share, WEIGHTS: share}
        # What is gathered is in autocast's dtype already; left whole, it is what autocast's copies would have been.
        if sharding.regather:
            shares[COPIES] = 0.0
        elif not sharding.low_precision:
            shares[WEIGHTS] = 1.0 + share
    elif sharding.engine.startswith("zero"):
        stage = int(sharding.engine[-1])
        kept = 1.0
        if sharding.low_precision:
            kept = min(1.0, 2 * found.parameters / found.storages.most(WEIGHTS))
            shares[COPIES] = 0.0
        shares[OPTIMIZER] = share
        shares[GRADIENTS] = kept * (share if stage >= 2 else 1.0)
        shares[WEIGHTS] = kept * (share if stage == 3 else 1.0)
    return shares
