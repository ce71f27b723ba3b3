"""Rows whose answer changed from right to wrong or from wrong to right, with what every model answered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from preceptor.report.groups import Group

LIMIT = 200
"""Examples of each kind that are shown."""
CHARACTERS = 4000
"""A longer text of an example is cut."""
BINARY = ("exact", "accuracy")
"""Metrics of 0 or 1; graded scores do not flip."""

Row = Mapping[str, Any]
Place = tuple[str, int]  # dataset, row


def examples(groups: Sequence[Group]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows to show, and how many there are of each kind.

    A row is an example if a model answered it otherwise than its reference: `forgotten` where the reference was right
    (1 → 0), `gained` where it was wrong (0 → 1). Of more than `LIMIT` rows of a kind those shown are taken in turn from
    each model and task, because a model that forgot everything would otherwise hide what the others forgot.
    """
    shown: list[dict[str, Any]] = []
    totals = {"forgotten": 0, "gained": 0}
    found = [each for group in groups for each in _of_group(group)]
    for kind in totals:
        chosen = [each for each in found if each[0]["kind"] == kind]
        totals[kind] = len(chosen)
        shown += [each for each, _ in _in_turn(chosen)]
    return shown, totals


def _of_group(group: Group) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Each example with the models that changed the answer."""
    for run in group.runs:
        for stage in run.run.stages:
            if stage.scores is None or stage.scores.reference not in stage.predictions:
                continue
            reference = stage.scores.reference
            tables = {name: _table(rows) for name, rows in stage.predictions.items()}
            order = [reference, *(name for name in tables if name != reference)]
            keys = {name: group.key(run.names[stage.name, name]) for name in order}
            for place, row in tables[reference].items():
                answers = {name: tables[name][place] for name in order if place in tables[name]}
                changed = [keys[name] for name, each in answers.items() if each["score"] != row["score"]]
                if row["metric"] in BINARY and row["score"] in (0, 1) and changed:
                    yield _example(row, run.run.id, {keys[name]: each for name, each in answers.items()}), changed


def _table(rows: Sequence[Row]) -> dict[Place, Row]:
    return {(row["dataset"], row["row"]): row for row in rows}


def _example(row: Row, run: str, answers: Mapping[str, Row]) -> dict[str, Any]:
    return {
        "kind": "forgotten" if row["score"] == 1 else "gained",
        "run": run,
        **{key: row[key] for key in ("dataset", "row", "task", "metric", "role")},
        "prompt": _cut(row["prompt"]),
        "expected": _cut(row["expected"]),
        "answers": [
            {"model": key, "answer": _cut(each["answer"]), "score": each["score"]} for key, each in answers.items()
        ],
    }


def _cut(text: Any) -> str | None:
    if not isinstance(text, str):
        return None
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"


def _in_turn(found: Sequence[tuple[dict[str, Any], list[str]]]) -> list[tuple[dict[str, Any], list[str]]]:
    """At most `LIMIT` of them, as evenly from every model and task as there are; in their order."""
    if len(found) <= LIMIT:
        return list(found)
    cells: dict[tuple[str, str, str], list[int]] = {}
    for number, (example, changed) in enumerate(found):
        for model in changed:
            cells.setdefault((model, example["dataset"], example["task"]), []).append(number)
    for numbers in cells.values():
        numbers.sort(key=lambda number: _draw(found[number][0]))
    chosen: set[int] = set()
    waiting = [iter(cells[key]) for key in sorted(cells)]
    while waiting and len(chosen) < LIMIT:
        left = []
        for cell in waiting:
            fresh = next((each for each in cell if each not in chosen), None)
            if fresh is not None and len(chosen) < LIMIT:
                chosen.add(fresh)
                left.append(cell)
        waiting = left
    return [found[number] for number in sorted(chosen)]


def _draw(example: Mapping[str, Any]) -> str:
    """An order that has nothing to do with the rows' own, and is the same each time."""
    text = f"{example['run']}\n{example['dataset']}\n{example['row']}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
