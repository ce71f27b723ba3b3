"""Progress in a pipe (few lines, right rates) and on a live display (every row at once, no lines)."""

from __future__ import annotations

import gc

import pytest

from preceptor.evaluation import progress
from preceptor.evaluation.progress import Progress
from preceptor.system import live
from terminal import Display


class Clock:
    """A clock that goes when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setattr(live, "time", made)
    return made


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Display:
    made = Display()
    monkeypatch.setattr(live, "_current", made)
    return made


def work(clock: Clock, lines: list[str], **given: int | str) -> Progress:
    """200 rows in 50 s, with 12 tokens each."""
    made = Progress("dae (1 of 2): answers", 200, lines.append, **given)  # type: ignore[arg-type]
    for _ in range(200 - made.done):
        clock.now += 0.25
        made(1)
    return made


def test_a_line_every_ten_seconds_and_none_for_the_last_row(clock: Clock) -> None:
    lines: list[str] = []
    work(clock, lines)
    assert lines == [
        "dae (1 of 2): answers: 40 of 200 rows, 4.0 rows/s, 40 s left",
        "dae (1 of 2): answers: 80 of 200 rows, 4.0 rows/s, 30 s left",
        "dae (1 of 2): answers: 120 of 200 rows, 4.0 rows/s, 20 s left",
        "dae (1 of 2): answers: 160 of 200 rows, 4.0 rows/s, 10 s left",
    ]


def test_rows_that_were_there_are_no_work(clock: Clock) -> None:
    lines: list[str] = []
    work(clock, lines, done=120, unit="questions")
    assert lines == ["dae (1 of 2): answers: 160 of 200 questions, 4.0 questions/s, 10 s left"]


def test_tokens_and_details(clock: Clock) -> None:
    lines: list[str] = []
    made = Progress("judge", 100, lines.append)
    clock.now += 20
    made(50, 3000, detail="$0.12 so far")
    assert lines == ["judge: 50 of 100 rows, 150 tokens/s, 20 s left, $0.12 so far"]


def test_on_a_display_every_row_is_shown_and_no_line_logged(clock: Clock, display: Display) -> None:
    lines: list[str] = []
    made = Progress("dae", 40, lines.append, done=10)
    assert display.shown == ["dae | 10 of 40 rows | "]
    clock.now += 4
    made(1, detail="$0.12")
    assert display.shown == ["dae | 11 of 40 rows, 1 min 56 s left | 0.2 rows/s, $0.12"]
    clock.now += 16  # no row for a while: the time that is left goes down nevertheless
    assert display.shown == ["dae | 11 of 40 rows, 1 min 40 s left | 0.2 rows/s, $0.12"]
    clock.now += 200
    assert display.shown == ["dae | 11 of 40 rows, 0 s left | 0.2 rows/s, $0.12"]
    made(29)
    assert display.shown == []
    assert lines == []


def test_work_that_stops_in_its_middle_takes_its_bar_along(display: Display) -> None:
    made = Progress("dae", 40, print)
    made(3)
    assert len(display.shown) == 1
    del made
    gc.collect()
    assert display.shown == []


def test_lines_again_where_the_display_has_ended(clock: Clock, display: Display) -> None:
    lines: list[str] = []
    made = Progress("dae", 100, lines.append)
    display.on = False
    clock.now += 20
    made(50)
    assert lines == ["dae: 50 of 100 rows, 2.5 rows/s, 20 s left"]


def test_nothing_to_do_has_no_bar(display: Display) -> None:
    Progress("dae", 0, print)
    kept = Progress("dae", 7, print, done=7)
    assert kept.done == 7
    assert display.shown == []
