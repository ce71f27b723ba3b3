"""The report in a terminal."""

from __future__ import annotations

from pathlib import Path

import toy_runs
from preceptor.report.published import published_models
from preceptor.report.read import read_run
from preceptor.report.sources import places
from preceptor.report.summary import summarise
from preceptor.report.table import table


def test_models_with_intervals_and_what_to_be_wary_of(tmp_path: Path) -> None:
    models = {name: toy_runs.model_entry(0.5, 0.25) for name in ("kd", "expert")}
    for name, entry in models.items():
        entry["recovery"] = None if name == "kd" else entry["recovery"]
    run = toy_runs.whole_run(tmp_path / "toy", models=models, warnings=["few rows"])
    (run / "kd" / "metrics.jsonl").unlink()
    report = summarise([read_run(place) for place in places(run)])
    report["warnings"] = ["few rows"]
    assert table(report).splitlines() == [
        "model                           general                  domain             recovery            retention",
        "kd (reference)   0.500 (0.400 to 0.600)  0.250 (0.150 to 0.350)                       1.00 (0.90 to 1.10)",
        "expert (expert)  0.500 (0.400 to 0.600)  0.250 (0.150 to 0.350)  0.75 (0.65 to 0.85)  1.00 (0.90 to 1.10)",
        "1 warning and 1 problem: see the page",
    ]


def test_published_rows_have_no_interval_where_none_was_published() -> None:
    models = {key: {**dict.fromkeys(("general", "domain", "recovery", "retention")), **entry} for key, entry in
              list(published_models().items())[3:5]}  # fmt: skip
    text = table({"models": models, "runs": [], "warnings": []})
    assert text.splitlines() == [
        "model                                 MT-Bench           AlpacaEval, %",
        "Flip-2x7B β (published)                   7.90                   93.04",
        "Mistral-7B-Instruct-v0.2 (published)            92.78 (91.00 to 94.56)",
    ]


def test_a_report_without_models_has_no_table(tmp_path: Path) -> None:
    toy_runs.training(tmp_path / "toy", "kd")
    report = summarise([read_run(place) for place in places(tmp_path / "toy")])
    assert table(report) == "1 problem: see the page"
