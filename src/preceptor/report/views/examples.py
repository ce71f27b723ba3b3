"""Forgotten and gained answers, ready to be set and filtered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preceptor.report.figures.looks import title_of

PRINTED = 10
"""Examples of each kind that go to paper."""


@dataclass(frozen=True)
class Answer:
    """One model's; `verdict` is right, wrong or a graded score as text."""

    model: str
    text: str
    verdict: str
    flipped: bool
    reference: bool


@dataclass(frozen=True)
class Example:
    """`flipped` are places in Examples.models: the models that forgot or gained this row."""

    kind: str
    task: str
    dataset: str
    row: int
    lead: str
    prompt: str
    expected: str
    answers: tuple[Answer, ...]
    flipped: tuple[int, ...]
    by: str
    printed: bool


@dataclass(frozen=True)
class Examples:
    """What the section of examples shows: the rows, and what they can be filtered by."""

    rows: tuple[Example, ...]
    kinds: tuple[str, ...]
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    total: Mapping[str, int]


def examples(report: Mapping[str, Any]) -> Examples:
    """All examples of the report; in each the first answer is the reference's."""
    models: dict[str, int] = {}
    rows, printed = [], {"forgotten": 0, "gained": 0}
    for each in report["examples"]:
        answers = [_answer(report, answer, each, place == 0) for place, answer in enumerate(each["answers"])]
        flipped = [answer.model for answer in answers if answer.flipped]
        printed[each["kind"]] = printed.get(each["kind"], 0) + 1
        rows.append(
            Example(
                str(each["kind"]),
                str(each.get("task") or each["dataset"]),
                str(each["dataset"]),
                each["row"],
                _lead(str(each["prompt"])),
                str(each["prompt"]),
                "" if each.get("expected") is None else str(each["expected"]),
                tuple(answers),
                tuple(models.setdefault(name, len(models)) for name in flipped),
                _some(flipped),
                printed[each["kind"]] <= PRINTED,
            )
        )
    total = {kind: max(count, report["examples_total"].get(kind, 0)) for kind, count in printed.items()}
    return Examples(
        tuple(rows),
        tuple(kind for kind, count in printed.items() if count),
        tuple(dict.fromkeys(row.task for row in rows)),
        tuple(models),
        total,
    )


def _answer(
    report: Mapping[str, Any], answer: Mapping[str, Any], example: Mapping[str, Any], reference: bool
) -> Answer:
    model = str(answer["model"])
    title = title_of(model, report["models"].get(model, {}))
    score, before = answer.get("score"), example["answers"][0].get("score")
    verdict = "" if score is None else {1.0: "right", 0.0: "wrong"}.get(float(score), f"{score:.2f}")
    sign = -1 if example["kind"] == "forgotten" else 1
    flipped = not reference and score is not None and before is not None and sign * (score - before) > 0
    return Answer(title, "" if answer.get("answer") is None else str(answer["answer"]), verdict, flipped, reference)


def _lead(prompt: str, length: int = 110) -> str:
    """The end of a prompt on one line: instructions repeat, questions do not."""
    line = " ".join(prompt.split())
    return line if len(line) <= length else f"{line[: length // 2].rstrip()} … {line[-(length // 2) :].lstrip()}"


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} models" if names else ""
