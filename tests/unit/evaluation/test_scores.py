"""From predictions to scores.json, on tables worked out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from preceptor.evaluation.predictions import FIELDS
from preceptor.evaluation.scores import DatasetFacts, summarise
from preceptor.evaluation.table import score_table, task_table
from preceptor.system.files import json_text

FACTS = {"gen": DatasetFacts("general", "holdout"), "shop": DatasetFacts("domain", "test", {"too long": 3}, 2)}


def prediction(
    dataset: str, row: int, task: str, metric: str | None, score: float | None, **more: Any
) -> dict[str, Any]:
    base = {
        "id": f"{dataset}{row}",
        "dataset": dataset,
        "row": row,
        "role": FACTS[dataset].role,
        "task": task,
        "metric": metric,
        "prompt": "q",
        "expected": "yes",
        "answer": None,
        "score": score,
        "choices": None,
        "log_likelihoods": None,
        "targets": 2,
        "nll": 1.0,
        "kl": None,
        "agree": None,
    }
    assert base.keys() == set(FIELDS)
    return {**base, **more}


def model(general: str, match: str, graded: list[float], **more: Any) -> list[dict[str, Any]]:
    """Rows of a general task "sums" (exact), a domain task "match" (yes or no) and a domain task "write" (ROUGE)."""
    rows = [prediction("gen", i, "sums", "exact", float(b), expected=str(i), **more) for i, b in enumerate(general)]
    for i, bit in enumerate(match):
        expected = "yes" if i % 4 else "no"
        right, wrong = (-1.0, -3.0) if bit == "1" else (-3.0, -1.0)
        likelihoods = [right, wrong] if expected == "yes" else [wrong, right]
        choice = {"choices": ["yes", "no"], "log_likelihoods": likelihoods, "expected": expected}
        rows.append(prediction("shop", i, "match", "accuracy", float(bit), **choice, **more))
    count = len(rows)
    return rows + [prediction("shop", count + i, "write", "rougeL", s, **more) for i, s in enumerate(graded)]


REFERENCE = model("1" * 80 + "0" * 20, "1100" * 25, [0.1] * 10)
EXPERT = model("1" * 40 + "0" * 60, "1111" * 24 + "1110", [0.5] * 10, kl=0.5, agree=1)
STUDENT = model("0" + "1" * 75 + "0" * 4 + "1" * 5 + "0" * 15, "1110" * 25, [0.3] * 10, kl=0.25, agree=2)


def scores(**models: Any) -> dict[str, Any]:
    given = models or {"ref": REFERENCE, "expert": EXPERT, "dae": STUDENT}
    named = {each: each if each in given else None for each in ("reference", "expert")}
    reference = "ref" if "ref" in given else None
    return summarise(given, FACTS, reference=reference, expert=named["expert"], seed=3, resamples=300)


def test_scores_are_means_over_tasks_by_role() -> None:
    found = scores()
    dae = found["models"]["dae"]
    assert dae["general"]["score"] == pytest.approx(0.8)
    assert (dae["general"]["tasks"], dae["general"]["rows"]) == (1, 100)
    assert dae["domain"]["score"] == pytest.approx((0.75 + 0.3) / 2)
    assert (dae["domain"]["tasks"], dae["domain"]["rows"]) == (2, 110)
    assert dae["datasets"]["shop"]["tasks"]["match"]["score"] == pytest.approx(0.75)
    assert dae["datasets"]["shop"]["tasks"]["match"]["acc_norm"] == pytest.approx(0.75, abs=0.26)
    assert dae["datasets"]["shop"]["score"] == dae["domain"]["score"]
    assert dae["domain"]["low"] < dae["domain"]["score"] < dae["domain"]["high"]


def test_what_the_data_are_and_what_guessing_scores() -> None:
    shop = scores()["datasets"]["shop"]
    assert (shop["role"], shop["part"], shop["rows"], shop["cut"]) == ("domain", "test", 110, 2)
    assert shop["dropped"] == {"too long": 3}
    assert shop["targets"] == 220
    assert shop["tasks"]["match"] == {"metric": "accuracy", "rows": 100, "majority": 0.75, "chance": 0.5}
    assert shop["tasks"]["write"] == {"metric": "rougeL", "rows": 10, "majority": None, "chance": None}
    assert scores()["datasets"]["gen"]["tasks"]["sums"]["majority"] == 0.01


def test_choices_by_character_are_reported_beside() -> None:
    """-3/3 characters of `yes` against -1/2 of `no`, and -1/3 against -3/2: the longer choice gains."""
    rows = [
        prediction(
            "shop", 0, "t", "accuracy", 0.0, choices=["yes, it does", "no"], log_likelihoods=[-3.0, -1.0],
            expected="yes, it does",
        )
    ]  # fmt: skip
    task = summarise({"m": rows}, {"shop": FACTS["shop"]})["models"]["m"]["datasets"]["shop"]["tasks"]["t"]
    assert (task["score"], task["acc_norm"]) == (0.0, 1.0)


def test_likelihood_and_distance_divide_by_targets_once() -> None:
    rows = [
        prediction("gen", 0, "gen", None, None, targets=1, nll=3.0, kl=0.2, agree=0),
        prediction("gen", 1, "gen", None, None, targets=9, nll=2.0, kl=0.1, agree=9),
    ]
    entry = summarise({"m": rows}, {"gen": FACTS["gen"]})["models"]["m"]
    assert entry["general"] is None
    assert entry["datasets"]["gen"]["score"] is None
    assert entry["datasets"]["gen"]["tasks"] == {}
    assert entry["datasets"]["gen"]["nll"]["value"] == pytest.approx(0.5)
    assert entry["datasets"]["gen"]["perplexity"]["value"] == pytest.approx(math.exp(0.5))
    assert entry["kl_reference"]["value"] == pytest.approx(0.03)
    assert entry["agreement_reference"]["value"] == pytest.approx(0.9)
    assert entry["kl_expert"] is None


def test_against_reference_and_expert() -> None:
    dae = scores()["models"]["dae"]
    assert dae["kl_expert"]["value"] == pytest.approx(0.125)
    assert dae["agreement_expert"]["value"] == pytest.approx(1.0)
    assert dae["retention"]["value"] == pytest.approx(1.0)
    reference, expert = (0.5 + 0.1) / 2, (0.99 + 0.5) / 2
    assert dae["recovery"]["value"] == pytest.approx((0.525 - reference) / (expert - reference))
    assert dae["recovery"]["low"] < dae["recovery"]["value"] < dae["recovery"]["high"]
    general, domain = dae["flips"]["general"], dae["flips"]["domain"]
    assert (general["forgotten"]["count"], general["gained"]["count"], general["rows"]) == (5, 5, 100)
    assert general["forgotten"]["adjusted"] == pytest.approx(0.05)
    assert (domain["forgotten"]["count"], domain["gained"]["count"]) == (0, 25)
    assert (domain["rows"], domain["tasks"]) == (100, 1)  # graded scores do not flip
    assert domain["chance"] == pytest.approx(0.5 * 0.25)
    assert dae["over_reference"]["domain"]["value"] == pytest.approx(0.525 - reference)


def test_what_to_be_wary_of_is_said() -> None:
    warnings = scores()["warnings"]
    assert "shop: 3 rows dropped for all models: 3 too long" in warnings
    assert not any("only" in each for each in warnings)
    (alike,) = [each for each in warnings if "not distinguishable" in each]
    assert alike.startswith(
        "dae: its general score 0.800 is not distinguishable from the reference's 0.800 (paired difference +0.000, 95 "
        "% interval -0.0"
    )
    assert "ref: not above always giving the most frequent answer on match (0.500, majority 0.750)" in warnings
    assert not any("recovery" in each for each in warnings)


def test_an_expert_that_gained_nothing_certain_leaves_recovery_undefined() -> None:
    found = scores(ref=REFERENCE, expert=model("1" * 100, "1100" * 24 + "1110", [0.1] * 10), dae=STUDENT)
    assert [entry["recovery"] for entry in found["models"].values()] == [None, None, None]
    (said,) = [each for each in found["warnings"] if "recovery" in each]
    assert said.startswith("expert: the expert does not beat the reference ref on the domain beyond noise (paired ")
    assert said.endswith(", so recovery is not defined")


def test_small_samples_and_choices_within_choices_are_pointed_out() -> None:
    rows = [
        prediction("shop", i, "t", "accuracy", 1.0, choices=["no", "no idea"], log_likelihoods=[-1.0, -2.0])
        for i in range(12)
    ]
    found = summarise({"m": rows}, {"shop": FACTS["shop"]})["warnings"]
    assert "shop: only 12 scored rows, fewer than 100; its intervals are wide" in found
    assert (
        "shop: in task t the choice 'no idea' begins with the choice 'no', which is therefore never the less likely of "
        "the two; read acc_norm there"
    ) in found


def test_a_reference_whose_score_may_be_0_is_not_said_to_be_0() -> None:
    found = scores(ref=model("1" + "0" * 99, "1100" * 25, [0.1] * 10), dae=STUDENT)
    assert found["models"]["ref"]["general"]["score"] == 0.01
    assert found["models"]["dae"]["retention"] is None
    said = "ref: the reference's general score is not above 0 beyond noise, so retention is not defined"
    assert said in found["warnings"]


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="dae was evaluated on other rows than ref"):
        scores(ref=REFERENCE, dae=STUDENT[:-1])


def test_scores_from_disk_are_the_same() -> None:
    """Nothing but what predictions files hold goes into the scores."""
    back = {name: json.loads(json_text(rows)) for name, rows in (("ref", REFERENCE), ("dae", STUDENT))}
    assert json_text(scores(**back)) == json_text(scores(ref=REFERENCE, dae=STUDENT))


def test_tables_hold_every_model_and_leave_out_what_nobody_has() -> None:
    found = scores()
    lines = score_table(found)
    assert lines[0].split("  ")[0] == "model"
    assert lines[0].split()[-2:] == ["recovery", "retention"]
    assert not {"recovery", "KL"} & set(score_table(scores(ref=REFERENCE, other=REFERENCE))[0].split())
    assert lines[1].startswith("ref (reference)")
    assert lines[3].startswith("dae")
    assert "0.525 (" in lines[3]
    assert len({len(line) for line in lines}) == 1
    tasks = task_table(found)
    assert tasks[0].split() == ["dataset/task", "metric", "rows", "majority", "ref", "expert", "dae"]
    assert tasks[2].split() == ["shop/match", "accuracy", "100", "0.750", "0.500", "0.990", "0.750"]


def test_rows_measured_by_likelihood_alone_show_their_perplexity() -> None:
    found = summarise({"m": [prediction("gen", 0, "gen", None, None)]}, {"gen": FACTS["gen"]})
    assert [line.split() for line in task_table(found)] == [
        ["dataset/task", "metric", "rows", "majority", "m"],
        ["gen", "perplexity", "1", "1.649"],  # 1 nat on 2 targets
    ]
    assert score_table(found) == []  # names alone would tell nothing


# --- few rows --------------------------------------------------------------------------------------------------


def tasks_of(*scores: list[float]) -> list[dict[str, Any]]:
    """Rows of general tasks t0, t1, …"""
    rows = [(f"t{task}", score) for task, each in enumerate(scores) for score in each]
    return [prediction("gen", i, task, "exact", score, expected=str(i)) for i, (task, score) in enumerate(rows)]


def few(reference: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    return summarise({"ref": reference, "dae": other}, {"gen": FACTS["gen"]}, reference="ref", resamples=200)


def test_a_row_a_task_has_an_interval_and_is_distinguishable_by_its_spread_only() -> None:
    found = few(tasks_of(*[[1.0]] * 12), tasks_of(*[[1.0]] * 11, [0.0]))
    general = found["models"]["dae"]["general"]
    assert general["low"] < general["score"] == pytest.approx(11 / 12)
    over = found["models"]["dae"]["over_reference"]["general"]
    assert over["low"] < over["value"] < over["high"] == 0
    assert any("dae: its general score 0.917 is not distinguishable from the" in each for each in found["warnings"])


def test_where_no_interval_is_known_nothing_is_distinguishable() -> None:
    for reference, other in (([[1.0]], [[0.0]]), ([[1.0, 1.0]], [[0.0, 0.0]])):
        found = few(tasks_of(*reference), tasks_of(*other))
        entry = found["models"]["dae"]
        assert (entry["general"]["score"], entry["general"]["low"], entry["general"]["high"]) == (0.0, None, None)
        assert entry["over_reference"]["general"] == {"value": -1.0, "low": None, "high": None}
        assert entry["retention"] is None
        assert (
            "dae: its general score 0.000 is not distinguishable from the reference's 1.000 (paired difference -1.000, "
            "too few rows for an interval)"
        ) in found["warnings"]
        assert (
            "ref: the reference's general score is not above 0 beyond noise, so retention is not defined"
            in (found["warnings"])
        )
        lines = score_table(found)
        assert lines[1].split()[:3] == ["ref", "(reference)", "1.000"]
        json.dumps(found, allow_nan=False)


def test_a_task_of_one_row_beside_larger_ones_leaves_the_score_without_interval() -> None:
    found = few(tasks_of([1.0, 0.0] * 20, [1.0]), tasks_of([1.0] * 40, [0.0]))
    entry = found["models"]["dae"]
    assert (entry["general"]["score"], entry["general"]["low"]) == (0.5, None)
    assert entry["datasets"]["gen"]["tasks"]["t0"]["low"] == 1.0  # of its own rows
    assert entry["datasets"]["gen"]["nll"]["low"] is not None  # in which a row weighs as any other
    assert (
        "gen: task t1 has a single scored row and weighs as much as the other 1 in the general score, whose interval "
        "is therefore not known; give it more rows"
    ) in found["warnings"]


def test_an_expert_of_too_few_rows_leaves_recovery_undefined() -> None:
    rows = {
        name: [prediction("shop", i, "write", "rougeL", score) for i in range(2)]
        for name, score in (("ref", 0.1), ("expert", 0.9))
    }
    found = summarise(rows, {"shop": FACTS["shop"]}, reference="ref", expert="expert")
    assert found["models"]["expert"]["recovery"] is None
    assert (
        "expert: the expert does not beat the reference ref on the domain beyond noise (paired difference +0.800, too "
        "few rows for an interval), so recovery is not defined"
    ) in found["warnings"]
