"""A teacher that is asked about the same batches for every model evaluated, and from the second time on remembers.

What KL needs of it are its last hidden states at the target positions: a few megabytes where its forward costs as much
as the evaluated model's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from preceptor.signals import LayerShape, Needs, Signal, Teacher, TokenBatch

LIMIT_BYTES = 2**30


class RememberedTeacher:
    """Answers like `teacher`, keeping at most `limit_bytes` of hidden states on their device.

    Args:
        teacher: frozen; asked for hidden states, which are the same whatever model they are compared with.
        limit_bytes: of memory; what does not fit is asked for again.
    """

    def __init__(self, teacher: Teacher, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._teacher = teacher
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._signals: dict[bytes, Signal] = {}

    def __call__(self, batch: TokenBatch, needs: Needs) -> Signal:
        """What the teacher says, or has said, about these very tokens and targets."""
        tensors = (batch.input_ids, batch.segment_ids, batch.target_mask, batch.routes)
        parts = b"".join(str(tuple(each.shape)).encode() + each.cpu().numpy().tobytes() for each in tensors)
        key = hashlib.sha256(parts + repr(needs).encode()).digest()
        if key in self._signals:
            return self._signals[key]
        signal = self._teacher(batch, needs)
        size = sum(part.hidden_ND.nbytes for part in signal.parts if part.hidden_ND is not None)
        if self._held_bytes + size <= self._limit_bytes and not any(part.attention for part in signal.parts):
            self._held_bytes += size
            self._signals[key] = signal
        return signal

    def attention_shapes(self, routes: frozenset[int]) -> Mapping[str, Sequence[LayerShape]]:
        return self._teacher.attention_shapes(routes)

    def check_routes(self, route_names: Sequence[str], followed: frozenset[int]) -> None:
        self._teacher.check_routes(route_names, followed)
