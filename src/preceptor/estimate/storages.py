"""Which memory was held when: every storage that a step allocates, from its first tensor to its last.

Storages are followed by weak references, so that the count goes up and down exactly when an allocator's would. What a
storage is *for* is often known only later (a tensor of the backward becomes a parameter's gradient): labels are put on
storages at any time and the peak is found at the end, by going through the events once more.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from preceptor.models.taps import replaced

WEIGHTS = "weights"
TEACHER_WEIGHTS = "teacher_weights"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer"
ACTIVATIONS = "activations"
SIGNALS = "signals"
WORKSPACES = "workspaces"
PARTS = (WEIGHTS, TEACHER_WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, SIGNALS, WORKSPACES)
"""What memory is for: the student's and the teachers' weights; gradients of parameters; optimiser states; activations
of either model and whatever else a forward or backward holds; what a teacher said (hidden states, queries, keys, or
what a store gave); what the losses allocate (chunks of logits, blocks of scores, gradients on their way)."""

COPIES = "copies"
"""Copies of the student's weights in the dtype of autocast: counted as activations, and in shards where they are."""


@dataclass(frozen=True)
class Peak:
    """The most bytes held at once, what for, and in which phase of the step."""

    total: int
    parts: dict[str, int]
    phase: str


class Storages:
    """Allocations and frees in the order in which they happened."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}  # address of a live storage -> its number
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._bytes: list[int] = []
        self._parts: list[str] = []
        self._events: list[tuple[int, bool, str]] = []
        self._phase = "start"
        self._part = ACTIVATIONS

    # --- while it runs ----------------------------------------------------------------------------------------

    def see(self, tensor: Tensor) -> bool:
        """Note the tensor's storage; True if it is a new one."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._numbers:
            return False
        number = len(self._bytes)
        self._numbers[address] = number
        self._bytes.append(storage.nbytes())
        self._parts.append(self._part)
        self._events.append((number, True, self._phase))
        self._alive[number] = weakref.ref(storage, lambda _: self._freed(number, address))
        return True

    def _freed(self, number: int, address: int) -> None:
        del self._numbers[address], self._alive[number]
        self._events.append((number, False, self._phase))

    def label(self, tensors: Iterable[Tensor | None], part: str) -> None:
        """Say what the storages of `tensors` are for, from their allocation on."""
        for tensor in tensors:
            if tensor is not None:
                self.see(tensor)
                self._parts[self._numbers[tensor.untyped_storage()._cdata]] = part

    def copied(self, source: Tensor, made: Tensor) -> None:
        """Say that `made` is `source` in another dtype, which tells what it is for where that is a weight."""
        number = self._numbers.get(source.untyped_storage()._cdata)
        if self._part == ACTIVATIONS and number is not None and self._parts[number] == WEIGHTS:
            self.label([made], COPIES)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Name what is going on."""
        return replaced(self, "_phase", name)

    def making(self, part: str) -> AbstractContextManager[None]:
        """What is allocated in the block is for `part`, unless a label says otherwise."""
        return replaced(self, "_part", part)

    # --- afterwards -------------------------------------------------------------------------------------------

    def peak(self, shares: Mapping[str, float] | None = None) -> Peak:
        """The moment at which most was held, each part's storages counted at its share of their size (1)."""
        shares = shares or {}
        held = dict.fromkeys([*PARTS, COPIES], 0.0)
        total, most, at, phase = 0.0, -1.0, dict(held), "start"
        for number, allocated, during in self._events:
            part = self._parts[number]
            change = self._bytes[number] * shares.get(part, 1.0) * (1 if allocated else -1)
            held[part] += change
            total += change
            if total > most:
                most, at, phase = total, dict(held), during
        at[ACTIVATIONS] += at.pop(COPIES)
        return Peak(round(max(most, 0)), {part: round(size) for part, size in at.items()}, phase)

    def most(self, part: str) -> int:
        """The most bytes that `part` ever held."""
        held = most = 0
        for number, allocated, _ in self._events:
            if self._parts[number] == part:
                held += self._bytes[number] if allocated else -self._bytes[number]
                most = max(most, held)
        return most
