"""Standard streams as they may be: closed, on a full disk, in an encoding that lacks our signs."""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path

_SPELLED = "preceptor.spelled"


def steady() -> None:
    """Makes sure that there are standard streams, and that nothing printed is too much for their encoding.

    A file that is opened while a standard stream is closed takes its number, and whatever a library prints would go
    into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for good
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELLED)


def drop_output() -> None:
    """Forgets what could not be printed, over which the interpreter would complain as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _spell(error: UnicodeError) -> tuple[str, int]:
    r"""What an encoding lacks as `\u2026`, which JSON reads as well."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


codecs.register_error(_SPELLED, _spell)
