"""Every task's score, model by model: which tasks a mean hides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.figures.drawn import DrawnFigure, drawing, finish
from preceptor.report.figures.looks import Looks, title_of, titles_of
from preceptor.report.figures.panels import MOST_PANELS, Panel, draw_panels

NAME = "tasks"
METRICS = {"exact": "exact match", "accuracy": "accuracy", "rougeL": "ROUGE-L"}


def draw(report: Mapping[str, Any], looks: Looks) -> DrawnFigure | None:
    """A panel for each task, a row for each model; None where no task was scored."""
    models = {key: model for key, model in report["models"].items() if model.get("tasks")}
    tasks = {task: about for model in models.values() for task, about in model["tasks"].items()}
    if not tasks:
        return None
    facts = {task: _facts(report, task, about) for task, about in tasks.items()}
    # Of many tasks those with the most rows tell the most; they keep the report's order.
    chosen = sorted(tasks, key=lambda task: -(facts[task].get("rows") or 0))[:MOST_PANELS]
    panels = [
        Panel(
            task,
            _label(about, facts[task]),
            {
                key: (score["score"], score["low"], score["high"])
                for key, score in ((key, model["tasks"].get(task)) for key, model in models.items())
                if score is not None
            },
            [value for value in (facts[task].get("majority"),) if value is not None],
        )
        for task, about in tasks.items()
        if task in chosen
    ]
    titles = titles_of(models, report)
    reference = next((key for key, model in models.items() if model["kind"] == "reference"), None)
    with drawing(NAME):
        figure = draw_panels(
            panels, titles, {key: looks.of(title_of(key, model)) for key, model in models.items()}, reference
        )
        best = "; ".join(_best(panel, titles) for panel in panels)
        return finish(
            figure,
            NAME,
            title="Scores by task",
            alt=f"{len(panels)} dot charts, one per task, of each model's score with its interval. Highest: {best}.",
            caption=_caption(len(tasks), len(panels), reference is not None, any(panel.marks for panel in panels)),
        )


def _facts(report: Mapping[str, Any], task: str, about: Mapping[str, Any]) -> Mapping[str, Any]:
    tasks = report["datasets"].get(about.get("dataset"), {}).get("tasks", {})
    found: Mapping[str, Any] = tasks.get(task) or tasks.get(task.rpartition("/")[2]) or {}
    return found


def _label(about: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    metric = METRICS.get(str(about.get("metric")), str(about.get("metric") or "score"))
    rows = f", {facts['rows']:,} rows" if facts.get("rows") else ""
    return f"{about.get('role') or ''} {metric}{rows}".strip()


def _best(panel: Panel, titles: Mapping[str, str]) -> str:
    model = max(panel.values, key=lambda key: panel.values[key][0])
    return f"{panel.title} {titles[model]} {panel.values[model][0]:.3f}"


def _caption(tasks: int, drawn: int, reference: bool, marks: bool) -> str:
    parts = ["Score of each task with its 95 % interval."]
    if reference:
        parts.append("The grey band is the reference's interval.")
    if marks:
        parts.append("The dotted line is what the best constant answer scores: at or below it nothing was learnt.")
    if drawn < tasks:
        parts.append(f"The {drawn} tasks with the most rows are drawn of {tasks}; all are in the table of tasks.")
    return " ".join(parts)
