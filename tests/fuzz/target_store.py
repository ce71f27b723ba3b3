"""The store reader: a manifest or a shard from a stranger, who knows how to make checksums agree.

The first byte says which of the two the others are (or only the shard's tensors, under a good header); the second byte
which of the three modes the rest of the store is in.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.scaffold import Target
from preceptor.stored_signals import SampledTokens, TopTokens
from preceptor.teachers.store import Store
from preceptor.teachers.store_files import ShardWriter, read_manifest, write_manifest
from preceptor.teachers.store_modes import mode_of
from preceptor.teachers.store_report import info, render_info
from preceptor.teachers.store_rows import row_key, target_digest

MANIFEST, SHARD = "manifest.json", "000-00000.safetensors"
VOCABULARY = 11
MODES: dict[str, dict[str, Any]] = {
    "sample": {"draws": 9},
    "topk": {"draws": None, "k": 7},
    "full": {"draws": None},
}
IDENTITY: dict[str, Any] = {
    "k": None,
    "temperature": 1.0,
    "seed": 0,
    "vocabulary": VOCABULARY,
    "max_length": 64,
    "targets": None,
    "data": ["rows"],
    "teacher": {"model": "toy", "sha256": "aa"},
    "tokenizer": {"tokens": VOCABULARY, "sha256": "bb"},
    "template": {"text": "", "sha256": "cc"},
}
ROWS = [np.arange(5), np.arange(3, 9), np.arange(2)]


def check(data: bytes, folder: Path) -> Store:
    what, mode, content = data[0] % 3 if data else 0, [*MODES][data[1] % 3 if len(data) > 1 else 0], data[2:]
    manifest, shard = _store(mode)
    if what == 0:
        manifest = content
    elif what == 1:
        shard = content
    else:
        begin = 8 + int.from_bytes(shard[:8], "little")
        shard = shard[:begin] + content.ljust(len(shard) - begin, b"\0")[: len(shard) - begin]
    if what > 0:
        said = json.loads(manifest)
        said["shards"][SHARD] |= {"bytes": len(shard), "sha256": hashlib.sha256(shard).hexdigest()}
        manifest = json.dumps({**said, "bytes": len(shard)}).encode()
    (folder / MANIFEST).write_bytes(manifest)
    (folder / SHARD).write_bytes(shard)
    render_info(info(folder))
    store = Store(folder)
    for ids in ROWS:
        store.find(row_key(ids), target_digest(np.arange(len(ids) - 1)))
    found = store.read(store.places(range(len(store))))
    vocabulary = store.manifest["vocabulary"]
    assert found.vocabulary == vocabulary
    if isinstance(found, SampledTokens):
        assert ((found.token_U >= 0) & (found.token_U < vocabulary)).all()
        assert found.share_U.isfinite().all()
        assert found.entropy_N.isfinite().all()
    elif isinstance(found, TopTokens):
        assert ((found.token_NK >= 0) & (found.token_NK < vocabulary)).all()
        assert found.log_prob_NK.isfinite().all()
        assert not found.log_tail_N.isnan().any()
    else:
        assert found.log_prob_NV.isfinite().all()
    return store


@cache
def _store(mode: str) -> tuple[bytes, bytes]:
    """Manifest and shard of a good store of three rows."""
    identity = {**IDENTITY, "mode": mode, **MODES[mode]}
    draws, k = identity["draws"] or 1, identity["k"] or 1
    packer = mode_of(mode, vocabulary=VOCABULARY, temperature=1.0, draws=draws, k=k)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = ShardWriter(folder, identity)
        for ids in ROWS:
            T = len(ids) - 1
            log_probs = np.log(random.dirichlet(np.ones(VOCABULARY), T))
            taken = {
                "sample": (np.sort(random.integers(0, VOCABULARY, (T, draws)), 1), np.ones(T, np.float16)),
                "topk": (np.argsort(-log_probs)[:, :k], -np.sort(-log_probs)[:, :k], np.full(T, -3.0)),
                "full": (log_probs,),
            }[mode]
            writer.add(row_key(ids), target_digest(np.arange(T)), T, packer.pack(taken))
        writer.flush()
        write_manifest(folder, identity, writer.written)
        assert read_manifest(folder)["rows"] == len(ROWS)
        return (folder / MANIFEST).read_bytes(), (folder / SHARD).read_bytes()


def _seeds() -> list[bytes]:
    found = []
    for number, mode in enumerate(MODES):
        manifest, shard = _store(mode)
        body = shard[8 + int.from_bytes(shard[:8], "little") :]
        found += [bytes([what, number]) + each for what, each in enumerate((manifest, shard, body))]
    return found


TARGET = Target(
    name="store",
    check=check,
    seeds=_seeds(),
    words=[b"../../x.safetensors", b"1e400", b"-1", b"9" * 30, b"true", b"\xff" * 8, b"\x00\x7e", b'"mode": "full"'],
)
