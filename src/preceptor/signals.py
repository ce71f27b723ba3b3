"""The narrow waist between teachers and losses: what a batch is, and what a teacher says about it.

Shape suffixes: B rows of the batch, S sequence, N target positions of the batch in row-major order,
R target positions of one row padded to the longest, H query heads, G key/value heads, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preceptor.stored_signals import Stored


@dataclass(frozen=True)
class TargetPositions:
    """The target positions of a batch, once flat and once gathered per row.

    A position t is a target position when token t+1 of the same segment is a target: the causal shift lives here
    and nowhere else.
    """

    flat_N: Tensor
    """int64 index into the flattened [B*S] batch."""
    row_N: Tensor
    """int64 batch row of each target position."""
    label_N: Tensor
    """int64 token id that follows each target position."""
    position_BR: Tensor
    """int64 sequence position of each target, padded by repeating a valid position (0 in a row without targets)."""
    valid_BR: Tensor
    """bool, False for the padding of `position_BR`."""
    start_BR: Tensor
    """int64 first position of the segment each target lies in: a causal model sees the keys start..position."""

    @property
    def count(self) -> int:
        return self.flat_N.numel()

    @cached_property
    def on_host(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """`position_BR` and `start_BR` as int64 arrays of numpy: kernels cut their blocks by them.

        Copied once per batch, and so that a device is waited for once and not for every block of every layer.
        """
        position_BR, start_BR = torch.stack((self.position_BR, self.start_BR)).cpu().numpy()
        return position_BR, start_BR


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch as the collator makes it.

    All tensors are [B, S] but `routes`, which is [B]. `segment_ids` is -1 on padding and counts the packed segments of
    a row from 0; a segment is contiguous. `target_mask` is True at t when token t+1 of the same segment is a target.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    target_mask: Tensor
    routes: Tensor

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> TokenBatch:
        """The batch in a collator's dictionary; other keys are ignored."""
        return cls(**{each.name: inputs[each.name] for each in fields(cls)})

    @cached_property
    def targets(self) -> TargetPositions:
        B, S = self.input_ids.shape
        flat_N = self.target_mask.flatten().nonzero().squeeze(1)
        row_N = flat_N // S
        count_B = self.target_mask.sum(1)
        R = max(int(count_B.max()), 1) if B else 1
        slot_N = torch.arange(flat_N.numel(), device=flat_N.device) - (count_B.cumsum(0) - count_B)[row_N]
        position_BR = torch.zeros(B, R, dtype=torch.int64, device=flat_N.device)
        valid_BR = torch.zeros(B, R, dtype=torch.bool, device=flat_N.device)
        position_BR[row_N, slot_N] = flat_N % S
        valid_BR[row_N, slot_N] = True
        # Padding repeats the row's last target, so that it never widens the range of keys a block of rows reads.
        position_BR = torch.where(valid_BR, position_BR, position_BR.amax(1, keepdim=True))
        return TargetPositions(
            flat_N=flat_N,
            row_N=row_N,
            label_N=self.input_ids.flatten()[flat_N + 1],
            position_BR=position_BR,
            valid_BR=valid_BR,
            start_BR=self._segment_start_BS().gather(1, position_BR),
        )

    def _segment_start_BS(self) -> Tensor:
        S = self.segment_ids.shape[1]
        first_BS = torch.ones_like(self.segment_ids, dtype=torch.bool)
        first_BS[:, 1:] = self.segment_ids[:, 1:] != self.segment_ids[:, :-1]
        index_BS = torch.arange(S, device=first_BS.device).expand_as(self.segment_ids)
        return torch.where(first_BS, index_BS, 0).cummax(1).values

    @cached_property
    def _layout(self) -> str:
        """How the attention mask must be told to transformers: "causal", "padded" or "packed"."""
        if bool((self.segment_ids > 0).any()):
            return "packed"
        real = self.segment_ids >= 0
        return "causal" if bool((real[:, :-1] >= real[:, 1:]).all()) else "padded"

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments for a transformers causal language model.

        Right padding needs no mask, since a causal model never looks ahead: leaving it out keeps the fast causal path.
        A packed row must come without a mask and without a cache, or transformers stops looking for segments in
        `position_ids`; padding then gets position 0 everywhere, which makes each padding token a segment of its own.
        (Flash attention looks for segments in batches of one row only; DistillationTrainer refuses packing with it.)
        """
        inputs: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self._layout == "packed":
            inputs["position_ids"] = self.position_ids.masked_fill(self.segment_ids < 0, 0)
        elif self._layout == "padded":
            inputs["position_ids"] = self.position_ids
            inputs["attention_mask"] = self.attention_mask
        return inputs

    def to(self, device: torch.device) -> TokenBatch:
        """The batch on another device (itself when it is already there)."""
        if device == self.input_ids.device:
            return self
        return TokenBatch(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})

    def select(self, rows: Tensor) -> TokenBatch:
        """The sub-batch of the given rows (int64 index [b])."""
        return TokenBatch(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})


@dataclass(frozen=True)
class Head:
    """An output head: logits = cap·tanh(scale·(h Wᵀ + b)/cap), the cap left out when it is None.

    `weight_VD` may hold more rows than the tokenizer has tokens (padding).
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def scores(self, hidden_ND: Tensor) -> Tensor:
        """[N, V] h Wᵀ + b in the weight's dtype; computed on the weight's device."""
        weight = self.weight_VD
        scores = torch.nn.functional.linear(hidden_ND.to(weight.device, weight.dtype), weight, self.bias_V)
        return scores.to(hidden_ND.device)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """[N, V] logits of `scores`, upcast to at least float32."""
        scores = self.scores(hidden_ND)
        return self.shape_logits(scores.to(torch.promote_types(scores.dtype, torch.float32)))

    def first(self, tokens: int) -> Head:
        """The head of the first `tokens` entries of the vocabulary."""
        if tokens == self.weight_VD.shape[0]:
            return self
        bias_V = None if self.bias_V is None else self.bias_V[:tokens]
        return Head(self.weight_VD[:tokens], bias_V, self.scale, self.softcap)

    def copy(self) -> Head:
        """The head in memory of its own."""
        return replace(
            self, weight_VD=self.weight_VD.clone(), bias_V=None if self.bias_V is None else self.bias_V.clone()
        )

    def to(self, device: torch.device) -> Head:
        """The head on another device."""
        bias_V = None if self.bias_V is None else self.bias_V.to(device)
        return replace(self, weight_VD=self.weight_VD.to(device), bias_V=bias_V)

    def shape_logits(self, logits: Tensor) -> Tensor:
        """Apply scale and soft-cap, in place."""
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def pull_back(self, logits: Tensor, grad: Tensor) -> Tensor:
        """Turn a gradient on shaped `logits` into one on h Wᵀ + b, in place on `grad`."""
        if self.softcap is not None:
            grad = grad.mul_(1 - (logits / self.softcap).square())
        return grad.mul_(self.scale) if self.scale != 1.0 else grad


@dataclass(frozen=True)
class AttentionScores:
    """What fixes the attention rows of one layer: scores = cap·tanh(scale·q kᵀ/cap) over the keys it may see."""

    q_BHRD: Tensor
    """Queries after RoPE, at the target positions only."""
    k_BGSD: Tensor
    """Keys after RoPE, not repeated for grouped-query heads."""
    scale: float
    window: int | None = None
    """Sliding window: position t sees the keys t-window+1..t."""
    softcap: float | None = None

    def of_rows(self, rows: Tensor | None, R: int) -> AttentionScores:
        """The scores of some batch rows (None: of all), whose own longest has `R` target positions."""
        if rows is None:
            return self
        return replace(self, q_BHRD=self.q_BHRD[rows, :, :R], k_BGSD=self.k_BGSD[rows])


@dataclass(frozen=True)
class Part:
    """What one teacher says about the rows it was given.

    `rows` (int64 [b], ascending, or None for all rows) are the batch rows it covers; `targets` (int64 [n]) the indices
    of their target positions among the N of the batch. `hidden_ND` are a live teacher's last hidden states there, and
    `stored` what a stored one said. Parts may cover the same rows: then each teaches with its `weight`, and a row's
    weights sum to 1.
    """

    rows: Tensor | None
    targets: Tensor | None
    hidden_ND: Tensor | None = None
    head: Head | None = None
    stored: Stored | None = None
    attention: Mapping[int, AttentionScores] = field(default_factory=dict)
    teacher: str = "teacher"
    """Which teacher it is of, where an objective treats them differently (maps of layers and heads)."""
    weight: float = 1.0

    @property
    def predicted(self) -> int | None:
        """For how many target positions it tells the next token's distribution; None where that was not asked for."""
        said = self.hidden_ND if self.stored is None else self.stored
        return None if said is None else len(said)


@dataclass(frozen=True)
class Signal:
    """A batch's teaching: one part per teacher called, never concatenated (they may differ in width and depth)."""

    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is wanted of one model's forward; attention layers are its own, ascending."""

    logits: bool = False
    attention_layers: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.logits or bool(self.attention_layers)


@dataclass(frozen=True)
class Needs:
    """What an objective wants from its teachers: by route, and for attention by teacher too."""

    logits: frozenset[int] = frozenset()
    """Routes whose rows some term at the output head teaches."""
    attention: frozenset[int] = frozenset()
    """Routes whose rows the attention term teaches."""
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Each teacher's own layers that the attention term follows, ascending."""

    def of(self, route: int, teacher: str) -> Wanted:
        """What is wanted of one teacher about the rows of one route."""
        layers = self.layers.get(teacher, ()) if route in self.attention else ()
        return Wanted(route in self.logits, layers)

    def __bool__(self) -> bool:
        return bool(self.logits) or bool(self.attention and self.layers)


@dataclass(frozen=True)
class LayerShape:
    """Heads of one attention layer."""

    layer: int
    heads: int
    key_heads: int
    head_dim: int


class Teacher(Protocol):
    """Turns a batch into a signal."""

    def __call__(self, batch: TokenBatch, needs: Needs) -> Signal:
        """What this teacher says about `batch`, as far as the objective needs it."""

    def attention_shapes(self, routes: frozenset[int]) -> Mapping[str, Sequence[LayerShape]]:
        """By name, the layers whose attention each teacher of `routes` gives; raises InputError for one that cannot."""

    def check_routes(self, route_names: Sequence[str], followed: frozenset[int]) -> None:
        """Raises InputError unless there is a teacher for every route in `followed`, and a use for every teacher."""
