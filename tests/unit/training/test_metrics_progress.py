"""Progress of a training: lines in a pipe, a bar that moves with every step on a live display."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from invariant.trainers import Stop, StopAt, trainer
from preceptor.system import live
from preceptor.training.metrics import PlainProgress
from terminal import Display

LINE = r"step {}/9  next_token \d\.\d{{4}}  grad norm [\d.]+  \d+ targets/s  \d+ s left"
LAST = LINE.format(9).removesuffix(r"  \d+ s left")
HELD_OUT = r"step {}/9  held out: next_token \d\.\d{{4}}"


def test_lines_in_a_pipe(tmp_path: Path) -> None:
    lines: list[str] = []
    trainer(tmp_path, PlainProgress(lines.append, ("next_token",)), eval_strategy="steps", eval_steps=6).train()
    expected = [LINE.format(step) for step in (2, 4, 6, 8, 9)]
    expected[-1] = LAST  # nothing is left then
    expected.insert(3, HELD_OUT.format(6))
    expected.append(HELD_OUT.format(9))
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected):
        assert re.fullmatch(pattern, line)


class Watch(TrainerCallback):
    """Notes what the display shows at the end of each step."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.seen: list[str] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen += self.display.shown


def test_a_bar_on_a_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    display = Display()
    monkeypatch.setattr(live, "_current", display)
    lines: list[str] = []
    watch = Watch(display)
    held_out = {"eval_strategy": "steps", "eval_steps": 6}
    with pytest.raises(Stop):
        trainer(tmp_path, PlainProgress(lines.append, ("next_token",), "kd"), watch, StopAt(7), **held_out).train()
    assert [line.split(",")[0] for line in watch.seen[1:]] == [f"kd | {step} of 9 steps" for step in range(1, 8)]
    assert watch.seen[0] == "kd | 0 of 9 steps | "
    figures = [line.rpartition(" | ")[2] for line in watch.seen]
    assert figures[1] == ""
    assert re.fullmatch(r"next_token \d\.\d{4}  grad norm [\d.]+  \d+ targets/s", figures[2])
    assert figures[2] == figures[3] != figures[4]
    assert [line.partition(":")[0] for line in lines] == ["step 6/9  held out"]
    display._bars.clear()

    # Resumed from step 6, and at the end the last line stays.
    again = PlainProgress(lines.append, ("next_token",), "kd")
    trainer(tmp_path, again, watch, **held_out).train(resume_from_checkpoint=True)
    assert watch.seen[8] == "kd | 6 of 9 steps | "
    assert display.shown == []
    assert len(lines) == 3
    assert re.fullmatch(HELD_OUT.format(9), lines[1])
    assert re.fullmatch(LAST, lines[2])
