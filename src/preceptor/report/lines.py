"""Files of a run as they are found: whole, torn, of a newer version or of another program."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preceptor.errors import shown
from preceptor.report.values import cleaned

Say = Callable[[str], None]
"""Takes one sentence on what is wrong."""


LARGEST = 2 << 30
"""Bytes of a file that are read; a million log lines have a fifth of that."""


def text_of(path: Path, folder: Path, *, errors: str = "strict") -> str:
    """The text of a file of a run; a run from a stranger may hold links to what its reader must not show to others.

    Args:
        path: the file.
        folder: the run or stage it belongs to, out of which no link may lead.
        errors: as of `open`.

    Raises:
        OSError: it cannot be read, leads out of `folder`, is no plain file (a pipe would be waited for without end),
            or has more than `LARGEST` bytes.
        UnicodeDecodeError: it is not UTF-8, and `errors` is "strict".
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(errno.EPERM, "it is a link that leads out of the run", str(path))
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    if state.st_size > LARGEST:
        raise OSError(errno.EFBIG, f"it has {state.st_size:,} bytes", str(path))
    return path.read_text(encoding="utf-8", errors=errors)


def read_object(path: Path, say: Say) -> dict[str, Any] | None:
    """A JSON object; None, and a sentence, where the file is no such thing."""
    try:
        value = json.loads(text_of(path, path.parent))
    except OSError as error:
        say(f"{path.name}: cannot be read ({error.strerror})")
        return None
    except (ValueError, RecursionError):
        say(f"{path.name}: is not JSON; was it cut short or edited?")
        return None
    if not isinstance(value, dict):
        say(f"{path.name}: holds {shown(value)} where a JSON object belongs")
        return None
    faults: set[str] = set()
    found: dict[str, Any] = cleaned(value, faults)
    _told(path, faults, say)
    return found


def read_lines(path: Path, say: Say, *, folder: Path | None = None) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines, those that cannot be read left out and counted.

    `folder` is the stage that the file belongs to; its own folder where it is not given.
    """
    try:
        text = text_of(path, path.parent if folder is None else folder, errors="replace")
    except OSError as error:
        say(f"{path.name}: cannot be read ({error.strerror})")
        return []
    found: list[dict[str, Any]] = []
    broken: list[int] = []
    faults: set[str] = set()
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(cleaned(value, faults))
        else:
            broken.append(number)
    if broken == [len(lines)] and not text.endswith("\n"):
        say(f"{path.name}: its last line is cut short, as by a kill; the {len(found):,} before it are used")
    elif broken:
        counted = f"line {broken[0]:,}" if len(broken) == 1 else f"{len(broken):,} lines (the first is {broken[0]:,})"
        say(f"{path.name}: {counted} cannot be read as JSON objects; the other {len(found):,} are used")
    _told(path, faults, say)
    return found


def _told(path: Path, faults: set[str], say: Say) -> None:
    if faults:
        say(f"{path.name}: has {' and '.join(sorted(faults))}, which are left out")


def of_newer_format(value: dict[str, Any], known: int) -> bool:
    """Whether a later version of preceptor wrote it, whose fields may mean something else."""
    number = value.get("format")
    return isinstance(number, int) and number > known
