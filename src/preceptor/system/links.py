"""Symbolic links in a run directory, which would lead what a run writes and deletes to places nobody named."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from preceptor.errors import InputErrors


def refuse_links(directory: Path, stages: Iterable[str]) -> None:
    """Checks what a run of `stages` writes to in its directory, before it writes anything.

    The run directory itself may be a link, or lie behind one: people keep runs on another disk. Inside it, no stage's
    folder may be a link, and no link may lead out.

    Raises:
        InputErrors: a sentence for each such link.
    """
    root = os.path.realpath(directory)
    folders = [directory / name for name in stages]
    errors = [
        f"{link}: is a symbolic link to {os.path.realpath(link)}; a run writes and deletes in its own directory alone: "
        "put a folder or a file there instead, or set runs_dir to where there is room"
        for link in dict.fromkeys(_links(directory, folders))
        if link in folders or not os.path.realpath(link).startswith(root + os.sep)
    ]
    if errors:
        raise InputErrors(errors)


def _links(directory: Path, folders: list[Path]) -> Iterable[Path]:
    """The links among the files of the run, its folders, and all that lies in them."""
    if not os.access(directory, os.R_OK) or not directory.is_dir():
        return  # it is made later, or is refused by whoever takes its lock
    with os.scandir(directory) as entries:
        # Older results that were moved aside are not written to.
        known = [entry for entry in entries if not entry.is_dir() or Path(entry.path) in folders or _shared(entry.name)]
    for entry in known:
        if entry.is_symlink():
            yield Path(entry.path)
        elif entry.is_dir():
            for folder, names, files in os.walk(entry.path):
                for name in (*names, *files):
                    path = os.path.join(folder, name)  # noqa: PTH118 - thousands of files, and Path is slow
                    if os.path.islink(path):  # noqa: PTH114
                        yield Path(path)


def _shared(name: str) -> bool:
    """Whether a folder is written to by every stage."""
    return name in ("report", "requests")
