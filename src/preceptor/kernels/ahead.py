"""What it takes to compile a Triton kernel without a GPU: `benchmarks/compile_ahead.py` reads registers and spills so.

Each `*_triton` module has `def ahead() -> Iterable[AheadSpec]`: its kernels as they are launched for a few head sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AheadSpec:
    """One kernel as launched with one kind of arguments."""

    name: str
    """What the table of results calls it, such as "attention_kl forward"."""
    kernel: Any
    """The `@triton.jit` function."""
    signature: Mapping[str, str]
    """Triton's type of each argument in order: "*bf16", "*fp32", "*i64", "fp32", "i32", "constexpr"."""
    constexprs: Mapping[str, Any]
    """Value of each argument whose type is "constexpr" (strides of 1 among them, as at run time)."""
    num_warps: int
    num_stages: int
    multiples_of_16: tuple[str, ...] = ()
    """Integer arguments that are multiples of 16 at run time; pointers always are."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """What distinguishes it in the table: dtype, head size, tile."""

    @property
    def attributes(self) -> dict[tuple[int, ...], list[list[Any]]]:
        """What Triton may assume of the arguments, by their place."""
        return {
            (place,): [["tt.divisibility", 16]]
            for place, (name, kind) in enumerate(self.signature.items())
            if kind.startswith("*") or name in self.multiples_of_16
        }
