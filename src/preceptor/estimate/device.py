"""The device that a plan is for: how much memory it has, and how fast it multiplies and copies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from preceptor.estimate.costs import Rates

CUDA_CONTEXT = 500_000_000
"""Bytes of a CUDA context with cuBLAS's workspaces, about."""
FRAGMENTATION = 0.05
"""Share of the peak that CUDA's caching allocator holds in blocks too small for what is asked next, about."""
_EDGE = 1024  # of the square matrices that are multiplied
_COPIED = 64_000_000  # bytes


def device_memory() -> tuple[int, str]:
    """Bytes of this machine's first CUDA device, or of its memory where there is none; and which of them it is."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory), "cuda"
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return min(pages * size, *_limits()), "cpu"


def _limits() -> Iterable[int]:
    """What a container grants of the machine's memory."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            yield int(Path(file).read_text())
        except (OSError, ValueError):
            continue


def overhead(kind: str, peak: int) -> int:
    """Bytes beside tensors: of a CUDA device its context and fragmentation."""
    return CUDA_CONTEXT + round(FRAGMENTATION * peak) if kind == "cuda" else 0


def measured_rates(dtypes: Iterable[torch.dtype]) -> Rates:
    """FLOPs of a matrix product per second and dtype, and bytes copied per second, on this machine; takes a second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {dtype: _product_rate(dtype, device) for dtype in sorted(set(dtypes) | {torch.float32}, key=str)}
    source = torch.ones(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    seconds = _fastest(lambda: torch.mul(source, 2.0, out=target), device)
    return Rates(rates, 2 * _COPIED / seconds, min(rates.values()))


def stated_rates(flops: float, bytes_per_second: float | None = None) -> Rates:
    """A device that multiplies at `flops` in any dtype; its memory is taken to be as fast as an H200's in proportion.

    An H200 reads 4.8 TB/s beside 989 TFLOP/s in bfloat16 (NVIDIA's data sheet).
    """
    return Rates({}, bytes_per_second or flops * 4.8e12 / 989e12, flops)


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    edge = _EDGE * (8 if device.type == "cuda" else 1)
    left = torch.ones(edge, edge, dtype=dtype, device=device)
    return 2.0 * edge**3 / _fastest(lambda: left @ left, device)


def _fastest(work: Callable[[], object], device: torch.device, budget: float = 0.2) -> float:
    """Seconds of the fastest of some runs."""
    best, begun = float("inf"), time.perf_counter()
    for turn in range(50):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn:  # the first one loads and allocates
            best = min(best, time.perf_counter() - start)
        if turn > 1 and time.perf_counter() - begun > budget:
            break
    return best
