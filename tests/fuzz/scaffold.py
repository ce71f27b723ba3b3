"""The promise every parser of ours makes of any bytes whatever, and the check of it.

A parser returns a value or raises InputError. It raises nothing else, ends soon, stays within a bound of memory, and
writes, deletes, connects to and starts nothing outside the folder it was given. What its InputError says may go to a
terminal: a few lines of bounded length, in which no control character is left.

Each `target_NAME.py` beside this file defines one `TARGET`. The tests try every target on its seeds, on kept cases and
on a few mutations; `scripts/fuzz.py` tries one for as long as it finds new code.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from preceptor.errors import InputError, InputErrors

HERE = Path(__file__).parent
CASES = HERE / "cases"
LONGEST_SENTENCE = 2000  # characters
MOST_SENTENCES = 101


@dataclass(frozen=True)
class Target:
    """A parser under test.

    `check(data, folder)` gives the bytes to the parser; `folder` is empty, and the only place it may write to. It
    returns whatever it likes, lets InputError through, and asserts what must hold of a value that was accepted.
    """

    name: str
    check: Callable[[bytes, Path], object]
    seeds: Sequence[bytes]
    """Good and nearly good inputs, from which mutations start."""
    words: Sequence[bytes] = ()
    """What matters in the format: mutations insert these."""
    seconds: float = 5.0
    """Processor time within which one input must be done."""
    refusals: tuple[type[BaseException], ...] = field(default=(InputError,))
    """The errors by which it refuses; their wording is checked."""


class Broken(AssertionError):  # noqa: N818 - a promise is
    """A promise that was not kept, other than by raising something."""


def names() -> list[str]:
    """The targets there are, by the names of their files."""
    return sorted(path.stem.removeprefix("target_") for path in HERE.glob("target_*.py"))


def load(name: str) -> Target:
    """The target of `target_NAME.py`. It runs with tests/ on the path, as pytest and the driver put it."""
    target: Target = importlib.import_module(f"fuzz.target_{name}").TARGET
    return target


def cases(name: str) -> list[Path]:
    """Inputs that once broke a target's promise, kept in `cases/NAME/` under a name that says what they were."""
    return sorted(path for path in (CASES / name).glob("*") if path.is_file())


def promise(target: Target, data: bytes, folder: Path) -> bool:
    """Whether the target accepted the bytes; raises what broke its promise. `folder` must be empty or its own."""
    try:
        with _confined(folder), _within(target.seconds):
            target.check(data, folder)
    except target.refusals as error:
        check_message(error)
        return False
    return True


def check_message(error: BaseException) -> None:
    """Raises Broken unless what an error says may be printed as it is."""
    sentences = str(error).split("\n") if isinstance(error, InputErrors) else [str(error)]
    if not all(sentence.strip() for sentence in sentences):
        raise Broken(f"an error that says nothing: {sentences[:3]!a}")
    if len(sentences) > MOST_SENTENCES:
        raise Broken(f"{len(sentences)} sentences at once")
    for sentence in sentences:
        if len(sentence) > LONGEST_SENTENCE:
            raise Broken(f"a sentence of {len(sentence)} characters: {sentence[:200]!a}")
        if bad := sorted({letter for letter in sentence if not printable(letter)}):
            raise Broken(f"a sentence with {bad[:5]!a} in it: {sentence[:300]!a}")


def printable(letter: str) -> bool:
    """Whether a terminal shows the character: no control, no half of a pair, nothing that turns the line around."""
    return unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") and letter not in _TURNING


_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

# Events of sys.audit by which something leaves this process, and which of their arguments are paths.
_WRITES = {
    "os.mkdir": (0,), "os.remove": (0,), "os.rmdir": (0,), "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,),
    "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,), "shutil.rmtree": (0,),
    "shutil.move": (0, 1), "shutil.copyfile": (1,),
}  # fmt: skip
_NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "socket.connect",
          "socket.getaddrinfo", "socket.gethostbyname", "pickle.find_class", "os.kill", "pty.spawn"}  # fmt: skip
_allowed: list[str] = []
_hooked: list[bool] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event in _NEVER:
        raise Broken(f"{event} {arguments!a:.200}")
    if event == "open":
        path, mode, flags = arguments
        wrote = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        paths = [path] if wrote or (isinstance(mode, str) and set(mode) & set("wax+")) else []
    else:
        paths = [arguments[place] for place in _WRITES.get(event, ())]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            real = os.path.realpath(os.fsdecode(path))
            if not any(real == root or real.startswith(root + os.sep) for root in _allowed):
                raise Broken(f"{event} outside the folder: {real!a}")


@contextmanager
def _confined(folder: Path) -> Iterator[None]:
    """Nothing is written outside `folder` (and the null device), nothing started, and nobody called."""
    if not _hooked:
        sys.addaudithook(_audit)  # it stays for good, and is idle outside this block
        _hooked.append(True)
    _allowed[:] = [os.path.realpath(folder), os.devnull]
    try:
        yield
    finally:
        _allowed.clear()


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Processor time, so that a busy machine fails nobody."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Broken(f"not done after {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
