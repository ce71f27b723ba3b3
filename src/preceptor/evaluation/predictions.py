"""One model's predictions: a JSON object per evaluated row, from which every score is computed afterwards.

Scores are means, and means hide which answer was lost; the rows are kept so that a report can show them and another
statistic can be computed without running a model again. docs/scores.md describes the fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preceptor.evaluation.rows import EvaluationSet
from preceptor.system.files import json_text, write_atomic

Prediction = Mapping[str, Any]
FIELDS = (
    "id",
    "dataset",
    "row",
    "role",
    "task",
    "metric",
    "prompt",
    "expected",
    "answer",
    "score",
    "choices",
    "log_likelihoods",
    "targets",
    "nll",
    "kl",
    "agree",
)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes the file whole or not at all: one that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json_text(each, indent=None) + "\n" for each in predictions))


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The rows of a predictions file. Raises ValueError where it is none."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not all(isinstance(each, dict) and each.keys() >= set(FIELDS) for each in found):
        raise ValueError(f"{path}: not a predictions file of this version")
    return found


def kept_predictions(path: Path, sets: Sequence[EvaluationSet], taught: Sequence[str]) -> list[dict[str, Any]] | None:
    """What an interrupted evaluation has written already, if it is of these rows and of teachers for these roles."""
    if not path.exists():
        return None
    try:
        found = read_predictions(path)
    except ValueError:
        return None
    expected = [(data.name, data.role, each.id) for data in sets for each in data.questions]
    if [(each["dataset"], each["role"], each["id"]) for each in found] != expected:
        return None
    return found if all((each["kl"] is not None) == (each["role"] in taught) for each in found) else None
