"""What files hold, as SHA-256 that is not computed twice: a teacher of 90 GB is hashed once and not on every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preceptor.errors import InputError
from preceptor.files import MANIFEST, is_store, json_text, sha256_file, write_atomic

_NEVER_READ = (".pyc", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".md")


class Hashes:
    """SHA-256 of files, remembered by size and modification time for files over 64 MiB."""

    _LARGE = 64 << 20

    def __init__(self, store: Path) -> None:
        self._store = store
        self._changed = False
        self._seen: dict[str, str] = {}
        self._large: dict[str, list[Any]] = {}
        try:
            self._large = dict(json.loads(store.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._large = {}  # absent or damaged: only time is lost

    def file(self, path: Path) -> str:
        """The SHA-256 of one file."""
        key = str(path)
        if key not in self._seen:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
            known = self._large.get(key)
            if isinstance(known, list) and known[:2] == stamp and len(known) == 3:
                self._seen[key] = str(known[2])
            else:
                self._seen[key] = sha256_file(path)
                if stat.st_size >= self._LARGE:
                    self._large[key] = [*stamp, self._seen[key]]
                    self._changed = True
        return self._seen[key]

    def content(self, path: Path) -> Any:
        """The SHA-256 of a file, or of each file in a folder that a model or dataset is read from."""
        if path.is_file():
            return self.file(path)
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
