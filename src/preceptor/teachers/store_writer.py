"""A live teacher's predictions, row by row, as the bytes that a store keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from preceptor.data.collator import Collator
from preceptor.kernels.chunk_rows import CHUNK_ELEMENTS
from preceptor.signals import Part, TokenBatch, Wanted
from preceptor.teachers.model import ModelTeacher
from preceptor.teachers.store_files import ShardWriter
from preceptor.teachers.store_modes import Mode
from preceptor.teachers.store_rows import row_key, target_digest, uniforms

if TYPE_CHECKING:
    from preceptor.data.chat import EncodedRow


@dataclass(frozen=True)
class StoredRow:
    """A row to be stored, under its name in the store."""

    encoded: EncodedRow
    key: bytes
    digest: bytes
    positions: npt.NDArray[np.int64]

    @classmethod
    def of(cls, encoded: EncodedRow) -> StoredRow:
        positions = np.flatnonzero(encoded.is_target[1:])
        return cls(encoded, row_key(encoded.input_ids), target_digest(positions), positions)

    @property
    def name(self) -> tuple[bytes, bytes]:
        """What tells it from every other row."""
        return self.key, self.digest


def store_batch(
    teacher: ModelTeacher, rows: Sequence[StoredRow], mode: Mode, writer: ShardWriter, *, seed: int, pad_token_id: int
) -> None:
    """Runs the teacher on `rows` at once and gives what it says at their targets to `writer`.

    Raises:
        RuntimeError: for logits that are infinite or no numbers, or that give no distribution.
    """
    routes = sorted({row.encoded.route for row in rows})
    collated = Collator(pad_token_id, route_names=routes)([row.encoded for row in rows])
    part = teacher.observe(TokenBatch.from_inputs(collated), Wanted(logits=True))
    for row, data in zip(rows, _packed(part, rows, mode, seed), strict=True):
        writer.add(row.key, row.digest, len(row.positions), data)
    writer.flush_if_due()


@torch.no_grad()
def _packed(part: Part, rows: Sequence[StoredRow], mode: Mode, seed: int) -> Iterator[bytes]:
    """Each row's bytes; logits are made for a few positions at a time."""
    assert part.head is not None
    assert part.hidden_ND is not None
    drawn = [uniforms(seed, row.key, row.positions, mode.draws) for row in rows] if mode.draws else []
    uniforms_ND = np.concatenate(drawn) if drawn else np.empty((len(part.hidden_ND), 0))
    device = part.head.weight_VD.device
    head, hidden_ND = part.head.first(mode.vocabulary), part.hidden_ND.to(device)
    size = max(1, CHUNK_ELEMENTS // mode.vocabulary)
    taken = []
    for start in range(0, len(hidden_ND), size):
        logits_nV = head.logits(hidden_ND[start : start + size])
        # −inf excludes a token, which is a teacher's right.
        if not bool((logits_nV < torch.inf).all()):
            raise RuntimeError(f"{part.teacher}: its logits are not finite; load it in a wider dtype")
        taken.append(mode.take(logits_nV, uniforms_ND[start : start + size]))
        if any(np.isnan(each).any() for each in taken[-1]):  # all tokens excluded, or logits / temperature overflow
            raise RuntimeError(f"{part.teacher}: its predictions are no numbers; load it in a wider dtype")
    whole = [np.concatenate(pieces) for pieces in zip(*taken, strict=True)]
    first = 0
    for row in rows:
        last = first + len(row.positions)
        yield mode.pack([each[first:last] for each in whole])
        first = last
