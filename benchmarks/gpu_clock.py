"""Time and peak memory on one device, and the time that is left.

On a GPU a step is timed between two events. Before the first of them the device is given a millisecond of other
work, which also empties its cache: the step's launches are then queued by the time it starts, so that a short kernel's
time is its own and not Python's. Ways that are compared run in turn, round after round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], object]

GIGABYTE = 1e9
CACHE_BYTES = 2**29  # several times the cache of the largest GPU


@dataclass(frozen=True)
class Deadline:
    """When a section must end, in seconds since the epoch (so that another process reads it alike)."""

    until: float

    def left(self) -> float:
        return self.until - time.time()


@dataclass
class Measured:
    """What one way cost: seconds of each round, and gigabytes (1e9) at the peak; None where there is no such figure."""

    seconds: list[float] = field(default_factory=list)
    peak_gb: float | None = None
    above_gb: float | None = None
    """The peak above what was allocated before the step."""
    first_s: float | None = None
    """The first call, compilation included."""
    note: str | None = None

    def figures(self) -> dict[str, Any]:
        """Rounded, for a row; `note` says why figures are missing."""
        row: dict[str, Any] = {"median_s": None, "fastest_s": None, "rounds": len(self.seconds), "note": self.note}
        if self.seconds:
            row["median_s"] = round(statistics.median(self.seconds), 7)
            row["fastest_s"] = round(min(self.seconds), 7)
        for name, value in (("peak_gb", self.peak_gb), ("above_gb", self.above_gb), ("first_s", self.first_s)):
            row[name] = None if value is None else round(value, 4)
        return row

    def against(self, *others: Measured) -> float | None:
        """Median over rounds of this one's seconds by the others' sum in the same round."""
        together = [sum(each) for each in zip(*(other.seconds for other in others), strict=False)]
        ratios = [own / other for own, other in zip(self.seconds, together, strict=False)]
        return round(statistics.median(ratios), 4) if ratios else None


class Clock:
    """Times steps on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._before: Tensor | None = None

    def seconds(self, step: Step) -> float:
        """How long one step takes on the device."""
        if not self._cuda:
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self._busy()
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def _busy(self) -> None:
        if self._before is None:
            self._before = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=self.device)
        for _ in range(8):
            self._before.zero_()

    def peak(self, step: Step) -> tuple[float | None, float | None]:
        """Gigabytes allocated at the peak of a step, and above what was allocated before; on a CPU None, not run."""
        if not self._cuda:
            return None, None
        self._before = None  # what keeps the device busy is no part of a step
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return peak / GIGABYTE, (peak - before) / GIGABYTE

    def empty(self) -> None:
        """Give memory back to the device, so that what failed for want of it leaves none behind."""
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()


def measure(
    ways: Mapping[str, Step], clock: Clock, deadline: Deadline, *, rounds: int = 20, limit_s: float = 5.0
) -> dict[str, Measured]:
    """Time `ways` in turn, after a first call each (which compiles) and one that measures its memory.

    A way that fails gets a note. `rounds` are fewer where all ways together would take more than `limit_s`.
    """
    found = {name: Measured() for name in ways}
    for name, step in ways.items():
        if deadline.left() <= 0:
            found[name].note = "no time left"
            continue
        try:
            begun = time.perf_counter()
            step()
            if clock.device.type == "cuda":
                torch.cuda.synchronize()
            found[name].first_s = time.perf_counter() - begun
            found[name].peak_gb, found[name].above_gb = clock.peak(step)
            found[name].seconds.append(clock.seconds(step))
        except torch.OutOfMemoryError:
            found[name].note = "does not fit"
        except Exception as error:
            # The other ways' figures are worth having; a broken device makes them fail too, by name.
            found[name].note = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[
                :200
            ]
        clock.empty()
    running = [name for name in ways if found[name].seconds]
    once = sum(found[name].seconds.pop() for name in running)
    for turn in range(min(rounds, max(3, int(limit_s / max(once, 1e-6))))):
        if turn and deadline.left() < once:
            break
        for name in running:
            found[name].seconds.append(clock.seconds(ways[name]))
    return found
