"""The live view: bars at the foot of a terminal while a run goes on, and log lines above them.

It exists so that a person sees each step at once, while what goes into a pipe or a file stays plain lines. Work that
makes progress asks for a `bar`; it gets one only while somebody has entered `display` in a terminal, and logs lines
otherwise. Nothing here may break a run: when drawing fails, the display ends and lines are logged again.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import RenderableType

FRAMES_PER_SECOND = 5
_DUMB = ("", "dumb", "unknown")


def clock(seconds: float) -> str:
    """Seconds as 42 s, 3 min 05 s or 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"


class Bar:
    """One piece of work on the display; made by `bar`."""

    def __init__(self, display: _Display, what: str, total: int, unit: str, done: int) -> None:
        self.what, self.total, self.unit, self.done, self.detail = what, total, unit, done, ""
        self._display = display
        self._first = done
        self._started = self._updated = time.monotonic()

    def update(self, done: int, detail: str | None = None) -> bool:
        """Shows that `done` of the total are done, and beneath it `detail`; False where nothing is shown any more."""
        if not self._display.on:
            return False
        self.done, self._updated = done, time.monotonic()
        self.detail = self.detail if detail is None else detail
        return True

    def close(self) -> None:
        """Takes the bar away."""
        self._display.remove(self)

    @property
    def numbers(self) -> str:
        """How much is done, and how much longer it takes at the rate so far."""
        count = f"{self.done:,} of {self.total:,} {self.unit}"
        done = self.done - self._first
        if done <= 0:
            return count
        left = (self._updated - self._started) / done * (self.total - self.done) - (time.monotonic() - self._updated)
        return f"{count}, {clock(max(left, 0.0))} left"


def bar(what: str, total: int, *, unit: str = "rows", done: int = 0) -> Bar | None:
    """A new bar at the foot of the terminal, `done` of `total` done already; None where there is no display."""
    if _current is None or not _current.on or total <= 0:
        return None
    return _current.add(Bar(_current, what, total, unit, done))


@contextmanager
def display(stream: TextIO | None = None) -> Iterator[None]:
    """Shows bars on `stream`, by default standard error, as long as the block runs and if it is a capable terminal.

    Lines written to standard error meanwhile, and to standard output where that is a terminal too, appear above the
    bars. In a pipe, under `TERM=dumb`, inside another display and in all but the first of several processes the block
    changes nothing. `NO_COLOR` takes the colours away.
    """
    global _current
    stream = sys.stderr if stream is None else stream
    if _current is not None or not _capable(stream):
        yield
        return
    shown = None
    with suppress(Exception):  # rich is not there, or finds the terminal not to its liking
        shown = _Display(stream)
        shown.start()
        _current = shown
    try:
        yield
    finally:
        _current = None
        if shown is not None:
            shown.stop()


def _capable(stream: TextIO) -> bool:
    first = os.environ.get("RANK", "0") == "0"
    return first and os.environ.get("TERM", "") not in _DUMB and _is_terminal(stream)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # somebody's own object, or closed
        return False


class _Display:
    """The bars, a console that draws them, and the standard streams led through it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        class OpenConsole(Console):
            # A run that is killed or suspended could not bring a hidden cursor back.
            def show_cursor(self, show: bool = True) -> bool:
                return False

        class CarefulLive(Live):
            def refresh(view) -> None:  # noqa: N805 - `self` is the display
                if not (self._bars or self._drawn):
                    return
                try:
                    super().refresh()
                except Exception:
                    self.on = False

        self.on = False
        self._stream = stream
        self._process = os.getpid()
        self._bars: list[Bar] = []
        self._drawn = False
        self._lock = threading.RLock()  # collecting garbage, which takes bars away, may set in while it is held
        self._console = OpenConsole(
            file=stream, force_terminal=True, force_interactive=True, highlight=False, markup=False, emoji=False
        )
        self._live = CarefulLive(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=FRAMES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._led: list[tuple[str, TextIO, _Lines]] = []

    def start(self) -> None:
        self._live.start()
        self.on = True
        for name in ("stderr", "stdout"):
            plain = getattr(sys, name)
            if plain is self._stream or _is_terminal(plain):
                lines = _Lines(plain, self._say)
                self._led.append((name, plain, lines))
                setattr(sys, name, lines)

    def stop(self) -> None:
        for name, plain, lines in self._led:
            lines.end()
            if getattr(sys, name) is lines:
                setattr(sys, name, plain)
        self.on = False
        if self._process == os.getpid():
            with suppress(Exception):
                self._live.stop()

    def add(self, new: Bar) -> Bar:
        with self._lock:
            self._bars.append(new)
        return new

    def remove(self, old: Bar) -> None:
        with self._lock:
            self._bars = [each for each in self._bars if each is not old]

    def _say(self, text: str) -> bool:
        """Prints whole lines above the bars; False where that cannot be done."""
        if not self.on:
            return False
        try:
            # Soft-wrapped: the terminal breaks a long line, and copying gives it back whole.
            self._console.print(text, soft_wrap=True)
        except Exception:
            self.on = False
            return False
        return True

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            bars = list(self._bars)
        self._drawn = bool(bars)
        if not self.on or not bars:
            return ""
        rows: list[RenderableType] = []
        for each in bars:
            grid = Table.grid(padding=(0, 1), expand=True)
            grid.add_column(no_wrap=True, overflow="ellipsis")
            grid.add_column(ratio=1, min_width=8)
            grid.add_column(no_wrap=True, overflow="ellipsis", justify="right")
            grid.add_row(
                Text(each.what, style="bold"), ProgressBar(each.total, min(each.done, each.total)), Text(each.numbers)
            )
            rows.append(grid)
            if each.detail:
                rows.append(Text(f"  {each.detail}", style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*rows)


class _Lines(io.TextIOBase):
    """A standard stream that hands whole lines to the display, and to the stream itself where the display is off."""

    def __init__(self, stream: TextIO, say: Callable[[str], bool]) -> None:
        self._stream, self._say = stream, say
        self._begun = threading.local()  # threads write their lines in pieces, each its own

    def write(self, text: str, /) -> int:
        *lines, rest = (self._rest() + text).split("\n")
        self._begun.text = rest
        if lines:
            # Bars that other libraries draw with carriage returns: what stands there last.
            self._put("\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines))
        return len(text)

    def end(self) -> None:
        """Hands on what lacks its end of line."""
        if rest := self._rest():
            self._begun.text = ""
            self._put(rest)

    def _rest(self) -> str:
        return cast("str", getattr(self._begun, "text", ""))

    def _put(self, text: str) -> None:
        if not self._say(text):
            self._stream.write(text + "\n")
            self._stream.flush()

    def flush(self) -> None:
        if "\r" not in self._rest():  # a question that waits for its answer, not somebody's bar
            self.end()
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)  # buffer, name, reconfigure, …


_current: _Display | None = None


def _leave_to_parent() -> None:
    """In a forked child: the terminal is the parent's, and a lock that it held when it forked is never given back."""
    global _current
    if _current is not None:
        _current.on, _current = False, None


os.register_at_fork(after_in_child=_leave_to_parent)
