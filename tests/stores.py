"""Small stores of toy teachers, written without a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import toys
from preceptor.data.chat import EncodedRow
from preceptor.teachers import ModelTeacher
from preceptor.teachers.store import Store
from preceptor.teachers.store_files import ShardWriter, write_manifest
from preceptor.teachers.store_modes import mode_of
from preceptor.teachers.store_writer import StoredRow, store_batch

IDENTITY: dict[str, Any] = {
    "mode": "sample",
    "draws": 50,
    "k": None,
    "temperature": 1.0,
    "seed": 0,
    "vocabulary": toys.VOCABULARY,
    "max_length": 64,
    "targets": None,
    "data": ["rows"],
    "teacher": {"model": "toy", "sha256": "aa" * 32},
    "tokenizer": {"tokens": toys.VOCABULARY, "sha256": "bb" * 32},
    "template": {"text": "{{ messages }}", "sha256": "cc" * 32},
}
MODES: dict[str, dict[str, Any]] = {
    "sample": {},
    "topk": {"mode": "topk", "draws": None, "k": 7, "seed": None},
    "full": {"mode": "full", "draws": None, "seed": None},
}


def encoded(rows: Sequence[tuple[torch.Tensor, torch.Tensor]], name: str = "rows") -> list[EncodedRow]:
    return [
        EncodedRow(name, ids.numpy().astype(np.int32), is_target.numpy(), origin=f"{name}.jsonl:{i + 1}")
        for i, (ids, is_target) in enumerate(rows)
    ]


def write(
    folder: Path,
    teacher: torch.nn.Module,
    rows: Sequence[EncodedRow],
    *,
    batch: int = 3,
    shard_bytes: int = 64 << 20,
    **identity: Any,
) -> Path:
    """A finished store of the rows that have a target."""
    document = {**IDENTITY, **identity}
    chosen = {key: document[key] for key in ("vocabulary", "temperature", "draws", "k")}
    mode = mode_of(document["mode"], **chosen)
    writer = ShardWriter(folder, document, shard_bytes=shard_bytes)
    live = ModelTeacher(teacher)
    named = [StoredRow.of(row) for row in rows if row.target_count]
    for i in range(0, len(named), batch):
        store_batch(live, named[i : i + batch], mode, writer, seed=int(document["seed"] or 0), pad_token_id=3)
    writer.flush()
    write_manifest(folder, document, writer.written)
    return folder


def keys(store: Store) -> dict[bytes, tuple[int, int]]:
    """Where each row of a store is, by its key."""
    return {bytes(store._shard(shard).keys[row]): (shard, row) for shard, row in store.places(range(len(store)))}


def content(folder: Path) -> dict[bytes, tuple[bytes, int]]:
    """By key, the bytes of each row of a store and its number of targets."""
    store = Store(folder)
    return {
        key: (data.tobytes(), targets)
        for key, (shard, row) in keys(store).items()
        for data, targets in [store._shard(shard).row(row)]
    }
