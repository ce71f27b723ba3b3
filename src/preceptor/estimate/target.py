"""The device that is predicted for, as the user states it or as this machine has it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from preceptor.estimate.costs import Rates
from preceptor.estimate.device import device_memory, measured_rates, stated_rates


class Device:
    """What a plan is for.

    Args:
        memory: bytes of each device, which is then taken to be a GPU; None for what this machine has.
        devices: how many, each with a process of its own.
        flops: that each does in a second; None measures this machine.
    """

    def __init__(self, memory: int | None = None, devices: int = 1, flops: float | None = None) -> None:
        here, kind = device_memory()
        self.memory = here if memory is None else memory
        self.kind = kind if memory is None else "cuda"
        self.devices = devices
        self.flops = flops
        self._rates: dict[frozenset[torch.dtype], Rates] = {}

    def rates(self, dtypes: Iterable[torch.dtype]) -> Rates:
        """How fast it works in these dtypes."""
        if self.flops is not None:
            return stated_rates(self.flops)
        wanted = frozenset(dtypes)
        if wanted not in self._rates:
            self._rates[wanted] = measured_rates(wanted)
        return self._rates[wanted]
