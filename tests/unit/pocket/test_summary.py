"""The study's report: intervals, paired differences, the table."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from preceptor.pocket.summary import TITLES, over_questions, over_seeds, summarise, table
from preceptor.pocket.tasks import TASKS


def scores(rate: float, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{rate} {seed}")
    kinds = [kind for kind in TASKS for _ in range(20)]
    correct = "".join("1" if rng.random() < rate else "0" for _ in kinds)
    tasks = {kind: sum(bit == "1" for bit, k in zip(correct, kinds, strict=True) if k == kind) / 20 for kind in TASKS}
    score = sum(tasks.values()) / len(tasks)
    return {
        "score": score,
        "tasks": tasks,
        "correct": correct,
        "kinds": kinds,
        "kl_teacher": 1 - rate,
        "attention_kl": 0.5,
        "seconds": 10.0,
    }


RATES = {"teacher": 1.0, "sft": 0.3, "kd_prediction": 0.4, "kd_attention": 0.0, "kd_both": 0.8, "sft_clean": 0.35}


def test_intervals_over_seeds_are_students_t() -> None:
    found = over_seeds([0.5, 0.6, 0.7])
    # t(0.975, 2 degrees of freedom) = 4.302653, standard deviation 0.1.
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.score == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half), abs=1e-6)


def test_intervals_over_questions_resample_within_tasks() -> None:
    # One task always right, one always wrong: nothing varies within a task, so the interval has no width.
    values = [1.0] * 10 + [0.0] * 30
    found = over_questions(values, ["a"] * 10 + ["b"] * 30)
    assert (found.score, found.low, found.high) == (0.5, 0.5, 0.5)
    # One task of n = 400 with rate 0.5: the normal interval is 0.5 +- 1.96 * 0.025.
    found = over_questions([0.0, 1.0] * 200, ["a"] * 400)
    assert (found.low, found.high) == pytest.approx((0.451, 0.549), abs=0.006)


def test_one_seed_and_several_give_a_report_with_paired_differences() -> None:
    one = summarise({43: {name: scores(rate, 43) for name, rate in RATES.items()}})
    assert list(one) == list(TITLES)
    assert one["kd_both"]["over_sft"]["score"] == pytest.approx(
        one["kd_both"]["general"]["score"] - one["sft"]["general"]["score"]
    )
    assert one["kd_both"]["over_sft"]["low"] > 0.3
    assert "over_sft" not in one["sft"]
    without = summarise({43: {name: scores(rate, 43) for name, rate in RATES.items() if name != "sft_clean"}})
    assert list(without) == list(TITLES)[:-1]
    assert one["teacher"]["general"] == {"score": 1.0, "low": 1.0, "high": 1.0}
    seeds = {seed: {name: scores(rate, seed) for name, rate in RATES.items()} for seed in (43, 44, 45)}
    several = summarise(seeds)
    mean = sum(each["sft"]["score"] for each in seeds.values()) / 3
    assert several["sft"]["general"]["score"] == pytest.approx(mean)
    assert several["sft"]["general"]["low"] < mean < several["sft"]["general"]["high"]


def test_the_table_has_a_line_per_kind_and_a_column_per_model() -> None:
    models = summarise({43: {name: scores(rate, 43) for name, rate in RATES.items()}})
    lines = table(models).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(title in lines[0] for title in TITLES.values())
    assert [line.split()[0] for line in lines[2 : 2 + len(TASKS)]] == list(TASKS)
    assert lines[2].split()[1] == "1.00"
