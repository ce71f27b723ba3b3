"""What a tap tells an observer."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function: post-RoPE queries [B,H,S,D] and keys [B,G,S,D], and how they are used."""

    layer: int
    q_BHSD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor
    scale: float
    window: int | None
    softcap: float | None
    unreadable: str | None = None
    """What else decides the attention rows, so that queries and keys do not."""
    lent: bool = False
    """Whether a compiled graph writes over these tensors as soon as it needs them no more: who keeps one copies it."""


@dataclass(frozen=True)
class RouterCall:
    """One call of a router on n tokens: logits [n, E], weights of the chosen experts, and which they are [n, k]."""

    router: Hashable
    """Tells the routers of one forward apart."""
    logits_nE: Tensor
    weights: Tensor
    chosen_nk: Tensor
