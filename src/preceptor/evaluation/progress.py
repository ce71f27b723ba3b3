"""Progress of an evaluation in lines: readable in a pipe, and proof of life."""

from __future__ import annotations

import time
from collections.abc import Callable

REPORT_SECONDS = 10.0


class Progress:
    """Counts rows of one piece of work and logs at most one line every `REPORT_SECONDS`.

    Args:
        what: how the line begins ("dae (2 of 4): answers").
        total: rows in all.
        log: takes a line.
    """

    def __init__(self, what: str, total: int, log: Callable[[str], None]) -> None:
        self.what, self.total, self.log = what, total, log
        self.done = 0
        self.started = self.reported = time.monotonic()

    def __call__(self, rows: int) -> None:
        """`rows` more are done."""
        self.done += rows
        now = time.monotonic()
        if now - self.reported < REPORT_SECONDS or self.done >= self.total:
            return
        self.reported = now
        rate = self.done / max(now - self.started, 1e-9)
        left = (self.total - self.done) / rate
        self.log(f"{self.what}: {self.done:,} of {self.total:,} rows, {rate:,.1f} rows/s, {left:,.0f} s left")
