"""Which implementation of a kernel runs: Triton's on an NVIDIA GPU from Ampere on, PyTorch's everywhere else.

`PRECEPTOR_KERNELS=torch` (or `triton`, `auto`) overrides it for a process, `with implementation("torch"):` for a block.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal

import torch

from preceptor.errors import InputError, did_you_mean

Implementation = Literal["auto", "torch", "triton"]
VARIABLE = "PRECEPTOR_KERNELS"
_NAMES = ("auto", "torch", "triton")
_chosen: ContextVar[Implementation | None] = ContextVar("preceptor_kernels", default=None)


@contextmanager
def implementation(name: Implementation) -> Iterator[None]:
    """Run the kernels of this block in one way, whatever the environment says."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def use_triton(device: torch.device) -> bool:
    """Whether kernels on tensors of `device` run in Triton.

    Raises:
        InputError: when Triton is asked for by name and cannot run there.
    """
    name = _chosen.get() or os.environ.get(VARIABLE) or "auto"
    if name not in _NAMES:
        raise InputError(
            f"environment variable {VARIABLE} is {name!r}; accepted are auto, torch and triton"
            f"{did_you_mean(name, _NAMES)}"
        )
    possible = _triton_installed() and (device.type == "cuda" or _interpreted())
    if name == "triton" and not possible:
        why = "no CUDA device" if _triton_installed() else "not installed"
        raise InputError(
            f"environment variable {VARIABLE} is 'triton', but Triton cannot run on {device.type} here ({why}); "
            "set it to auto, or install triton on a machine with an NVIDIA GPU"
        )
    return possible and (name == "triton" or (name == "auto" and device.type == "cuda" and _recent(device.index)))


@cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _recent(index: int | None) -> bool:
    """Whether a GPU is one that the kernels' blocks were chosen for: older ones have no bfloat16, AMD's less memory."""
    if not torch.cuda.is_available():
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(index) >= (8, 0)


def _interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"
