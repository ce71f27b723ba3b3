"""The head terms on a chunk of positions through fused kernels, where all terms have a twin there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from preceptor.kernels import fused
from preceptor.kernels.fused import FusedDivergence, FusedRows
from preceptor.objective.chunks import HeadLosses, Piece
from preceptor.signals import Head


@dataclass(frozen=True)
class FusedLosses:
    """A `FusedLoss` that computes what `losses` does: at most one kind of divergence, and the cross-entropy.

    Terms that differ in weight and routes alone are one in a kernel, which knows a weight for each row.
    """

    losses: HeadLosses
    divergence: FusedDivergence | None
    kind_T: tuple[int, ...]
    """Of each term, which of a kernel's two values it is: 0 the divergence, 1 the cross-entropy."""

    @classmethod
    def of(cls, losses: HeadLosses) -> FusedLosses | None:
        """The twin of `losses`; None when it has none."""
        twins = [term.fused() for term in losses.terms]
        divergences = {twin for twin in twins if isinstance(twin, FusedDivergence)}
        if not twins or None in twins or len(divergences) > 1:
            return None
        kinds = tuple(0 if isinstance(twin, FusedDivergence) else 1 for twin in twins)
        return cls(losses, next(iter(divergences), None), kinds)

    @cached_property
    def weight_2N(self) -> Tensor:
        """float32: of both kinds, the weight at each target position."""
        weight_TK = self.losses.weights.weight_TK
        weight_2K = weight_TK.new_zeros(2, weight_TK.shape[1])
        for kind, weight_K in zip(self.kind_T, weight_TK):  # attention's and router_balance's rows come behind
            weight_2K[kind] += weight_K
        return weight_2K[:, self.losses.route_N].float()

    def __call__(self, scores_nV: Tensor, head: Head, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        wants_grad = wants_grad and any(self.losses.weights.minimised[: len(self.kind_T)])
        found = [self._piece(scores_nV[piece.of(rows)], head, piece, wants_grad) for piece in self.losses.cut(rows)]
        value_2n = found[0] if len(found) == 1 else torch.cat(found, 1)
        return torch.stack([value_2n[kind] for kind in self.kind_T]), scores_nV if wants_grad else None

    def _piece(self, scores_nV: Tensor, head: Head, piece: Piece, wants_grad: bool) -> Tensor:
        part = piece.part
        rows = FusedRows(
            scores_nV,
            head,
            self.losses.label_N[piece.rows],
            divergence=self.divergence,
            cross_entropy=1 in self.kind_T,
            weight_2n=self.weight_2N[:, piece.rows],
            share=1.0 if part is None else part.weight,
            wants_grad=wants_grad,
        )
        if part is None or self.divergence is None:
            return fused.untaught(rows)
        if part.stored is not None:
            stored = part.stored.of(piece.in_part.start, piece.in_part.stop)
            for term in self.losses.terms:
                term.check_stored(stored, scores_nV.shape[1])
            return fused.from_stored(rows, stored)
        assert part.head is not None
        assert part.hidden_ND is not None
        theirs = self.losses.shared_head(part.head, scores_nV.shape[1])
        return fused.from_teacher(rows, theirs.scores(part.hidden_ND[piece.in_part]), theirs)
