"""What the operations of a step cost: FLOPs of matrix products, and bytes read and written by everything.

An operation takes the longer of its arithmetic and its memory traffic (the roofline model, doi
10.1145/1498765.1498785): softmax, norms and optimisers multiply nothing and take their time all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from preceptor.models.taps import replaced


@dataclass(frozen=True)
class Rates:
    """What a device does in a second."""

    flops: dict[torch.dtype, float]
    """Multiplications and additions of a matrix product, by its dtype; `default` for others."""
    bytes: float
    """Memory traffic, reads and writes together."""
    default: float


@dataclass
class Cost:
    """The operations of one phase."""

    items: list[tuple[torch.dtype, float, float]] = field(default_factory=list)
    """(dtype, FLOPs, bytes) of each."""

    @property
    def total_flops(self) -> float:
        return sum(flops for _, flops, _ in self.items)

    @property
    def bytes(self) -> float:
        """Read and written."""
        return sum(size for _, _, size in self.items)

    def seconds(self, rates: Rates) -> float:
        """On a device of these rates."""
        return sum(
            max(flops / rates.flops.get(dtype, rates.default), size / rates.bytes) for dtype, flops, size in self.items
        )


class Costs:
    """Costs by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, Cost] = {}
        self._phase = "start"
        self._times = 1.0

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count what runs in the block under `name`."""
        return replaced(self, "_phase", name)

    def times(self, factor: float) -> AbstractContextManager[None]:
        """What runs in the block stands for `factor` times as much."""
        return replaced(self, "_times", self._times * factor)

    def add(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], tensors: list[Tensor], out: Any) -> None:
        """Count one operation that is not a view."""
        if not tensors:
            return
        cost = self.phases.setdefault(self._phase, Cost())
        dtype = tensors[0].dtype
        count = _FLOPS.get(func._overloadpacket)
        flops = 0.0 if count is None else float(count(*args, **kwargs, out_val=out)) * self._times
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) * self._times
        cost.items.append((dtype, flops, size))


def _attention(query: Tensor, key: Tensor, value: Tensor, products: int, causal: bool) -> float:
    """`products` matrix products over [B, H, S, S'] scores; a causal kernel does half of them."""
    B, H, S, D = query.shape
    return products * 2.0 * B * H * S * key.shape[2] * max(D, value.shape[3]) * (0.5 if causal else 1.0)


def _cpu_forward(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, is_causal: bool = False, **_: Any
) -> float:
    return _attention(query, key, value, 2, is_causal)


def _cpu_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, dropout: float, is_causal: bool,
    **_: Any,
) -> float:  # fmt: skip
    return _attention(query, key, value, 5, is_causal)


def _grouped(left: Tensor, right: Tensor, *_: Any, out_val: Tensor, **__: Any) -> float:
    """Rows of one matrix with the matrices of their groups: each row meets one of them."""
    if left.dim() == right.dim() == 2:  # the gradient of the groups' matrices
        return 2.0 * left.shape[0] * left.shape[1] * right.shape[1]
    return 2.0 * out_val.numel() * left.shape[-1]


_FLOPS: dict[Any, Callable[..., float]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_backward,
    torch.ops.aten._grouped_mm: _grouped,
}
