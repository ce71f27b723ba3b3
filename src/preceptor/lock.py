"""One process at a time in a run directory."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from pathlib import Path
from types import TracebackType

from preceptor.errors import InputError

LOCK = ".lock"


class RunLock:
    """Holds a run directory for this process, creating it (and the folders above) when it is new.

    The lock belongs to the operating system, so it goes with the process however that ends. When the block
    ends in an InputError, folders that entering it created are removed again if no stage has worked anything out:
    wrong input leaves nothing behind.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._created: list[Path] = []
        self._handle = -1
        self._made_lock = False

    def __enter__(self) -> RunLock:
        try:
            missing = [self.directory, *self.directory.parents]
            self._created = [folder for folder in missing if not folder.exists()]
            self.directory.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            self._remove_created()
            raise InputError(
                f"{self.directory}: the run directory cannot be written ({error.strerror}); "
                "set runs_dir to a folder that can, with --out DIR or runs_dir=DIR"
            ) from None
        return self

    def _acquire(self) -> None:
        path = self.directory / LOCK
        self._made_lock = not path.exists()
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise InputError(
                    f"{self.directory}: the run directory is in use by {holder}; "
                    "wait until it ends, or give this run another name with name=NAME"
                ) from None
            # The file may have been removed between opening and locking it; such a lock holds nothing.
            if path.exists() and os.path.sameopenfile(handle, other := os.open(path, os.O_RDONLY)):
                os.close(other)
                break
            os.close(handle)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle = handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._handle, 0)
        if isinstance(error, InputError):
            if self._made_lock and not self._holds_work():
                (self.directory / LOCK).unlink(missing_ok=True)
            self._remove_created()
        os.close(self._handle)

    def _holds_work(self) -> bool:
        """Whether a stage left its folder, which a refused one takes away when it had got nowhere, or paid replies."""
        return any(any(self.directory.glob(sign)) for sign in ("*/started.json", "requests/*.jsonl"))

    def _remove_created(self) -> None:
        """Removes the folders that were made, unless a stage has worked something out meanwhile."""
        if self.directory in self._created and not self._holds_work():
            shutil.rmtree(self.directory, ignore_errors=True)
        for folder in self._created:
            try:
                folder.rmdir()  # innermost first; stops at one that others use by now
            except OSError:
                continue
