"""Which model the sentences are about, and that they call nothing different on too few rows."""

from __future__ import annotations

from typing import Any

import pytest

from preceptor.report.views.headline import basis, best_model, headline
from report_dicts import poor, rich


def said(report: dict[str, Any], label: str) -> str:
    (text,) = [each.text for each in headline(report) if each.label == label]
    return text


@pytest.mark.parametrize("kind", ["other", "published", "reference", "expert"])
def test_models_that_are_there_through_files_are_never_the_one(kind: str) -> None:
    report = rich(models=4)
    report["models"]["m3"]["kind"] = "model"
    one = {"low": 0.0, "high": 2.0}
    report["models"]["m3"] |= {"recovery": {"value": 1.0, **one}, "retention": {"value": 1.0, **one}}
    report["models"]["m2"] |= {"recovery": {"value": 0.1, **one}, "retention": {"value": 0.5, **one}}
    assert best_model(report["models"]) == "m3"
    report["models"]["m3"]["kind"] = kind
    assert best_model(report["models"]) == "m2"
    assert basis(report) == ""  # there was no choice
    report["models"]["m2"]["kind"] = kind
    assert best_model(report["models"]) is None
    assert best_model(poor()["models"]) is None


def test_a_model_that_a_stage_made_comes_before_one_that_was_only_evaluated() -> None:
    report = rich(models=4)
    for key in ("m2", "m3"):
        report["models"][key] |= {"kind": "model", "recovery": None}
    report["models"]["m3"] |= {"general": {"score": 1.0, "low": 1.0, "high": 1.0}, "seconds": None}  # like a teacher
    assert best_model(report["models"]) == "m2"
    report["models"]["m2"]["seconds"] = None  # none was made: an evaluation of finished models
    assert best_model(report["models"]) == "m3"
    assert "the highest of 2 models" in basis(report)


def test_too_few_rows_are_not_a_difference() -> None:
    report = rich(models=3)
    report["differences"] = [
        {"measure": "domain", "model": "m2", "than": "m0", "value": 1.0, "low": None, "high": None}
    ]
    assert ": not distinguishable (+1.000, too few rows for an interval)" in said(report, "Gained")
