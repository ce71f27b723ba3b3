"""General and domain score of every model, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.figures.drawn import DrawnFigure, drawing, finish, new_figure
from preceptor.report.figures.looks import Looks, titles_of
from preceptor.report.figures.rows import label_rows, put_row, reference_band

NAME = "scores"
ROLES = ("general", "domain")


def draw(report: Mapping[str, Any], looks: Looks) -> DrawnFigure | None:
    """A panel for each role, a row for each model; None where no model has a score."""
    models = {key: model for key, model in report["models"].items() if any(model.get(role) for role in ROLES)}
    if not models:
        return None
    titles = titles_of(models, report)
    roles = [role for role in ROLES if any(model.get(role) for model in models.values())]
    reference = next((model for model in models.values() if model["kind"] == "reference"), None)
    with drawing(NAME):
        figure = new_figure(0.9 + 0.27 * len(models))
        grid = figure.subplots(1, len(roles), squeeze=False, sharey=True)
        for axes, role in zip(grid.flat, roles, strict=True):
            if reference is not None and reference.get(role):
                reference_band(axes, *_interval(reference[role]))
            for place, (key, model) in enumerate(models.items()):
                if model.get(role):
                    value, low, high = _interval(model[role])
                    put_row(axes, place, value, low, high, look=looks.of(_title(key, model)), text=f"{value:.3f}")
            axes.set_xlim(0, 1.17)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
            axes.set_title(f"{role} score")
            axes.set_xlabel(_measured(report, role))
        label_rows(grid[0, 0], list(titles.values()))
        return finish(
            figure, NAME, title="Scores", alt=_alt(models, titles, roles), caption=_caption(models, reference)
        )


def _alt(models: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], roles: list[str]) -> str:
    told = [
        f"{role}: "
        + ", ".join(f"{titles[key]} {each[role]['score']:.3f}" for key, each in models.items() if each.get(role))
        for role in roles
    ]
    return f"Dot charts of scores with intervals. {'; '.join(told)}."


def _title(key: str, model: Mapping[str, Any]) -> str:
    return str(model.get("title") or key)


def _interval(figure: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    value = figure["score"] if "score" in figure else figure["value"]
    return value, figure["low"], figure["high"]


def _measured(report: Mapping[str, Any], role: str) -> str:
    """What the score is a mean of, from the metrics of the role's tasks."""
    names = {"exact": "exact match", "accuracy": "accuracy", "rougeL": "ROUGE-L"}
    metrics = dict.fromkeys(
        facts["metric"]
        for dataset in report["datasets"].values()
        if dataset["role"] == role
        for facts in dataset["tasks"].values()
    )
    told = ", ".join(names.get(metric, str(metric)) for metric in metrics if metric)
    return f"mean over tasks of {told}" if told else "mean over tasks"


def _caption(models: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Any] | None) -> str:
    text = "Mean over tasks with its 95 % interval."
    seeds = {model.get("seeds", 1) for model in models.values()}
    if max(seeds) > 1:
        text += " Intervals are over seeds where a model has several (Student's t)."
    if reference is not None:
        text += (
            " The grey band is the reference's interval; a model whose interval reaches into it may be no different."
        )
    return text
