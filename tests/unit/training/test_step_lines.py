"""Lines of steps go on where a training goes on, whatever a power cut has left at the end of their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preceptor.system import files
from preceptor.training.step_lines import StepLines

TORN = {
    "cut": b'{"step": 3, "lo',
    "no JSON, and a line after it": b'\x00\x00\x00\x00\n{"step": 2}\n',
    "no UTF-8": b'{"step": 2, "rows": "\xff"}\n',
    "no step": b"{}\n",
    "nested without end": b"[" * 100_000 + b"\n",
}


def steps(lines: StepLines) -> list[int]:
    return [json.loads(line)["step"] for line in lines.path.read_text().splitlines()]


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_end_is_cut(torn: str, tmp_path: Path) -> None:
    lines = StepLines(tmp_path / "lines.jsonl")
    for step in (1, 2):
        lines.add(step, {"loss": 0.5})
    with lines.path.open("ab") as stream:
        stream.write(TORN[torn])
    lines.cut(2)
    lines.add(3, {"loss": 0.25})
    assert steps(lines) == [1, 2, 3]


def test_later_steps_are_cut_and_a_new_training_has_none(tmp_path: Path) -> None:
    lines = StepLines(tmp_path / "lines.jsonl")
    lines.cut(0)  # of no file
    assert steps(lines) == []
    for step in (0, 1, 2, 3):  # 0: measured before the first step
        lines.add(step, {})
    lines.cut(2)
    assert steps(lines) == [0, 1, 2]
    lines.cut(0)
    assert steps(lines) == []


def test_a_line_is_on_the_disk_when_it_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(files.os, "fsync", lambda number: flushed.append(files.os.fstat(number).st_size))
    StepLines(tmp_path / "lines.jsonl").add(7, {"loss": float("nan")})
    assert (tmp_path / "lines.jsonl").read_text() == '{"step": 7, "loss": null}\n'
    assert flushed == [26]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "lines.jsonl").symlink_to("/dev/full")
    with pytest.raises(files.DiskFull) as full:
        StepLines(tmp_path / "lines.jsonl").add(1, {})
    assert (full.value.filename, full.value.needed) == (str(tmp_path / "lines.jsonl"), 12)
