"""A store on disk: shards of rows, and a manifest that says what they are and is written last.

    manifest.json            what was stored, of which teacher, for which tokenizer; each shard's SHA-256
    RANK-NUMBER.safetensors  rows, in any order: data (bytes, row after row), offsets, keys, targets, digests

A shard appears whole or not at all, and says of which job it is: an interrupted writer goes on after the shards that
are there, and several writers share a folder. Until there is a manifest each writer keeps the SHA-256 of its shards in
a journal (RANK.journal), so that what a disk has changed since is not taken for what was written.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from preceptor.errors import InputError, shown
from preceptor.models.headers import read_header
from preceptor.system.files import MANIFEST, STORE_FORMAT, json_text, sha256_file, sha256_json, write_atomic
from preceptor.teachers.store_manifest import SHARD, malformed
from preceptor.teachers.store_rows import DIGEST_BYTES, KEY_BYTES
from preceptor.teachers.store_sizes import bytes_per_target

if TYPE_CHECKING:
    from preceptor.teachers.store_modes import Mode

_COUNTED = ("format", "version", "rows", "target_positions", "bytes", "shards")
VERSION = 1
SUFFIX = ".safetensors"
JOURNAL = ".journal"
_MEND = "copy the store again, or write it anew"
_ROW_BYTES = 8 + 4 + KEY_BYTES + DIGEST_BYTES  # offset, number of targets, key, digest
_HEADER_BYTES = 1024  # at most, of a shard
_LARGEST_MANIFEST = 1 << 28  # bytes: those of two million shards
_PATIENCE = 600.0  # seconds after which even a small shard is written: no more than this is lost when a run is killed

Identity = Mapping[str, Any]
"""What a store is of: mode, draws, k, temperature, seed, vocabulary, teacher, tokenizer, template, …"""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished store.

    Raises:
        InputError: there is no such folder, it is no store or not a finished one, one of another format version, or
            its manifest is damaged.
    """
    where, path = f"store {str(folder)!r}", folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{where}: there is no such folder; give one that a `store` stage wrote")
    if path.is_file():
        _check_inside(path, where)
    else:
        if (folder.parent / "stage.json").is_file():  # to run a finished stage again would do nothing
            raise InputError(
                f"{where}: has no {MANIFEST}, though its stage is finished; copy the store again, or write it anew "
                f"with --redo {folder.parent.name}"
            )
        raise InputError(f"{where}: has no {MANIFEST}, so it is not finished or no store; run its stage to the end")
    if (size := path.stat().st_size) > _LARGEST_MANIFEST:
        raise InputError(f"{where}: its {MANIFEST} has {size:,} bytes, more than one of a store has; {_MEND}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        known = manifest["format"] == STORE_FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise InputError(f"{where}: its {MANIFEST} is not that of a teacher store; give a folder a `store` stage wrote")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{where}: is in format version {shown(manifest.get('version'))} and this preceptor reads version "
            f"{VERSION}; write it anew, or use the preceptor that wrote it"
        )
    if (wrong := next(malformed(manifest), None) or _too_small(manifest)) is not None:
        raise InputError(f"{where}: its {MANIFEST} is damaged ({wrong}); {_MEND}")
    return manifest


def _too_small(manifest: Mapping[str, Any]) -> str | None:
    """The first shard whose bytes cannot hold the rows it is said to have, or None."""
    draws, k = manifest.get("draws"), manifest.get("k")
    least, _ = bytes_per_target(manifest["mode"], vocabulary=manifest["vocabulary"], draws=draws, k=k)
    for name, facts in manifest["shards"].items():
        rows, targets, size = (facts[key] for key in ("rows", "target_positions", "bytes"))
        if size < rows * _ROW_BYTES + math.floor(least * targets):
            return f"of shard {name} it says {rows:,} rows and {targets:,} target positions in {size:,} bytes"
    return None


def _check_inside(path: Path, where: str) -> None:
    """Refuses a link to a file outside the store: a stranger's store could name any file of this machine."""
    folder = path.parent.resolve()
    # A snapshot in the Hub's cache is links to the blobs beside all snapshots.
    snapshot = next((each for each in (folder, *folder.parents) if each.parent.name == "snapshots"), None)
    allowed = [folder] if snapshot is None else [folder, snapshot.parent.parent / "blobs"]
    if path.is_symlink() and not any(path.resolve().is_relative_to(each) for each in allowed):
        raise InputError(f"{where}: {path.name} is a link that leads out of the folder; copy the file itself there")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def write_manifest(folder: Path, identity: Identity, shards: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Finishes a store: from here on it can be read. Returns the manifest."""
    named = {name: dict(shards[name]) for name in sorted(shards)}
    totals = {key: sum(int(each[key]) for each in named.values()) for key in ("rows", "target_positions", "bytes")}
    manifest = {"format": STORE_FORMAT, "version": VERSION, **identity, **totals, "shards": named}
    write_atomic(folder / MANIFEST, json_text(manifest))
    for journal in _journals(folder):
        journal.unlink()
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], *, whole: bool = True) -> int:
    """Checks the shards against the manifest: sizes, and with `whole` every byte. Returns how many bytes they have.

    Raises:
        InputError: naming the first shard that is missing, cut short, or not what was written.
    """
    where = f"store {str(folder)!r}"
    for name, facts in manifest["shards"].items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{where}: {name} is missing, though {MANIFEST} lists it; {_MEND}")
        _check_inside(path, where)
        if (size := path.stat().st_size) != facts["bytes"]:
            what = "cut short" if size < facts["bytes"] else "too long"
            raise InputError(
                f"{where}: {name} is {what} (it has {size:,} bytes and {MANIFEST} says {facts['bytes']:,}); {_MEND}"
            )
    # Sizes of all first: what is found in a moment should not wait for what takes minutes.
    for name, facts in manifest["shards"].items() if whole else ():
        if sha256_file(folder / name) != facts["sha256"]:
            raise InputError(f"{where}: {name} is not what was written (its SHA-256 differs); {_MEND}")
        _check_shard(folder / name, manifest, facts)
    return int(manifest["bytes"])


def _check_shard(path: Path, manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Whether a whole shard is of its manifest: that may have been put beside others' shards, or edited."""
    shard = Shard(path)
    shard.of(manifest)
    rows, targets = len(shard), int(shard.targets.sum())
    if (rows, targets) != (facts["rows"], facts["target_positions"]):
        raise InputError(
            f"store {str(path.parent)!r}: {path.name} holds {rows:,} rows with {targets:,} target positions, and "
            f"{MANIFEST} says {facts['rows']:,} with {facts['target_positions']:,}; {_MEND}"
        )


class Shard:
    """One shard's rows, mapped into memory and read where they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a file that is not whole, or no shard."""
        self._path = path
        read_header(path, f"store {str(path.parent)!r}")
        try:
            self._map(path)
            self._check()
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"store {str(path.parent)!r}: {path.name} is no shard of a store; {_MEND}") from None

    def _map(self, path: Path) -> None:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        length = int(mapped[:8].view("<u8")[0])
        header = json.loads(bytes(mapped[8 : 8 + length]))
        self.job = str(header.pop("__metadata__")["job"])

        def tensor(name: str, dtype: str) -> npt.NDArray[Any]:
            start, stop = (8 + length + offset for offset in header[name]["data_offsets"])
            array: npt.NDArray[Any] = mapped[start:stop].view(dtype).reshape(header[name]["shape"])
            return array

        self._data, self._offsets = tensor("data", "u1"), tensor("offsets", "<i8")
        self.keys, self.digests = tensor("keys", "u1"), tensor("digests", "u1")
        self.targets = tensor("targets", "<i4")

    def _check(self) -> None:
        """Raises ValueError unless every row has a key, a digest, and bytes of its own inside the file."""
        rows = len(self.targets)
        shapes = [each.shape for each in (self._offsets, self.keys, self.digests, self._data)]
        if shapes != [(rows + 1,), (rows, KEY_BYTES), (rows, DIGEST_BYTES), (len(self._data),)]:
            raise ValueError(f"tensors of shapes {shapes} for {rows} rows")
        # Compared, not subtracted: a difference of two 64-bit numbers may be anything.
        ordered = bool((self._offsets[1:] >= self._offsets[:-1]).all())
        if (self._offsets[0], self._offsets[-1]) != (0, len(self._data)) or not ordered:
            raise ValueError("rows outside the file")
        if rows and int(self.targets.min()) < 0:
            raise ValueError("a negative number of target positions")

    def __len__(self) -> int:
        return len(self.targets)

    def of(self, manifest: Mapping[str, Any]) -> Shard:
        """Itself. Raises InputError where it is of another store than the manifest describes."""
        if self.job != job_of(manifest):
            raise InputError(
                f"store {str(self._path.parent)!r}: {self._path.name} is of another store than {MANIFEST} describes; "
                f"{_MEND}"
            )
        return self

    def row(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """A row's bytes, and its number of target positions."""
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        return np.asarray(self._data[start:stop]), int(self.targets[index])


class ShardWriter:
    """Writes one process's rows of a job as shards of about `shard_bytes`."""

    def __init__(self, folder: Path, identity: Identity, *, rank: int = 0, shard_bytes: int = 128_000_000) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.job, self.rank, self.shard_bytes = folder, job_of(identity), rank, shard_bytes
        self.written: dict[str, dict[str, Any]] = {}
        """What the manifest says of each shard written so far."""
        self._journal = folder / f"{rank:03d}{JOURNAL}"
        self._hashes = _journal(self._journal)
        self._number = 1 + max((int(path.stem.partition("-")[2]) for path in _shards(folder)), default=-1)
        self._empty()

    def _empty(self) -> None:
        self._rows: list[tuple[bytes, bytes, int, bytes]] = []
        self._size, self._begun = 0, time.monotonic()

    def add(self, key: bytes, digest: bytes, targets: int, data: bytes) -> None:
        """One row: its key, the digest and number of its target positions, and what the teacher said there."""
        assert len(key) == KEY_BYTES
        assert len(digest) == DIGEST_BYTES
        self._rows.append((key, digest, targets, data))
        self._size += len(data)

    def flush_if_due(self) -> None:
        """Writes a shard if it is full or old; call it where a resumed job could go on."""
        if self._size >= self.shard_bytes or time.monotonic() - self._begun > _PATIENCE:
            self.flush()

    def flush(self) -> None:
        """Writes what has been added as a shard, if anything has."""
        if not self._rows:
            return
        keys, digests, targets, data = zip(*self._rows, strict=True)
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in data])]).astype(np.int64)
        content = save(
            {
                "offsets": offsets,
                "targets": np.array(targets, dtype=np.int32),
                "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
                "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
                "data": np.frombuffer(b"".join(data), np.uint8),
            },
            metadata={"format": STORE_FORMAT, "job": self.job},
        )
        name = f"{self.rank:03d}-{self._number:05d}{SUFFIX}"
        digest = hashlib.sha256(content).hexdigest()
        # The journal first: a shard that it does not know is not trusted.
        self._hashes[name] = digest
        write_atomic(self._journal, json_text(self._hashes))
        write_atomic(self.folder / name, content)
        self.written[name] = _facts(digest, len(content), len(targets), sum(targets))
        self._number += 1
        self._empty()


def job_of(identity: Identity) -> str:
    """What tells the shards of one job from those of another; a manifest's identity is all but what it counts.

    Of a teacher, a tokenizer and a template the SHA-256 alone counts: one that has moved is the same.
    """
    kept = {
        key: value.get("sha256", value) if isinstance(value, Mapping) else value
        for key, value in identity.items()
        if key not in _COUNTED
    }
    return sha256_json({**kept, "version": VERSION})


def clean(folder: Path, identity: Identity, log: Callable[[str], None] | None = None) -> dict[str, dict[str, Any]]:
    """Removes all but whole shards of this job, and returns those with what the manifest says of each.

    Tells `log` of shards that are not as they were written, and of those of another job.
    """
    if not folder.is_dir():
        return {}
    tell = log or (lambda line: None)
    job, shards, known = job_of(identity), _shards(folder), _known(folder)
    kept: dict[str, dict[str, Any]] = {}
    others = 0
    for path in sorted(shards):
        try:
            shard = Shard(path)
        except InputError:
            shard = None
        if shard is not None and shard.job != job:
            others += 1
            continue
        digest = sha256_file(path)
        if shard is None or digest not in known.get(path.name, ()):
            tell(f"{path.name} is not what was written (its SHA-256 differs); its rows are written again")
            continue
        kept[path.name] = _facts(digest, path.stat().st_size, len(shard), int(shard.targets.sum()))
    if others:
        tell(f"{others:,} shards of another job (another teacher, data or setting) are removed")
    mine = folder / f"000{JOURNAL}"
    if kept:  # before the manifest and other journals go, which may be all that knows these shards
        write_atomic(mine, json_text({name: facts["sha256"] for name, facts in kept.items()}))
    for path in sorted(folder.iterdir()):
        if path.name not in kept and not (kept and path == mine) and not path.is_dir():
            path.unlink()
    return kept


def _known(folder: Path) -> dict[str, set[str]]:
    """By shard, each SHA-256 that journals and a manifest give for it."""
    found: dict[str, set[str]] = {}
    listed = [_journal(path) for path in _journals(folder)]
    try:
        shards = read_manifest(folder)["shards"]
        listed.append({str(name): str(facts["sha256"]) for name, facts in shards.items()})
    except (InputError, KeyError, TypeError, AttributeError):
        pass  # there is none, or none that tells anything
    for each in listed:
        for name, digest in each.items():
            found.setdefault(name, set()).add(digest)
    return found


def _journal(path: Path) -> dict[str, str]:
    try:
        return {str(name): str(digest) for name, digest in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}  # absent, or damaged: its shards are written again


def _journals(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"[0-9]*{JOURNAL}") if path.is_file())


def bytes_of(mode: Mode, rows: int, targets: int, shard_megabytes: int) -> tuple[int, int]:
    """The least and the most bytes that shards of so many rows and target positions take."""
    least, most = (math.floor(size * targets) + _ROW_BYTES * rows for size in mode.bytes_per_target())
    most += 2 * rows  # the last bits of a row's runs and of its ids
    return least, most + _HEADER_BYTES * (1 + most // (shard_megabytes * 1_000_000))


def _facts(sha256: str, size: int, rows: int, targets: int) -> dict[str, Any]:
    return {"sha256": sha256, "bytes": size, "rows": rows, "target_positions": targets}


def _shards(folder: Path) -> set[Path]:
    return {path for path in folder.glob(f"[0-9]*-[0-9]*{SUFFIX}") if SHARD.fullmatch(path.name) and path.is_file()}


def rows_of(folder: Path, names: Iterable[str]) -> set[tuple[bytes, bytes]]:
    """(key, digest) of every row in the named shards."""
    found: set[tuple[bytes, bytes]] = set()
    for name in names:
        shard = Shard(folder / name)
        found.update(zip(map(bytes, shard.keys), map(bytes, shard.digests), strict=True))
    return found
