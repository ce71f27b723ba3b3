"""The report in a terminal: the table of models, and how much there is to read in the page's warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from preceptor.evaluation.table import aligned

Model = Mapping[str, Any]
Figure = tuple[float | None, float | None, float | None]


def _score(name: str, key: str) -> Callable[[Model], Figure]:
    def figure(model: Model) -> Figure:
        entry = model[name] or {}
        entry = (entry.get("score") or {}) if name == "mt_bench" else entry
        return entry.get(key), entry.get("low"), entry.get("high")

    return figure


_COLUMNS: Mapping[str, tuple[Callable[[Model], Figure], int]] = {
    "general": (_score("general", "score"), 3),
    "domain": (_score("domain", "score"), 3),
    "recovery": (_score("recovery", "value"), 2),
    "retention": (_score("retention", "value"), 2),
    "MT-Bench": (_score("mt_bench", "score"), 2),
    "AlpacaEval, %": (_score("alpaca_eval", "win_rate"), 2),
}


def table(report: Mapping[str, Any]) -> str:
    """One line per model with its intervals, columns that nobody has left out; then what there is to be wary of."""
    heads = [
        head
        for head, (figure, _) in _COLUMNS.items()
        if any(figure(m)[0] is not None for m in report["models"].values())
    ]
    lines = [["model", *heads]]
    for model in report["models"].values():
        mark = f" ({model['kind']})" if model["kind"] in ("reference", "expert", "published") else ""
        lines.append([model["title"] + mark, *(_cell(*_COLUMNS[head], model) for head in heads)])
    rows = [row.rstrip() for row in aligned(lines)]
    problems = sum(len(run["problems"]) for run in report["runs"])
    found = (("warning", len(report["warnings"])), ("problem", problems))
    counted = [f"{count} {what}{'' if count == 1 else 's'}" for what, count in found if count]
    return "\n".join([*(rows if heads else []), *([f"{' and '.join(counted)}: see the page"] if counted else [])])


def _cell(figure: Callable[[Model], Figure], digits: int, model: Model) -> str:
    value, low, high = figure(model)
    if value is None:
        return ""
    spread = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{value:.{digits}f}{spread}"
