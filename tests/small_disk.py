"""A disk of a size of one's choice, where mounting is permitted (a tmpfs)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A file system of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int, inodes: int | None = None) -> None:
        """To `size` bytes, and so many files and folders."""
        more = "" if inodes is None else f",nr_inodes={inodes}"
        _mount(self.folder, f"remount,size={size}{more}")

    def writable(self, yes: bool) -> None:
        _mount(self.folder, f"remount,{'rw' if yes else 'ro'}")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Skips the test where this process may not mount anything."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _mount(folder, f"size={size}", new=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs to mount a small tmpfs, which is permitted to root and not in every container")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _mount(folder: Path, options: str, *, new: bool = False) -> None:
    kind = ["-t", "tmpfs"] if new else []
    source = ["tmpfs"] if new else []
    subprocess.run(["mount", *kind, "-o", options, *source, str(folder)], check=True, capture_output=True)
