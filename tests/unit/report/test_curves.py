"""What training logged, as series over steps."""

from __future__ import annotations

import math
from pathlib import Path

import toy_runs
from preceptor.report.curves import POINTS, series_of
from preceptor.report.read import read_stage


def series(tmp_path: Path, *lines: dict[str, object]) -> tuple[list[int], dict[str, list[float | None]]]:
    toy_runs.training(tmp_path, "kd")
    toy_runs.write_lines(tmp_path / "kd" / "metrics.jsonl", lines)
    return series_of(read_stage(tmp_path / "kd", lambda problem: None))


def test_training_and_evaluation_of_one_step_are_one_point(tmp_path: Path) -> None:
    steps, found = series(
        tmp_path,
        {"step": 2, "loss": 3.0, "logits/shop": 2.0, "note": "text", "flag": True},
        {"step": 2, "eval_loss": 2.5},
        {"step": 4, "loss": 1.0, "logits/shop": math.nan, "gone": None},
    )
    assert steps == [2, 4]
    assert found == {"loss": [3.0, 1.0], "logits/shop": [2.0, None], "eval_loss": [2.5, None]}


def test_of_a_step_logged_twice_the_later_counts(tmp_path: Path) -> None:
    """After a kill between a log line and its checkpoint."""
    steps, found = series(tmp_path, {"step": 2, "loss": 3.0}, {"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0})
    assert (steps, found["loss"]) == ([1, 2], [4.0, 2.0])


def test_a_long_curve_is_thinned_and_keeps_its_end_and_its_evaluations(tmp_path: Path) -> None:
    count = 3 * POINTS + 2
    lines = [{"step": n, "loss": float(n), **({"eval_loss": 1.0} if n == 7 else {})} for n in range(1, count + 1)]
    steps, found = series(tmp_path, *lines)
    assert POINTS * 0.7 < len(steps) <= POINTS + 1
    assert steps[-1] == count
    assert found["loss"] == [float(step) for step in steps]
    assert found["eval_loss"][steps.index(7)] == 1.0


def test_a_short_curve_is_whole(tmp_path: Path) -> None:
    steps, _ = series(tmp_path, *({"step": n, "loss": 1.0} for n in range(POINTS)))
    assert len(steps) == POINTS
