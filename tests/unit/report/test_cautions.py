"""What to be wary of: in which order it is said, and that scores of two judges are never compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import toy_runs
from judged import annotation_rows, as_json, jsonl, judgment_row, question_rows
from preceptor.evaluation.alpaca_eval.files import read_annotations
from preceptor.evaluation.alpaca_eval.scores import Annotated
from preceptor.evaluation.alpaca_eval.scores import summarise as alpaca_eval
from preceptor.evaluation.mt_bench.files import read_judgments, read_questions
from preceptor.evaluation.mt_bench.scores import Judged
from preceptor.evaluation.mt_bench.scores import summarise as mt_bench
from preceptor.report.cautions import FIRST
from preceptor.report.read import read_run
from preceptor.report.sources import places
from preceptor.report.summary import summarise
from preceptor.report.views.headline import headline
from report_dicts import rich
from toy_runs import interval


def summary(*folders: Path) -> dict[str, Any]:
    return summarise([read_run(place) for folder in folders for place in places(folder)])


def block(judges: dict[str, str | None], **scores: float) -> dict[str, Any]:
    counts = {"rows": 4, "failed": 0, "missing": 0}
    models: dict[str, dict[str, Any]] = {
        name: {"source": "ours", "score": interval(score), "turns": {}, "categories": {}, **counts}
        for name, score in scores.items()
    }
    for name, judge in judges.items():
        models[name]["judge"] = judge
    return {"judge": "judge-a", "questions": 2, "categories": [], "models": models, "differences": [], "warnings": []}


def test_each_model_has_its_own_judge_and_two_are_said_and_not_compared(tmp_path: Path) -> None:
    given = block({"kd": "judge-a", "other": "judge-b"}, kd=6.0, other=6.05, dae=6.1)
    found = summary(toy_runs.whole_run(tmp_path / "toy", mt_bench=given))
    # Files of before have the judge of all in one place.
    judges = {name: found["models"][name]["mt_bench"]["judge"] for name in ("kd", "other", "dae")}
    assert judges == {"kd": "judge-a", "other": "judge-b", "dae": "judge-a"}
    assert "MT-Bench: judged by judge-a and by judge-b, whose scores are not on one scale" in found["warnings"]
    assert [each for each in found["warnings"] if "overlap" in each] == [
        "MT-Bench score: kd is not distinguishable from the best, dae: their intervals overlap"
    ]


def test_what_is_missing_or_undefined_is_said_first(tmp_path: Path) -> None:
    """The sentences are those of the modules that write them."""
    questions = read_questions(jsonl(tmp_path / "q.jsonl", question_rows("writing", "math")))
    judgments = read_judgments(jsonl(tmp_path / "j.jsonl", [judgment_row(81, 1, -1), judgment_row(82, 2, 12)]))
    *_, grades = mt_bench({"m": Judged(judgments, "ours")}, questions)
    annotations = read_annotations(as_json(tmp_path / "a.json", annotation_rows(2, None)))
    *_, preferences = alpaca_eval({"m": Annotated(annotations, "ours")}, [f"do {number}" for number in (1, 2, 3)])
    common = ["shop: only 12 scored rows, fewer than 100; its intervals are wide"]
    undefined = "kd: the reference's general score is not above 0 beyond noise, so retention is not defined"
    given = {
        **block({"kd": "judge-a", "dae": "judge-b"}, kd=6.0, dae=7.0),
        "warnings": [*grades, *preferences],
    }
    run = toy_runs.whole_run(tmp_path / "toy", mt_bench=given, warnings=[*common, undefined])
    said = summary(run)["warnings"]
    first = [
        "retention is not defined",
        "no grade could be read from 1 of 4",
        "2 of 4 judgments are missing",
        "could not be read from the judge's answers",
        "have no annotation",
        "judged by judge-a and by judge-b",
    ]
    assert [words in each for words, each in zip(first, said, strict=False)] == [True] * len(first)
    assert said[len(first)] == common[0]
    assert not any(words in each for each in said[len(first) :] for words in FIRST)
    assert any("the judge left the scale" in each for each in said[len(first) :])


@pytest.mark.parametrize("test", ["mt_bench", "alpaca_eval"])
def test_the_headline_compares_no_scores_of_two_judges(test: str) -> None:
    report = rich(models=3)
    for key in report["models"]:
        entry = report["models"][key]
        entry |= {each: None for each in ("mt_bench", "alpaca_eval") if each != test}
        entry[test] = {"win_rate": 50.0, "low": 40.0, "high": 60.0} if test == "alpaca_eval" else entry[test]
        entry[test]["judge"] = f"judge of {key}"
    report["differences"] = []
    (said,) = [each.text for each in headline(report) if each.label == "Judged"]
    assert "not comparable (judged by judge of m2 and by judge of m0)" in said
