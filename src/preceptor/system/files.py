"""Writing so that a reader sees a file or a folder whole or not at all, and checking that it is still so.

Everything a run leaves behind goes through here: a killed process, a full disk or a power cut must never
leave something that looks finished. Writing happens aside, is flushed to the disk, and becomes visible by
one rename.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preceptor.errors import InputError
from preceptor.system.disk import FULL, DiskFull

MANIFEST = "manifest.json"
STORE_FORMAT = "preceptor teacher store"
_BLOCK = 1 << 20  # bytes read at once when hashing
_UNFINISHED = ".unfinished"
_WRITING = ".writing"
_OLD = ".old"


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in lower-case hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form: sorted keys, no spaces, UTF-8.

    Raises TypeError or ValueError for what JSON cannot hold (objects, NaN): an identity must not depend on
    a repr.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def json_text(value: Any, *, indent: int | None = 2) -> str:
    """A JSON value as text; numbers that are not finite become null, because strict readers refuse NaN."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Writes a file so that `path` holds either what it held before or all of `content`.

    The bytes go to a neighbour in the same folder (a rename is atomic within one file system only), are
    flushed to the disk, and then take the name.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        _write_aside(path, data)
    except OSError as error:  # which names the neighbour, or nothing
        if error.errno in FULL:
            raise DiskFull(error.errno, path, len(data)) from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    sync_folder(path.parent)


def _write_aside(path: Path, data: bytes) -> None:
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(aside).chmod(0o666 & ~_umask())  # mkstemp makes private files; results are meant to be shared
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def append(path: Path, text: str) -> None:
    """Appends to a file that need not exist; when this returns, the text is on the disk. Raises OSError naming it."""
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:  # which names nothing where the disk is full
        if error.errno in FULL:
            raise DiskFull(error.errno, path, len(text.encode())) from None
        raise OSError(error.errno, error.strerror, str(path)) from None


def interrupted_writes(folder: Path) -> list[Path]:
    """What a killed process left in `folder`, of files and folders; nobody will ever finish or read it."""
    return [path for ending in (_UNFINISHED, _WRITING, _OLD) for path in folder.glob(f".*{ending}")]


def remove_interrupted(folder: Path) -> None:
    """Removes what `interrupted_writes` finds."""
    for path in interrupted_writes(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_directory(path: Path) -> None:
    """Removes a folder so that nobody ever sees a part of it under its name."""
    path = path.rename(_emptied(path.with_name(f".{path.name}{_OLD}")))
    sync_folder(path.parent)
    shutil.rmtree(path)


def _emptied(path: Path) -> Path:
    """The name of a folder, free for a rename: one that was killed in the middle has left this folder."""
    if path.exists():
        shutil.rmtree(path)
    return path


def publish_directory(aside: Path, final: Path) -> None:
    """Gives a finished folder its name: `final` is then whole, or (if we are stopped before) absent.

    `manifest.json` in the folder lists every file with its SHA-256 and size in bytes, for `verify_directory`.
    A folder that already has the name is replaced. Both must be on one file system.
    """
    manifest: dict[str, dict[str, Any]] = {}
    for file in _files(aside):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        name = file.relative_to(aside).as_posix()
        manifest[name] = {"sha256": sha256_file(file), "size": file.stat().st_size}
    write_atomic(aside / MANIFEST, json_text(manifest))
    for folder, _, _ in os.walk(aside):
        sync_folder(Path(folder))
    old = _emptied(final.with_name(f".{final.name}{_OLD}"))
    if final.exists():
        final.rename(old)
    aside.rename(final)
    sync_folder(final.parent)
    if old.exists():
        shutil.rmtree(old)


def verify_directory(path: str | Path, sha256: Callable[[Path], str] = sha256_file) -> None:
    """Checks a published folder against its manifest; `sha256` gives the hash of a file.

    Raises InputError naming the first file that is missing, different, or not listed (a file that was added
    later is as little to be trusted as one that was changed).
    """
    path = Path(path)
    source = path / MANIFEST
    if not source.is_file():
        raise InputError(f"{path}: has no {MANIFEST}, so it is not whole; delete the folder or make it anew")
    try:
        manifest = json.loads(source.read_text(encoding="utf-8"))
        expected = {str(name): (str(entry["sha256"]), int(entry["size"])) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise InputError(f"{source}: is not a readable manifest; delete the folder or make it anew") from None
    present = {file.relative_to(path).as_posix(): file for file in _files(path)}
    for name, (digest, size) in expected.items():
        if name not in present:
            raise InputError(
                f"{path / name}: is missing, though {MANIFEST} lists it; delete the folder or make it anew"
            )
        if present[name].stat().st_size != size or sha256(present[name]) != digest:
            raise InputError(
                f"{path / name}: is not the file that {MANIFEST} lists (its SHA-256 or size differs); "
                "delete the folder or make it anew"
            )
    for name in present:
        if name not in expected:
            raise InputError(f"{path / name}: was added after the folder was finished; remove this file")


def is_store(folder: Path) -> bool:
    """Whether a folder is a finished teacher store (published folders have a manifest too, of another form)."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["format"] == STORE_FORMAT)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def move_aside(path: Path, name: Path | None = None) -> Path:
    """Renames `path` to the first free of `NAME.1`, `NAME.2`, … (first of all to `name`); returns the new path."""
    number, target = 0, name
    while target is None or target.exists():
        number += 1
        target = path.with_name(f"{(name or path).name}.{number}")
    path.rename(target)
    return target


def _files(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted, without the manifest and what operating systems leave there."""
    found = [
        file
        for file in folder.rglob("*")
        if file.is_file() and file != folder / MANIFEST and not file.name.startswith((".DS_Store", ".nfs"))
    ]
    return sorted(found)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries, so that a rename survives a power cut, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
