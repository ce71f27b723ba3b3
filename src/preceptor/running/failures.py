"""How a run that could not go on says why: the cause in one sentence, and how to go on from there."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from preceptor.errors import RunFailed
from preceptor.system.disk import full_disk
from preceptor.system.files import remove_interrupted, write_atomic
from preceptor.training.checkpoints import ASIDE

ERROR_FILE = "error.txt"


def stage_failed(error: Exception, name: str, directory: Path, command: str) -> RunFailed:
    """What to raise for a stage that failed with `error`; the traceback is written to `directory/error.txt`.

    That file may fail for the very reason the stage has: the cause is said all the same, without it.
    """
    trace = traceback.format_exc()
    full = full_disk(error, directory)
    if full is not None:
        _make_room(directory)
    where = ""
    with suppress(OSError):
        write_atomic(directory / ERROR_FILE, trace)
        where = f" (traceback: {directory / ERROR_FILE})"
    said = str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}"
    whole = " ".join(said.split())
    # What we say ourselves is short, and ends with what to do.
    whole = whole if isinstance(error, RunFailed) else whole[:500]
    cause, mended = (whole, "the cause is mended") if full is None else (full, "there is room")
    return RunFailed(
        f"stage {name} failed: {cause}; what is finished is kept, and once {mended} "
        f"`{command}` goes on from there{where}"
    )


@contextmanager
def between_stages(directory: Path, command: str) -> Iterator[None]:
    """Around what a run itself reads and writes (its recipe, records of stages): OSErrors become RunFailed."""
    try:
        yield
    except OSError as error:
        full = full_disk(error, directory)
        cause = full or f"{error.filename or directory}: cannot be written ({error.strerror or error})"
        raise RunFailed(
            f"{cause}; what is finished is kept, and once {'there is room' if full else 'that is mended'} `{command}` "
            "goes on from there"
        ) from error


def _make_room(directory: Path) -> None:
    """Removes what was being written when the disk was full, which nobody will read."""
    shutil.rmtree(directory / "checkpoints" / ASIDE, ignore_errors=True)
    for folder in (directory, directory / "checkpoints", directory / "store"):
        with suppress(OSError):
            remove_interrupted(folder)
