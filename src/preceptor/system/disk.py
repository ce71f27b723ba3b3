"""What a disk that takes nothing more looks like through libraries, told in one sentence.

Python's own functions give an error number. safetensors and tokenizers (Rust) put it into their text, and torch and
numpy say only that they wrote less than they wanted.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from preceptor.errors import InputError, RunFailed
from preceptor.faults import causes

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_SAID = re.compile(r"No space left on device|Disk quota exceeded|\bos error (28|122)\b", re.IGNORECASE)
# Of writing in general; a full disk is the cause where it has no room.
_CUT_SHORT = re.compile(
    r"PytorchStreamWriter failed|unexpected pos \d|file write failed|iostream error|\d+ requested and \d+ written"
)
# What data workers hand over lies in shared memory, which containers keep small, and is no file of ours.
_NO_DISK = re.compile(r"/dev/shm|</torch_|shared memory", re.IGNORECASE)
_ROOM = 16 << 20  # bytes
_SPARE_INODES = 2


class DiskFull(OSError):  # noqa: N818 - says what happened
    """A file that did not fit on its disk: `needed` bytes were to be written to `filename`."""

    def __init__(self, number: int, path: str | Path, needed: int) -> None:
        super().__init__(number, os.strerror(number), str(path))
        self.needed = needed


def full_disk(error: BaseException, folder: Path) -> str | None:
    """Says that a disk is full, where that is what `error` or one of its causes comes from; else None.

    Args:
        error: of whatever library.
        folder: where was written, for errors that name no path.
    """
    for each in causes(error):
        number = each.errno if isinstance(each, OSError) else None
        # Our own sentences quote others: a server whose disk is full, say.
        said = "" if isinstance(each, InputError | RunFailed) or _NO_DISK.search(str(each)) else str(each)
        if number in FULL or _SAID.search(said) or (_CUT_SHORT.search(said) and (_free(folder) or 0) < _ROOM):
            path = Path(str(each.filename)) if isinstance(each, OSError) and each.filename else folder
            what = "the disk quota is used up" if number == errno.EDQUOT else "the disk is full"
            return f"{path}: {what} ({_figures(path, each)})"
    return None


def _figures(path: Path, error: BaseException) -> str:
    """How much is free, and needed where that is known."""
    there = next((each for each in (path, *path.parents) if each.exists()), Path("/"))
    try:
        space = os.statvfs(there)
    except OSError:
        return "nobody knows how much is free"
    needed = error.needed if isinstance(error, DiskFull) else None
    free = space.f_bavail * space.f_frsize
    # One or two are free again by now: those of the file that could not be made.
    if space.f_files and space.f_favail <= _SPARE_INODES and free > (needed or 0):
        return f"no more files: {space.f_files - space.f_favail:,} of {space.f_files:,} inodes are in use"
    more = "" if needed is None else f", and {_size(needed)} are to be written"
    return f"{_size(free)} of {_size(space.f_blocks * space.f_frsize)} are free{more}"


def _size(count: int) -> str:
    """Bytes in a unit of powers of 1000, as disks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _free(folder: Path) -> int | None:
    try:
        space = os.statvfs(folder)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize
