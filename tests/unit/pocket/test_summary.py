"""The study's report: intervals, paired differences, the Pareto front, the tables."""

from __future__ import annotations

import math
from typing import Any

import pytest

from preceptor.pocket.methods import DISTILLED, METHODS
from preceptor.pocket.shop import SHOP
from preceptor.pocket.summary import (
    TITLES,
    alignment_table,
    distillation_table,
    over_seeds,
    pareto_front,
    summarise,
)
from preceptor.pocket.tasks import TASKS

GENERAL = {"teacher": 1.0, "sft": 0.3, "kd_prediction": 0.4, "kd_attention": 0.0, "kd_both": 0.8, "sft_clean": 0.35}
GENERAL |= {"expert": 0.0, "dae": 0.79, "replay": 0.7, "merge_30": 0.5, "merge_50": 0.3, "merge_70": 0.1}
DOMAIN = dict.fromkeys(GENERAL, 0.0) | {"expert": 1.0, "dae": 0.95, "replay": 0.9, "merge_70": 0.5}


def interval(score: float) -> dict[str, float]:
    return {"score": score, "low": score - 0.1, "high": score + 0.1}


def entry(name: str, shift: float) -> dict[str, Any]:
    value = {"value": 0.5 + shift, "low": 0.4, "high": 0.6}
    tasks = {"public": dict.fromkeys(TASKS, interval(GENERAL[name])), "shop": dict.fromkeys(SHOP, interval(0.5))}
    return {
        "general": interval(GENERAL[name] + shift),
        "domain": interval(DOMAIN[name]),
        "recovery": None if name == "teacher" else value,
        "retention": value,
        "kl_reference": value,
        "kl_expert": value,
        "datasets": {dataset: {"tasks": each} for dataset, each in tasks.items()},
    }


def seed(shift: float = 0.0) -> dict[str, Any]:
    return {
        "scores": {"models": {name: entry(name, shift) for name in GENERAL}},
        "distances": {name: {"kl_teacher": 0.2, "attention_kl": 0.1} for name in DISTILLED},
        "seconds": {name: 10.0 + shift for name in GENERAL if name != "teacher"},
        "mixtures": {"dae": {"shop": {"rows": 4}}},
    }


def test_intervals_over_seeds_are_students_t() -> None:
    found = over_seeds([0.5, 0.6, 0.7])
    # t(0.975, 2 degrees of freedom) = 4.302653, standard deviation 0.1.
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.score == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half), abs=1e-6)


def test_one_seed_keeps_its_own_intervals_and_several_vary_over_seeds() -> None:
    one = summarise({43: seed()})
    assert list(one) == [name for name in TITLES if name in GENERAL]
    assert one["sft"]["general"] == pytest.approx({"score": 0.3, "low": 0.2, "high": 0.4})
    assert one["teacher"]["recovery"] is None
    assert "over_sft" not in one["kd_both"]
    assert one["dae"]["mixture"] == {"shop": {"rows": 4}}
    several = summarise({43: seed(), 44: seed(0.02), 45: seed(0.04)})
    assert several["sft"]["general"]["score"] == pytest.approx(0.32)
    assert several["sft"]["general"]["high"] < 0.4
    assert several["kd_both"]["over_sft"] == pytest.approx({"score": 0.5, "low": 0.5, "high": 0.5})
    assert several["dae"]["recovery"]["score"] == pytest.approx(0.52)
    assert several["sft"]["seconds"] == pytest.approx(10.02)


def test_a_model_that_one_seed_lacks_is_left_out() -> None:
    lacking = seed()
    del lacking["scores"]["models"]["dae"]
    assert "dae" not in summarise({43: seed(), 44: lacking})


def test_the_pareto_front_leaves_out_what_another_beats() -> None:
    models = summarise({43: seed()})
    aligned = {name: models[name] for name in ("kd_both", "expert", "dae", "replay", "merge_30", "merge_70")}
    assert pareto_front(aligned) == ["expert", "dae", "kd_both"]


def test_the_tables_have_a_line_per_task_and_a_line_per_aligned_model() -> None:
    models = summarise({43: seed()})
    lines = distillation_table(models).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[2 : 2 + len(TASKS)]] == list(TASKS)
    assert all(TITLES[name] in lines[0] for name in (*DISTILLED, "sft_clean"))
    lines = alignment_table(models).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("reference (KD, both)")
    aligned = [name for name, method in METHODS.items() if method.part == "align"]
    assert [line.split("  ")[0] for line in lines[3 : 3 + len(aligned)]] == [TITLES[name] for name in aligned]
    assert not any(line.startswith(("teacher", "KD, prediction")) for line in lines)
