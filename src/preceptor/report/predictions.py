"""The rows of `predictions/*.jsonl`, for the examples a report shows. docs/scores.md describes the fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preceptor.report.lines import Say, read_lines
from preceptor.report.scores_file import Scores

FIELDS = ("id", "dataset", "row", "role", "task", "metric", "prompt", "expected", "answer", "score")
"""What is kept of a row: a report needs no likelihoods."""

Rows = list[dict[str, Any]]


def read_predictions(folder: Path, scores: Scores, say: Say) -> dict[str, Rows]:
    """The rows of each model that has scores of rows, the same rows as the reference's."""
    names = [name for name, entry in scores.models.items() if entry["tasks"]]
    if not names:
        return {}
    if not folder.is_dir():
        say("predictions/ is missing, so that no examples are shown")
        return {}
    found = {name: rows for name in names if (rows := _of_model(name, folder, say))}
    first = scores.reference if scores.reference in found else next(iter(found), None)
    for name in [name for name in found if name != first]:
        assert first is not None
        if not _same_rows(found[name], found[first]):
            say(f"predictions/{name}.jsonl: is of other rows than {first}.jsonl, so that {name} is in no example")
            del found[name]
    return found


def _of_model(name: str, folder: Path, say: Say) -> Rows:
    path = folder / f"{name}.jsonl"
    if not _is_file(path):
        say(f"predictions/{name}.jsonl is missing, so that {name} is in no example")
        return []
    rows = read_lines(path, lambda problem: say(f"predictions/{problem}"), folder=folder.parent)
    if not rows and path.stat().st_size == 0:
        say(f"predictions/{name}.jsonl: is empty, so that {name} is in no example")
    whole = [{key: row[key] for key in FIELDS} for row in rows if _whole(row)]
    if len(whole) < len(rows):
        lost = f"{len(rows) - len(whole):,} of {len(rows):,} rows"
        say(f"predictions/{name}.jsonl: {lost} are not as docs/scores.md describes them; they are left out")
    return whole


def _is_file(path: Path) -> bool:
    """A model may be called what no file can be."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _whole(row: Mapping[str, Any]) -> bool:
    """Whether a row has the fields, and what places it among the others is of the right type."""
    if not row.keys() >= set(FIELDS):
        return False
    texts = all(isinstance(row[key], str) for key in ("id", "dataset", "role", "task"))
    metric, score = row["metric"], row["score"]
    graded = score is None or (isinstance(score, int | float) and math.isfinite(score))
    return texts and isinstance(row["row"], int) and graded and (metric is None or isinstance(metric, str))


def _same_rows(rows: Rows, others: Rows) -> bool:
    """Whether no row asks something else than the other file's row of that place; some may be missing."""
    asked = {(row["dataset"], row["row"]): row["id"] for row in others}
    return all(asked.get((row["dataset"], row["row"]), row["id"]) == row["id"] for row in rows)
