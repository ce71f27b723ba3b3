"""What each of N devices holds and does, where weights, gradients and optimiser states are parted among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from preceptor.estimate.step import Simulated
from preceptor.estimate.storages import GRADIENTS, OPTIMIZER, TEACHER_WEIGHTS, WEIGHTS, Peak

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
        layer_bytes: of a parameter in a gathered layer.
    """

    engine: Engine = "none"
    devices: int = 1
    teachers: bool = False
    regather: bool = True
    layer_bytes: int = 4

    @property
    def parts_weights(self) -> bool:
        return self.engine in ("fsdp", "zero3")


def sharding_of(training: Mapping[str, Any], devices: int, *, low_precision: bool) -> Sharding:
    """The sharding that a recipe's `training:` block asks for, on so many devices."""
    if devices == 1:
        return Sharding()
    bytes_ = 2 if low_precision else 4
    if training.get("deepspeed"):
        stage = _zero_stage(training["deepspeed"])
        engine: Engine = {1: "zero1", 2: "zero2", 3: "zero3"}.get(stage, "ddp")  # type: ignore[assignment]
        return Sharding(engine, devices, teachers=False, layer_bytes=bytes_)
    if training.get("fsdp"):
        config = training.get("fsdp_config")
        after = config.get("reshard_after_forward", True) if isinstance(config, dict) else True
        return Sharding("fsdp", devices, teachers=True, regather=bool(after), layer_bytes=bytes_)
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
    share = 1 / sharding.devices
    shares = dict.fromkeys({"zero1": [OPTIMIZER], "zero2": [OPTIMIZER, GRADIENTS]}.get(sharding.engine, ()), share)
    if sharding.parts_weights:
        shares = {OPTIMIZER: share, GRADIENTS: share}
        if sharding.regather:
            shares[WEIGHTS] = share
    if sharding.teachers:
        shares[TEACHER_WEIGHTS] = share
    peak = found.storages.peak(shares)
    parts = dict(peak.parts)
    if sharding.engine == "ddp":
        parts[GRADIENTS] += found.storages.most(GRADIENTS)  # the reducer's buckets, a second copy of all gradients
    if sharding.parts_weights and sharding.regather:
        # The layer that works and the next one, prefetched; and the whole gradient of one before it is parted.
        parts[WEIGHTS] += 2 * found.layer * sharding.layer_bytes
        parts[GRADIENTS] += found.layer * sharding.layer_bytes
    if sharding.teachers and parts[TEACHER_WEIGHTS]:
        parts[TEACHER_WEIGHTS] += 2 * found.teacher_layer * 2
    return Peak(sum(parts.values()), parts, peak.phase)
