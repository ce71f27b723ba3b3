"""Lines on a terminal are broken between words; in a pipe they stay whole."""

from __future__ import annotations

import io
import os
import pty
import warnings
from collections.abc import Iterator

import pytest

from preceptor.cli import main
from preceptor.cli.output import fail, fitted, progress
from preceptor.cli.plan import _once

LONG = "kd: its data are wrong because " + "word " * 30 + "and so on"


class Terminal(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, False)
    monkeypatch.setenv("COLUMNS", "40")
    yield Terminal(theirs)
    os.close(ours)
    os.close(theirs)


def test_a_terminal_gets_lines_of_its_width(terminal: Terminal) -> None:
    lines = fitted(LONG, terminal).split("\n")
    assert max(map(len, lines)) <= 40
    assert all(line.startswith("  ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == LONG
    assert fitted("  short", terminal) == "  short"


def test_what_has_no_place_to_break_stays_whole(terminal: Terminal) -> None:
    path = "/a" * 40
    assert path in fitted(f"see {path} there", terminal)
    assert "well-known-word-with-hyphens-inside" in fitted("x " * 15 + "well-known-word-with-hyphens-inside", terminal)


def test_a_step_fits_a_line_by_leaving_figures_out(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    step, speed = "kd: step 10/500  logits 3.6629  attention 1.8469", "  207 targets/s"
    line = f"{step}  grad norm 0.00262{speed}  9 min 58 s left"
    for width, expected in ((200, line), (80, f"{step}{speed}  9 min 58 s left"), (70, f"{step}  9 min 58 s left")):
        monkeypatch.setenv("COLUMNS", str(width))
        assert fitted(line, terminal) == expected
    assert fitted(line, io.StringIO()) == line


def test_indented_lines_keep_their_indent(terminal: Terminal) -> None:
    lines = fitted("one\n    " + "word " * 20, terminal).split("\n")
    assert lines[0] == "one"
    assert lines[1].startswith("    word")
    assert lines[2].startswith("      word")


@pytest.mark.parametrize("columns", ["", "no", "5"])
def test_a_width_that_cannot_be_used(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "word" in fitted(LONG, terminal)


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    progress(LONG)
    assert fail(2, [LONG], False) == 2
    assert fail(130, ["stopped"], False) == 130
    assert capsys.readouterr().err == f"{LONG}\nerror: {LONG}\nstopped\n"


def test_a_plan_says_once_what_stages_say_of_the_same_data(capsys: pytest.CaptureFixture[str]) -> None:
    log = _once(["kd", "dae"])
    for line in (
        "kd: rows: 4 rows",
        "dae: rows: 4 rows",
        "dae: shop: 2 rows",
        "rows: 4 rows",
        "kd: other",
        "odd: line",
    ):
        log(line)
    assert capsys.readouterr().err == "rows: 4 rows\nshop: 2 rows\nother\nodd: line\n"


@pytest.mark.parametrize(("options", "heard"), [([], 1), (["default"], 3)])
def test_users_hear_no_warnings_for_programmers(
    options: list[str], heard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.warnoptions", options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["--version"]) == 0
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.warn("something", category, stacklevel=1)
    assert len(caught) == heard
