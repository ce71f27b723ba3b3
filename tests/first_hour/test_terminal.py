"""What a person sees in a plain terminal of 80 columns, and what a pipe gets; pipes that close early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from terminal import run_in_terminal

PROGRAM = "import os, sys; os.chdir({folder!r}); from preceptor.cli import main; sys.exit(main({arguments!r}))"
BROKEN = """\
name: shop
data:
  rows: {path: rows.jsonl, holdout: -1, formta: csv}
stages:
  kd: {kind: distil, student: ./student, teacher: ./teacher, data: rows}
  sft: {kind: sft, model: stage:kd, data: [rows], training: {learning_rat: 1.0e-5, seed: 4}}
"""


def shown(arguments: list[str], folder: Path, code: int, **settings: str) -> list[str]:
    """The lines on a terminal of 80 columns after a command that ends with `code`."""
    seen = run_in_terminal(PROGRAM.format(folder=str(folder), arguments=arguments), width=80, environment=settings)
    assert seen.code == code, seen.text
    assert "\x1b" not in seen.text, "nothing goes on long enough for a bar"
    return seen.text.replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 0),
        (["init", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["rnu"], 2),
        (["init"], 2),
        (["run"], 2),
        (["run", "nosuch.yaml"], 2),
        (["plan", "broken.yaml"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_line_is_wider_than_the_terminal(arguments: list[str], code: int, term: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(BROKEN)
    lines = shown(arguments, tmp_path, code, TERM=term)
    assert lines
    assert max(map(len, lines)) <= 80
    if code:
        assert lines[0].startswith("error: ")
        assert all(line.startswith(("error: ", "  ")) for line in lines)


def test_a_pipe_gets_a_line_for_each_mistake(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(BROKEN)
    done = subprocess.run(
        [sys.executable, "-m", "preceptor", "run", "broken.yaml"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "40"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("error: broken.yaml:") for line in lines)
    assert max(map(len, lines)) > 80
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["run", "--help"], ["--help"], ["completion", "zsh"], ["--version"]])
def test_a_pipe_that_closes_early_is_no_mishap(arguments: list[str], tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)  # as `| head -0` does; what is written afterwards has no reader
    process = subprocess.Popen(
        [sys.executable, "-m", "preceptor", *arguments], cwd=tmp_path, stdout=theirs, stderr=subprocess.PIPE, text=True
    )
    os.close(theirs)
    _, errors = process.communicate(timeout=120)
    assert errors == ""
    assert process.returncode == 1
