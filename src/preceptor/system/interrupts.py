"""What Ctrl-C and SIGTERM do to a run: the first asks it to stop, while it trains after a checkpoint; the second stops.

with listening(say):        handlers, in the main thread and for the block alone
    with deferred():        here the first signal is only noted …
        while not asked():  … and whoever works looks for it where stopping loses nothing
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop by the signal `number`, and has stopped.

    `str()` says what came of it. Not an Exception, as little as KeyboardInterrupt is: nobody handles it by chance.
    """

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(said)
        self.number = number

    @property
    def code(self) -> int:
        """The exit code, as shells give it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class _Noted:
    """What has been heard; one object, for signals are the process's."""

    def __init__(self) -> None:
        self.number = 0
        self.deferring = False
        self.process = 0  # that listens; those forked from it have its handlers
        self.handlers: dict[int, Any] = {}  # what was there before ours
        self.say: Callable[[str], None] = lambda line: None


_noted = _Noted()


@contextmanager
def listening(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM raise Interrupted, or are noted first where that is `deferred`.

    Signals that are ignored (`nohup`, a shell's background job) stay so. In another thread than the main one, and
    inside another such block, nothing changes. `say` takes the line that tells what the first signal has set off.
    """
    if threading.current_thread() is not threading.main_thread() or _noted.handlers:
        yield
        return
    _noted.number, _noted.deferring, _noted.say, _noted.process = 0, False, say, os.getpid()
    try:
        for each in SIGNALS:
            if signal.getsignal(each) not in (signal.SIG_IGN, None):  # None: set by something other than Python
                _noted.handlers[each] = signal.signal(each, _take)
        yield
    finally:
        for number, handler in _noted.handlers.items():
            signal.signal(number, handler)
        _noted.handlers.clear()
        _noted.number = 0


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block the first signal is noted, for `asked`; one that nobody has acted upon is raised at its end."""
    _noted.deferring = True
    try:
        yield
    finally:
        _noted.deferring = False
    if _noted.number:
        raise Interrupted(_noted.number)


def asked() -> int:
    """The number of the signal that was noted; 0: none."""
    return _noted.number


def _take(number: int, frame: FrameType | None) -> None:
    first, _noted.number = not _noted.number, number
    if not (first and _noted.deferring):
        raise Interrupted(number)
    if os.getpid() != _noted.process:
        return  # a data worker, which a terminal signals too: its parent says it, and may still want its rows
    # A launcher signals whole groups: a data worker ends at once, which torch would raise here as a worker's failure,
    # in the step that is to be finished. Its rows are there already.
    if signal.SIGCHLD not in _noted.handlers:
        before = signal.getsignal(signal.SIGCHLD)
        if callable(before):
            _noted.handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    # From a thread: what was interrupted here may hold the locks that printing takes.
    line = f"{_NAMES[signal.Signals(number)]}: stops after this step and a checkpoint; a second one stops at once"
    threading.Thread(target=_noted.say, args=(line,), daemon=True).start()
