"""The study's models as two plain tables, for a terminal; the page (`preceptor.report`) shows them and much more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from preceptor.evaluation.table import aligned
from preceptor.pocket.methods import DISTILLED, METHODS, REFERENCE
from preceptor.pocket.tasks import TASKS

TITLES = {"teacher": "teacher", **{name: method.title for name, method in METHODS.items()}}
Models = Mapping[str, Mapping[str, Any]]
"""`models` of report.json."""


def distillation_table(models: Models) -> str:
    """Stage 1: a line per general task, a column per model, then the means and distances to the teacher."""
    shown = {name: models[name] for name in ("teacher", *DISTILLED, "sft_clean") if name in models}
    lines = [["exact match", *(TITLES[name] for name in shown)]]
    lines += [[task, *(f"{model['tasks'][task]['score']:.2f}" for model in shown.values())] for task in TASKS]
    general = [model["general"] for model in shown.values()]
    lines += [
        ["mean", *(f"{each['score']:.3f}" for each in general)],
        ["95 % interval", *(_range(each) for each in general)],
        ["KL to the teacher", *(_number(model.get("kl_teacher")) for model in shown.values())],
        ["attention KL", *(_number(model.get("attention_kl")) for model in shown.values())],
        ["seconds", *(_number(model.get("seconds"), 0) for model in shown.values())],
    ]
    return _table(lines, rules=(1, len(TASKS) + 1))


def alignment_table(models: Models) -> str:
    """Stage 2: a line per model, what it knows in general and of the shop, what it gained and what it kept."""
    head = ["", "general", "95 % interval", "shop", "95 % interval", "recovery", "retention", "KL to ref.", "seconds"]
    lines = [head]
    for name, model in models.items():
        if name in ("teacher", "sft_clean") or (name in DISTILLED and name != REFERENCE):
            continue
        lines.append(
            [
                "reference (KD, both)" if name == REFERENCE else TITLES[name],
                f"{model['general']['score']:.3f}",
                _range(model["general"]),
                f"{model['domain']['score']:.3f}",
                _range(model["domain"]),
                _number(_value(model["recovery"]), 2),
                _number(_value(model["retention"]), 2),
                _number(_value(model["kl_reference"])),
                _number(model.get("seconds"), 0),
            ]
        )
    return _table(lines, rules=(1,))


def _value(interval: Mapping[str, float] | None) -> float | None:
    return None if interval is None else interval["value"]


def _range(interval: Mapping[str, float]) -> str:
    return f"{interval['low']:.2f} to {interval['high']:.2f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(lines: Sequence[Sequence[str]], *, rules: Sequence[int]) -> str:
    """Columns to the right but the first; a rule before each line whose number is in `rules`."""
    rows = aligned(lines)
    out = []
    for number, row in enumerate(rows):
        out += ["-" * len(row)] if number in rules else []
        out.append(row)
    return "\n".join(out)
