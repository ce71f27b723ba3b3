"""Reading a store: its manifest, what it must be of, and rows by their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preceptor.errors import InputError, shown
from preceptor.stored_signals import Stored
from preceptor.teachers.store_files import Shard, check_files, read_manifest
from preceptor.teachers.store_modes import DamagedRowError, mode_of

Bytes = npt.NDArray[np.uint8]
# Shards mapped at once: each holds a file descriptor, of which a process often has no more than 1,024.
_OPEN = 256

# What an identity's field is called in a message. Nested ones hold a `sha256`, which alone decides.
_NAMES = {
    "mode": "mode",
    "draws": "number of draws",
    "k": "number of top tokens",
    "temperature": "temperature",
    "seed": "seed of the draws",
    "vocabulary": "vocabulary",
    "max_length": "max_length",
    "targets": "targets",
    "teacher": "teacher",
    "tokenizer": "tokenizer",
    "template": "chat template",
    "data": "data",
}


class Store:
    """A finished store, opened: its index is in memory, its rows stay on disk until they are asked for.

    Args:
        folder: what a `store` stage wrote.
        verify: read every shard and compare its SHA-256; without it only sizes are compared.

    Raises:
        InputError: no finished store of a version that is read here, or a shard that is missing, cut short or changed.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        check_files(folder, self.manifest, whole=verify)
        self.mode = mode_of(
            self.manifest["mode"],
            vocabulary=self.manifest["vocabulary"],
            temperature=float(self.manifest["temperature"]),
            draws=self.manifest.get("draws"),
            k=self.manifest.get("k"),
        )
        self._names = list(self.manifest["shards"])
        self._shard = lru_cache(_OPEN)(self._opened)
        keys = [np.array(self._shard(shard).keys[:, :8]) for shard in range(len(self._names))]
        # Rows in the order of the first 8 bytes of their keys: 20 bytes of memory a row, and no Python object.
        prefix_R = np.concatenate(keys).view("<u8").ravel()
        shard_R = np.repeat(np.arange(len(keys), dtype=np.int32), [len(each) for each in keys])
        row_R = np.concatenate([np.arange(len(each)) for each in keys])
        order_R = np.argsort(prefix_R, kind="stable")
        self._prefix_R, self._shard_R, self._row_R = prefix_R[order_R], shard_R[order_R], row_R[order_R]

    def _opened(self, number: int) -> Shard:
        return Shard(self.folder / self._names[number]).of(self.manifest)

    def __len__(self) -> int:
        return len(self._prefix_R)

    def find(self, key: bytes, digest: bytes) -> tuple[int, int] | None:
        """Where a row is, learned at just these positions: shard and row number; None if it is not there."""
        for shard, row in self._with(key):
            if bytes(self._shard(shard).digests[row]) == digest:
                return shard, row
        return None

    def knows(self, key: bytes) -> bool:
        """Whether a row with these tokens is there, whatever its target positions."""
        return any(True for _ in self._with(key))

    def _with(self, key: bytes) -> Iterator[tuple[int, int]]:
        prefix = np.frombuffer(key[:8], "<u8")[0]
        at = int(np.searchsorted(self._prefix_R, prefix))
        while at < len(self._prefix_R) and self._prefix_R[at] == prefix:
            shard, row = int(self._shard_R[at]), int(self._row_R[at])
            if bytes(self._shard(shard).keys[row]) == key:
                yield shard, row
            at += 1

    def places(self, rows: Iterable[int]) -> list[tuple[int, int]]:
        """Where rows are, counted from 0 in the order of their keys."""
        return [(int(self._shard_R[row]), int(self._row_R[row])) for row in rows]

    def read(self, places: Sequence[tuple[int, int]]) -> Stored:
        """What the teacher said of the rows at `places`, in that order.

        Raises:
            InputError: a row holds what no store writes: the id of a token that there is not, NaN, too few bytes.
        """
        try:
            return self.mode.unpack([self._shard(shard).row(row) for shard, row in places])
        except DamagedRowError as error:
            whose = f"a row of those in {', '.join([*dict.fromkeys(self._names[shard] for shard, _ in places)][:3])}"
            if error.number is not None:
                shard, row = places[error.number]
                whose = f"row {row + 1:,} of {self._names[shard]}"
            raise InputError(
                f"store {str(self.folder)!r}: {whose} is damaged ({error}); copy the store again, or write it anew"
            ) from None

    def count(self, place: tuple[int, int]) -> int:
        """The number of target positions stored of a row."""
        shard, row = place
        return int(self._shard(shard).targets[row])


def expect(folder: Path, manifest: Mapping[str, Any], expected: Mapping[str, Any], whose: str) -> None:
    """Makes sure that a store is of what `expected` says, field by field; `whose` says who expects it.

    Raises:
        InputError: naming the first field that differs.
    """
    for field, wanted in expected.items():
        found = manifest.get(field)
        if isinstance(wanted, Mapping) and isinstance(found, Mapping):
            same = found.get("sha256") == wanted.get("sha256")
        else:
            same = found == wanted
        if not same:
            raise InputError(
                f"store {str(folder)!r}: its {_NAMES.get(field, field)} is {_described(found)}, and {whose} "
                f"{_described(wanted)}; give the store that belongs to it, or store the teacher again"
            )


def _described(value: Any) -> str:
    if not isinstance(value, Mapping):
        return shown(value)
    digest = f"SHA-256 {str(value.get('sha256'))[:12]}…"
    if "model" in value:
        return f"{shown(value['model'])} ({digest})"
    if "tokens" in value:
        return f"one of {value['tokens']:,} tokens ({digest})"
    return digest if "text" not in value else f"{shown(value['text'])} ({digest})"
