"""The head terms on a few target positions at a time, each against its own teacher, or against none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from preceptor.objective.terms import HeadChunk, HeadTerm
from preceptor.signals import Head, Part


def in_parts(parts: Sequence[Part], count: int, device: torch.device) -> Tensor:
    """The order of target positions in which each part's are together, and those of no part last.

    A position that several parts cover is there several times.
    """
    everything = torch.arange(count, device=device)
    taught = [everything if part.targets is None else part.targets for part in parts if part.predicted is not None]
    if not taught:
        return everything
    ordered = torch.cat(taught)
    rest = torch.ones(count, dtype=torch.bool, device=device)
    rest[ordered] = False
    return torch.cat([ordered, rest.nonzero().squeeze(1)])


@dataclass(frozen=True)
class TermWeights:
    """How much each term counts on each route; float64 [terms, routes], on the batch's device.

    `minimised` says of each term whether its gradient is wanted, and `uniform` gives its weight where that is the same
    on all routes: the usual case, which spares a pass over the gradient.
    """

    covers_TK: Tensor
    weight_TK: Tensor
    minimised: tuple[bool, ...]
    uniform: tuple[float | None, ...]

    @classmethod
    def of(cls, covers_TK: Tensor, weight_T: Tensor, *, wants_grad: bool, device: torch.device) -> TermWeights:
        """From a term's routes (0 or 1) and weight, both on the CPU.

        What branches on weights is read off before they go to the device, where each look would wait for it.
        """
        weight_TK = covers_TK * weight_T[:, None]
        return cls(
            covers_TK.to(device),
            weight_TK.to(device),
            # A term of weight 0 is measured and not minimised, at the price of its value alone.
            tuple(wants_grad and bool(row.any()) for row in weight_TK),
            tuple(float(row[0]) if bool((row == row[0]).all()) else None for row in weight_TK),
        )


@dataclass(frozen=True)
class Piece:
    """Neighbouring target positions with one teacher, or with none."""

    rows: slice
    """Of all target positions."""
    first: int
    """The part's first target position."""
    part: Part | None

    @property
    def in_part(self) -> slice:
        return self.of(slice(self.first, None))

    def of(self, rows: slice) -> slice:
        """Where the piece is in `rows`."""
        return slice(self.rows.start - rows.start, self.rows.stop - rows.start)


class HeadLosses:
    """The head terms on one chunk of positions, which are in the order of the signal's parts."""

    def __init__(
        self,
        terms: Sequence[HeadTerm],
        parts: Sequence[Part],
        label_N: Tensor,
        route_N: Tensor,
        *,
        weights: TermWeights,
        vocabulary: int | None,
    ) -> None:
        self.terms = terms
        self.label_N = label_N
        self.route_N = route_N
        self.weights = weights
        self.vocabulary = vocabulary
        # Target positions of each part; those of rows that no teacher was asked about come last.
        self.spans: list[tuple[int, int, Part | None]] = []
        start = 0
        for part in parts:
            if part.predicted is not None:
                self.spans.append((start, start + part.predicted, part))
                start += part.predicted
        if start < len(label_N):
            self.spans.append((start, len(label_N), None))
            self._check_untaught(route_N[start:])

    def _check_untaught(self, route_n: Tensor) -> None:
        for t, term in enumerate(self.terms):
            if term.needs_teacher and bool(self.weights.covers_TK[t][route_n].any()):
                raise RuntimeError(f"{term.name}: {len(route_n)} target positions came without what their teacher says")

    def __call__(self, logits_nV: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        # Cut where the teacher changes.
        found = [self._piece(logits_nV[piece.of(rows)], piece, wants_grad) for piece in self.cut(rows)]
        if len(found) == 1:
            return found[0]
        values, grads = zip(*found, strict=True)
        if all(grad is None for grad in grads):
            return torch.cat(values, 1), None
        width = logits_nV.shape[1]
        none = [logits_nV.new_zeros(value.shape[1], width) if g is None else g for value, g in zip(values, grads)]
        return torch.cat(values, 1), torch.cat(none)

    def cut(self, rows: slice) -> list[Piece]:
        """The pieces of a chunk that have one teacher each, in order."""
        return [
            Piece(slice(max(first, rows.start), min(last, rows.stop)), first, part)
            for first, last, part in self.spans
            if first < rows.stop and last > rows.start
        ]

    def shared_head(self, head: Head, width: int) -> Head:
        """A teacher's head, of the tokens it shares with a student whose head is `width` wide."""
        return head.first(min(width, len(head.weight_VD), self.vocabulary or width))

    def _piece(self, logits_nV: Tensor, piece: Piece, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        chunk, part = HeadChunk(logits_nV, self.label_N[piece.rows]), piece.part
        if part is None:
            return self._evaluate(piece.rows, chunk, 1.0, wants_grad)
        if part.stored is not None:
            chunk.stored = part.stored.of(piece.in_part.start, piece.in_part.stop)
            return self._evaluate(piece.rows, chunk, part.weight, wants_grad)
        assert part.head is not None
        assert part.hidden_ND is not None
        teacher_nV = self.shared_head(part.head, logits_nV.shape[1]).logits(part.hidden_ND[piece.in_part])
        chunk.teacher_logits_nV = teacher_nV.to(logits_nV.dtype)
        return self._evaluate(piece.rows, chunk, part.weight, wants_grad)

    def _evaluate(self, rows: slice, chunk: HeadChunk, share: float, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        logits_nV = chunk.logits_nV
        values, total = [], None
        for t, term in enumerate(self.terms):
            if term.needs_teacher and not chunk.taught:
                values.append(logits_nV.new_zeros(len(logits_nV)))
                continue
            value_n, grad_nV = term.evaluate(chunk, wants_grad and self.weights.minimised[t])
            values.append(value_n if share == 1.0 else value_n * share)
            if grad_nV is None:
                continue
            weight = self.weights.uniform[t]
            if weight is None:
                grad_nV.mul_(self.weights.weight_TK[t][self.route_N[rows], None] * share)
            elif weight * share != 1.0:
                grad_nV.mul_(weight * share)
            if grad_nV.shape[1] < logits_nV.shape[1]:
                grad_nV = torch.nn.functional.pad(grad_nV, (0, logits_nV.shape[1] - grad_nV.shape[1]))
            total = grad_nV if total is None else total.add_(grad_nV)
        return torch.stack(values), total
