"""Rows to tensors.

The collator alone turns target tokens into target positions: t is one if token t+1 is a target. Every count,
loss, log and store uses the `target_mask` made here; a position's next token is always one of the same row
(or packed segment), so the first token of each is never predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preceptor.data.chat import EncodedRow


def filler_row(pad_token_id: int, dataset: str) -> EncodedRow:
    """Two tokens and no target: completes a short step without repeating a row."""
    return EncodedRow(dataset, np.full(2, pad_token_id, dtype=np.int32), np.zeros(2, dtype=np.bool_), origin="(filler)")


class Collator:
    """Pads (or packs) the rows of a micro-batch into the tensors of `signals.TokenBatch`.

    Packing puts whole rows of one dataset and route behind one another, best fit decreasing, in packed rows of at most
    `max_length` tokens. The rows of a step, their targets and N stay the same; only padding goes.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        route_names: Sequence[str],
        packing: bool = False,
        max_length: int | None = None,
        padding_side: Literal["left", "right"] = "right",
        pad_to_multiple_of: int | None = None,
    ) -> None:
        """Raises ValueError if packing has no `max_length`, or `padding_side` is neither left nor right.

        Args:
            pad_token_id: fills up; never a target, and masked in attention.
            route_names: a row's number in `routes` is the place of its route among them.
            packing: put several rows of one dataset into one packed row.
            max_length: tokens of a packed row; needed for packing only.
            padding_side: left or right.
            pad_to_multiple_of: tokens; a batch's length is rounded up to a multiple.
        """
        if packing and max_length is None:
            raise ValueError("packing needs max_length, the tokens of a packed row")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}; accepted are left or right")
        self.pad_token_id = pad_token_id
        self.route_names = tuple(route_names)
        self.packing = packing
        self.max_length = max_length
        self.padding_side = padding_side
        self.pad_to_multiple_of = pad_to_multiple_of
        self._route_of = {name: i for i, name in enumerate(self.route_names)}

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """Collates rows into a batch of B rows (fewer than given when packed) of S tokens.

        Returns:
            input_ids, attention_mask (1 = a real token), position_ids (from 0 in each segment), segment_ids
            (0, 1, ... in each row, padding -1): int64 [B, S]; target_mask: bool [B, S]; routes: int64 [B].
        """
        assert rows, "a batch without rows"
        bins = self._bins(rows) if self.packing else [[i] for i in range(len(rows))]
        length = max(sum(len(rows[i]) for i in members) for members in bins)
        if self.pad_to_multiple_of:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(bins), length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        segment_ids = np.full(shape, -1, dtype=np.int64)
        position_ids = np.zeros(shape, dtype=np.int64)
        target_mask = np.zeros(shape, dtype=np.bool_)
        routes = np.empty(len(bins), dtype=np.int64)
        for b, members in enumerate(bins):
            used = sum(len(rows[i]) for i in members)
            padding = length - used
            start = padding if self.padding_side == "left" else 0
            # Padding counts from 0 by itself, as one more segment would.
            position_ids[b, slice(0, padding) if start else slice(used, length)] = np.arange(padding)
            for segment, i in enumerate(members):
                row = rows[i]
                end = start + len(row)
                input_ids[b, start:end] = row.input_ids
                segment_ids[b, start:end] = segment
                position_ids[b, start:end] = np.arange(len(row))
                target_mask[b, start : end - 1] = row.is_target[1:]
                start = end
            routes[b] = self._route_of[rows[members[0]].route]
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": input_ids,
            "attention_mask": (segment_ids >= 0).astype(np.int64),
            "position_ids": position_ids,
            "segment_ids": segment_ids,
            "target_mask": target_mask,
            "routes": routes,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _bins(self, rows: Sequence[EncodedRow]) -> list[list[int]]:
        """Rows by packed row: best fit decreasing, ties to the earlier row and the earlier bin."""
        assert self.max_length is not None
        bins: list[list[int]] = []
        free: list[int] = []
        for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
            size = len(rows[i])
            assert size <= self.max_length, f"{rows[i].origin}: {size} tokens for a packed row of {self.max_length}"
            fits = [b for b in range(len(bins)) if free[b] >= size and _alike(rows[bins[b][0]], rows[i])]
            if fits:
                best = min(fits, key=lambda b: (free[b], b))
                bins[best].append(i)
                free[best] -= size
            else:
                bins.append([i])
                free.append(self.max_length - size)
        # In the order the rows came, so that a batch reads alike with and without packing.
        return sorted(sorted(members) for members in bins)


def _alike(one: EncodedRow, other: EncodedRow) -> bool:
    """Whether two rows may share a packed row, which has one route."""
    return (one.dataset, one.route) == (other.dataset, other.route)
