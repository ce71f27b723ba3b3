"""Task suites of lm-evaluation-harness, one panel per task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.figures.drawn import DrawnFigure, drawing, finish
from preceptor.report.figures.looks import Looks, title_of, titles_of
from preceptor.report.figures.panels import MOST_PANELS, Panel, draw_panels

NAME = "suites"


def draw(report: Mapping[str, Any], looks: Looks) -> DrawnFigure | None:
    """None where no model was given a suite."""
    models = {key: model for key, model in report["models"].items() if model.get("suites")}
    tasks = {
        task: entry
        for model in models.values()
        for task, entry in model["suites"].items()
        if entry.get("value") is not None
    }
    if not tasks:
        return None
    panels = [
        Panel(
            task,
            f"{entry.get('metric') or ''}{', lower is better' if entry.get('higher_is_better') is False else ''}",
            {
                key: _interval(entry)
                for key, entry in ((key, model["suites"].get(task)) for key, model in models.items())
                if entry is not None and entry.get("value") is not None
            },
        )
        for task, entry in list(tasks.items())[:MOST_PANELS]
    ]
    titles = titles_of(models, report)
    reference = next((key for key, model in models.items() if model["kind"] == "reference"), None)
    with drawing(NAME):
        figure = draw_panels(
            panels, titles, {key: looks.of(title_of(key, model)) for key, model in models.items()}, reference
        )
        told = "; ".join(
            f"{panel.title}: " + ", ".join(f"{titles[key]} {value[0]:.3f}" for key, value in panel.values.items())
            for panel in panels
        )
        caption = "Value of each task with 1.96 standard errors either way; a hollow point has none."
        if len(panels) < len(tasks):
            caption += f" The first {len(panels)} of {len(tasks)} tasks are drawn."
        return finish(figure, NAME, title="Task suites", alt=f"Dot charts of task suites. {told}.", caption=caption)


def _interval(entry: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    if entry.get("stderr") is None:
        return entry["value"], None, None
    half = 1.96 * entry["stderr"]
    return entry["value"], entry["value"] - half, entry["value"] + half
