"""What files hold, as SHA-256 that is not computed twice: a teacher of 90 GB is hashed once and not on every run."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

from preceptor.errors import InputError
from preceptor.system.files import MANIFEST, is_store, json_text, sha256_file, write_atomic

_NEVER_READ = (".pyc", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".md")


_RACE = 2_000_000_000  # nanoseconds in which a file can change twice and keep its time, on the coarsest file systems


class Hashes:
    """SHA-256 of files, remembered for those over 64 MiB as long as nothing about the file has changed.

    That is its size, the times of its last change of content and of anything (which no program can set back, as it can
    the first), and its number on the disk: a file that was put in its place has another.
    """

    _LARGE = 64 << 20

    def __init__(self, store: Path) -> None:
        self._store = store
        self._changed = False
        self._seen: dict[str, str] = {}
        self._stamps: dict[str, list[int]] = {}
        self._large: dict[str, list[Any]] = {}
        self._read_by: dict[str, set[str]] = {}
        self.reader = ""
        """Who asks: what is asked from here on is of what this one reads."""
        try:
            self._large = dict(json.loads(store.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._large = {}  # absent or damaged: only time is lost

    def file(self, path: Path) -> str:
        """The SHA-256 of one file. Raises InputError for one that changes meanwhile, OSError for one not there."""
        key = str(path)
        self._read_by.setdefault(self.reader, set()).add(key)
        if key not in self._seen:
            stamp = _stamp(path)
            known = self._large.get(key)
            if isinstance(known, list) and known == [*stamp, known[-1]]:
                self._seen[key] = str(known[-1])
            else:
                began = time.time_ns()
                self._seen[key] = sha256_file(path)
                if _stamp(path) != stamp:
                    raise InputError(f"{path}: changes while it is read; wait until it is whole, and run again")
                settled = max(stamp[1:3]) + _RACE < began
                if stamp[0] >= self._LARGE and settled:
                    self._large[key] = [*stamp, self._seen[key]]
                    self._changed = True
            self._stamps[key] = stamp
        return self._seen[key]

    def changes(self, reader: str) -> list[str]:
        """What `reader` reads and is gone, or is no longer what it was when its hash was asked for, in words."""
        found = []
        for key in sorted(self._read_by.get(reader, ())):
            try:
                same = _stamp(Path(key)) == self._stamps[key] or sha256_file(key) == self._seen[key]
            except OSError as error:
                found.append(f"{key} cannot be read any more ({error.strerror})")
                continue
            if not same:
                found.append(f"{key} has changed")
        return found

    def content(self, path: Path) -> Any:
        """The SHA-256 of a file, or of each file in a folder that a model or dataset is read from."""
        if path.is_file():
            return self.file(path)
        if not path.is_dir():
            raise InputError(f"{path}: is {_kind(path)}, which can be read once at most; write what it gives to a file")
        if is_store(path):
            return {MANIFEST: self.file(path / MANIFEST)}  # which has the hashes of all else, compared where it is read
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file()
            and file.suffix not in _NEVER_READ
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if not files:
            raise InputError(f"{path}: is a folder without files to read; give the folder of a model or a data file")
        return {file.relative_to(path).as_posix(): self.file(file) for file in files}

    def save(self) -> None:
        """Keeps the hashes of large files for the next run; call it with the run directory locked."""
        if self._changed:
            write_atomic(self._store, json_text(self._large))


def _stamp(path: Path) -> list[int]:
    """What changes with a file's content, whoever tries to hide that."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _kind(path: Path) -> str:
    """What is neither a file nor a folder."""
    mode = path.stat().st_mode
    for is_kind, kind in ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device")):
        if is_kind(mode):
            return kind
    return "no file"
