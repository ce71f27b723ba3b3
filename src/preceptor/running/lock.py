"""One process at a time in a run directory."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from preceptor.errors import InputError, RunFailed
from preceptor.system.disk import full_disk
from preceptor.system.exclusive import hold, let_go

LOCK = ".lock"


class RunLock:
    """Holds a run directory for this process, creating it (and the folders above) when it is new.

    The lock belongs to the operating system, so it goes with the process however that ends. When the block
    ends in an error, folders that entering it created are removed again if no stage has worked anything out:
    wrong input leaves nothing behind, nor does a disk on which nothing fits.

    Args:
        directory: the run directory.
        log: takes the line that tells of a file system without locks, where nothing keeps a second process out.

    Raises:
        InputError: another process holds it, or it cannot be written.
        RunFailed: its disk is full.
    """

    def __init__(self, directory: Path, log: Callable[[str], None] = lambda line: None) -> None:
        self.directory = directory
        self._log = log
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
            full = full_disk(error, self.directory)
            if self._handle >= 0:
                self._release(remove=True)
            self._remove_created()
            if full is not None:
                raise RunFailed(f"{full}; nothing was begun: make room and run the same command again") from None
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
                unlocked = hold(handle)
            except BlockingIOError:
                holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise InputError(
                    f"{self.directory}: the run directory is in use by {holder}; "
                    "wait until it ends, or give this run another name with name=NAME"
                ) from None
            except OSError:
                os.close(handle)
                raise
            # The file may have been removed between opening and locking it; such a lock holds nothing.
            if _is_at(path, handle):
                break
            let_go(handle)
        self._handle = handle
        if unlocked is not None:
            self._log(
                f"{self.directory}: its file system cannot lock files ({unlocked}), so that nothing keeps a second "
                "process out; start one at a time"
            )
        os.ftruncate(handle, 0)
        # Told to whoever is kept out; a full disk keeps a run from going on soon enough.
        with suppress(OSError):
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = isinstance(error, Exception)
        with suppress(OSError):  # of a disk that is gone or read-only by now; the lock ends with its handle
            os.ftruncate(self._handle, 0)
        self._release(remove=failed and not self._holds_work())
        if failed:
            self._remove_created()

    def _release(self, *, remove: bool) -> None:
        if remove and self._made_lock:
            with suppress(OSError):
                (self.directory / LOCK).unlink(missing_ok=True)
        let_go(self._handle)
        self._handle = -1

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


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
