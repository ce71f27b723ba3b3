"""Progress of a piece of work: a bar in a terminal, and in a pipe lines that are readable and proof of life."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable

from preceptor.system import live

REPORT_SECONDS = 10.0


class Progress:
    """Counts rows of one piece of work; shows each at once on a live display (`system.live`) where there is one.

    Elsewhere it logs at most one line every `REPORT_SECONDS`, and none for the last row: what follows says that the
    work is done.

    Args:
        what: how the line begins ("dae (2 of 4): answers").
        total: rows in all.
        log: takes a line.
        unit: what is counted.
        done: rows that were there already; they count as done but not as work, so that rate and time left are right.
    """

    def __init__(self, what: str, total: int, log: Callable[[str], None], *, unit: str = "rows", done: int = 0) -> None:
        self.what, self.total, self.log, self.unit = what, total, log, unit
        self.done = self._first = done
        self.tokens = 0
        self.started = self.reported = time.monotonic()
        self._bar = live.bar(what, total, unit=unit, done=done) if done < total else None
        if self._bar is not None:
            # Work that stops in its middle leaves no bar behind.
            weakref.finalize(self, self._bar.close).atexit = False

    def __call__(self, rows: int, tokens: int = 0, *, detail: str = "") -> None:
        """`rows` more are done, with `tokens` written in them; the rate is in tokens where any were told.

        `detail` is added to the line ("$0.12 so far").
        """
        self.done += rows
        self.tokens += tokens
        now = time.monotonic()
        seconds = max(now - self.started, 1e-9)
        rate = f"{self.tokens / seconds:,.0f} tokens/s"
        if not self.tokens:
            rate = f"{(self.done - self._first) / seconds:,.1f} {self.unit}/s"
        more = [detail] if detail else []
        if self._bar is not None and self._bar.update(self.done, ", ".join([rate, *more])):
            if self.done >= self.total:
                self._bar.close()
            return
        if now - self.reported < REPORT_SECONDS or self.done >= self.total:
            return
        self.reported = now
        left = (self.total - self.done) * seconds / max(self.done - self._first, 1)
        line = [f"{self.done:,} of {self.total:,} {self.unit}", rate, f"{left:,.0f} s left", *more]
        self.log(f"{self.what}: {', '.join(line)}")
