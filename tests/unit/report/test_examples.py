"""Rows that were forgotten or gained, aligned over all models, and which of many are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import toy_runs
from preceptor.report.examples import CHARACTERS, LIMIT, examples
from preceptor.report.groups import grouped
from preceptor.report.read import read_run
from preceptor.report.sources import places


def found(*folders: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    return examples(grouped([read_run(place) for folder in folders for place in places(folder)]))


def test_rows_that_any_model_answers_otherwise_than_the_reference(tmp_path: Path) -> None:
    shown, totals = found(toy_runs.whole_run(tmp_path / "toy"))
    # kd 1100 1000, expert 1000 1111, dae 1110 0100
    places = [(each["kind"], each["dataset"], each["row"]) for each in shown]
    assert places == [
        ("forgotten", "public", 1),
        ("forgotten", "shop", 0),
        ("gained", "public", 2),
        ("gained", "shop", 1),
        ("gained", "shop", 2),
        ("gained", "shop", 3),
    ]
    assert totals == {"forgotten": 2, "gained": 4}
    assert shown[1] == {
        "kind": "forgotten",
        "run": "toy",
        "dataset": "shop",
        "row": 0,
        "task": "shelf",
        "metric": "exact",
        "role": "domain",
        "prompt": "question 4",
        "expected": "right 4",
        "answers": [
            {"model": "kd", "answer": "right 4", "score": 1},
            {"model": "expert", "answer": "right 4", "score": 1},
            {"model": "dae", "answer": "wrong 4", "score": 0},
        ],
    }


def test_graded_and_unscored_rows_are_no_examples(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    folder = run / "scores" / "predictions"
    for name in ("kd", "dae", "expert"):
        rows = toy_runs.predictions(toy_runs.ROWS[name])
        rows[1]["metric"] = "rougeL"
        rows[4] |= {"metric": None, "score": None, "answer": None}
        toy_runs.write_lines(folder / f"{name}.jsonl", rows)
    shown, totals = found(run)
    assert totals == {"forgotten": 0, "gained": 4}
    assert {each["kind"] for each in shown} == {"gained"}


def test_without_a_reference_there_are_none(tmp_path: Path) -> None:
    assert found(toy_runs.whole_run(tmp_path / "toy", reference=None)) == ([], {"forgotten": 0, "gained": 0})


def test_a_model_without_a_row_is_left_out_of_that_row(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    path = run / "scores" / "predictions" / "expert.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    shown, _ = found(run)
    assert [[each["model"] for each in example["answers"]] for example in shown][:2] == [
        ["kd", "expert", "dae"],
        ["kd", "dae"],
    ]


def test_long_texts_are_cut(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    for name, scores in toy_runs.ROWS.items():
        rows = toy_runs.predictions(scores)
        rows[1]["prompt"] = "x" * (CHARACTERS + 1)
        toy_runs.write_lines(run / "scores" / "predictions" / f"{name}.jsonl", rows)
    assert found(run)[0][0]["prompt"] == "x" * CHARACTERS + "…"


def many(run: Path, rows: int, forgotten: dict[str, set[int]]) -> Path:
    """`rows` questions, each second one of task `b`, that the reference answers rightly."""
    models = {name: toy_runs.model_entry(0.5, 0.5) for name in ("kd", *forgotten)}
    stage = toy_runs.evaluation(run, models)
    template = toy_runs.predictions([1])[0]
    for name in models:
        lost = forgotten.get(name, set())
        lines = [
            {**template, "id": f"q{n}", "row": n, "task": "ab"[n % 2], "score": float(n not in lost)}
            for n in range(rows)
        ]
        toy_runs.write_lines(stage / "predictions" / f"{name}.jsonl", lines)
    return run


def test_of_too_many_every_model_and_task_gets_its_share(tmp_path: Path) -> None:
    lost = {"all": set(range(1000)), "few": {10, 20, 30, 31, 33}, "odd": set(range(1, 1000, 2))}
    run = many(tmp_path / "toy", 1000, lost)
    shown, totals = found(run)
    assert (len(shown), totals["forgotten"]) == (LIMIT, 1000)
    assert lost["few"] <= {each["row"] for each in shown}  # what one model alone forgot is not drowned
    tasks = [each["task"] for each in shown]
    # Four cells of five have plenty: all/a, all/b, odd/b; few/a and few/b are soon empty.
    assert tasks.count("a") == pytest.approx(LIMIT / 3, abs=5)
    rows = [each["row"] for each in shown]
    assert rows == sorted(rows)
    assert 60 < sum(row < 500 for row in rows) < 140  # from all over the data
    assert found(run)[0] == shown


def test_exactly_as_many_as_are_shown_are_all_shown(tmp_path: Path) -> None:
    shown, _ = found(many(tmp_path / "toy", LIMIT, {"all": set(range(LIMIT))}))
    assert len(shown) == LIMIT
