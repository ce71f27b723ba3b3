"""A process that dies at its n-th call of the file system, which is where a half-written file or folder comes from.

Calls are what Python's audit events tell of (opening for writing, renaming, removing, making folders) and `os.fsync`,
in one folder. Writers in other languages (safetensors, torch.save) are seen by the files that they leave.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Way = Literal["kill", "power", "int", "term"]
"""SIGKILL; a power cut, which takes with it all that was not flushed; Ctrl-C; SIGTERM."""

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TORN = b'{"step": 3, "lo'  # half of a line, as a write leaves it that was not finished


class Calls:
    """Counts this process's calls in `folder`, and ends it at call number `last` (from 1; 0: never) in some way.

    `told` gets each call as text, before it is made.
    """

    def __init__(
        self, folder: Path, last: int = 0, way: Way = "kill", told: Callable[[str], None] | None = None
    ) -> None:
        self.count = 0
        self._folder, self._last, self._way = str(folder), last, way
        self._told = told or (lambda call: None)
        self._flushed: dict[tuple[int, int], tuple[int, int]] = {}  # by inode: size and time of the last flush
        self._off = False
        self._before = {self._inode(file): self._stamp(file) for file in self._files()}
        self._fsync = os.fsync
        os.fsync = self._flush
        sys.addaudithook(self._heard)

    def _heard(self, event: str, given: tuple[Any, ...]) -> None:
        if event not in _EVENTS or self._off or not isinstance(given[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(given[0])
        # shutil.rmtree names files relative to the open folder that they are in.
        if not path.startswith(self._folder) and (Path(path).is_absolute() or event not in ("os.remove", "os.rmdir")):
            return
        if event == "open" and not int(given[2] or 0) & _WRITES:
            return
        appends = event == "open" and bool(int(given[2] or 0) & os.O_APPEND)
        self._call(f"{event} {self._short(path)}", path if appends else None)

    def _flush(self, handle: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        if self._off or not path.startswith(self._folder):
            self._fsync(handle)
            return
        self._call(f"fsync {self._short(path)}", None)
        self._fsync(handle)
        found = os.fstat(handle)
        self._flushed[found.st_dev, found.st_ino] = (found.st_size, found.st_mtime_ns)

    def _short(self, path: str) -> str:
        return path.removeprefix(self._folder).lstrip("/")

    def _call(self, call: str, appended: str | None) -> None:
        self.count += 1
        self._told(call)
        if self.count != self._last:
            return
        if self._way in ("int", "term"):
            os.kill(os.getpid(), signal.SIGINT if self._way == "int" else signal.SIGTERM)
            return
        self._off = True
        if appended is not None:
            with Path(appended).open("ab") as stream:
                stream.write(_TORN)
        if self._way == "power":
            self._lose()
        os.kill(os.getpid(), signal.SIGKILL)

    def _lose(self) -> None:
        """Cuts every file to what has been flushed: what was there before this process, and what it has synced."""
        for file in self._files():
            inode, stamp = self._inode(file), self._stamp(file)
            size, _ = kept = self._flushed.get(inode) or self._before.get(inode, (0, 0))
            if stamp != kept:
                os.truncate(file, min(size, stamp[0]))

    def _files(self) -> list[Path]:
        return [Path(folder, name) for folder, _, names in os.walk(self._folder) for name in names]

    @staticmethod
    def _inode(file: Path) -> tuple[int, int]:
        found = file.stat()
        return found.st_dev, found.st_ino

    @staticmethod
    def _stamp(file: Path) -> tuple[int, int]:
        found = file.stat()
        return found.st_size, found.st_mtime_ns
