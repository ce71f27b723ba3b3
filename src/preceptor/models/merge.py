"""A model between two others of one shape: the baseline to beat when a domain is to be gained and the rest kept.

Linear interpolation of weights as in WiSE-FT (arXiv 2109.01903); spherical interpolation after Shoemake, "Animating
rotation with quaternion curves" (SIGGRAPH 1985), of each tensor taken as one vector.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from preceptor.errors import InputError
from preceptor.models.sources import Source
from preceptor.models.streaming import Planned

Method = Literal["linear", "slerp"]
_PARALLEL = 1e-4
"""Below this sine of the angle the arc is the chord to within float32: they differ by the angle's square."""
_CHUNK = 1 << 22  # elements computed with at once


def plan_merge(first: Source, second: Source, *, alpha: float, method: Method) -> list[Planned]:
    """The tensors of the model at `alpha` between `first` (0) and `second` (1); weights are read when written.

    Computed in float32 (float64 where the first model's tensor is), written in the first model's dtype. At 0 and 1
    the weights are the sources' bit for bit, in that dtype. Tied weights are stored once and stay tied.

    Raises:
        InputError: tensors of whole numbers differ, between which there is nothing.
    """
    for name in first.reader.tensors:
        if not first.stored_dtype(name).is_floating_point:
            _check_equal(first, second, name)
    planned = []
    for name, info in first.reader.tensors.items():
        make = partial(_between, first, second, name, alpha, method)
        planned.append(Planned(name, first.stored_dtype(name), info.shape, make))
    return planned


def _between(first: Source, second: Source, name: str, alpha: float, method: Method) -> Tensor:
    dtype = first.stored_dtype(name)
    if alpha in (0.0, 1.0) or not dtype.is_floating_point:
        return (second if alpha else first).reader.read(name).to(dtype)
    return interpolate(first.reader.read(name), second.reader.read(name), alpha, method, dtype)


def _check_equal(first: Source, second: Source, name: str) -> None:
    if not torch.equal(first.reader.read(name), second.reader.read(name)):
        raise InputError(
            f"{first.where} and {second.where}: {name!r} holds whole numbers that differ, between which nothing can "
            "be interpolated; give models in which they are equal"
        )


def interpolate(a: Tensor, b: Tensor, alpha: float, method: Method, dtype: torch.dtype) -> Tensor:
    """The tensor at `alpha` from `a` (0) to `b` (1), of their shape, in `dtype`.

    linear: (1−α)·a + α·b. slerp: (sin((1−α)ω)·a + sin(αω)·b) / sin ω, with ω the angle between a and b as vectors;
    linear where they are parallel or opposite, or one of them is zero, and the formula has no value.
    """
    weights = (1 - alpha, alpha)
    if method == "slerp":
        omega = angle(a, b)
        if omega is not None and math.sin(omega) > _PARALLEL:
            weights = (math.sin((1 - alpha) * omega) / math.sin(omega), math.sin(alpha * omega) / math.sin(omega))
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    between = torch.empty(a.shape, dtype=dtype)
    # In pieces, because float32 copies of a large vocabulary's embeddings would be most of the memory needed.
    for x, y, out in zip(*(tensor.view(-1).split(_CHUNK) for tensor in (a, b, between)), strict=True):
        out.copy_((x.to(precise) * weights[0]).add_(y.to(precise), alpha=weights[1]))
    return between


def angle(a: Tensor, b: Tensor) -> float | None:
    """The angle between two tensors as vectors, in radians; None where one is zero. Sums are in float64."""
    dot = aa = bb = 0.0
    for one, other in zip(a.view(-1).split(_CHUNK), b.view(-1).split(_CHUNK), strict=True):
        x, y = one.double(), other.double()
        dot, aa, bb = dot + (x @ y).item(), aa + (x @ x).item(), bb + (y @ y).item()
    if aa == 0 or bb == 0:
        return None
    return math.acos(max(-1.0, min(1.0, dot / math.sqrt(aa * bb))))
