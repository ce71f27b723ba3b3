"""Loss curves term by term; of distillations that differ in their terms, the comparison of the paper's Figure 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.figures.curves import TERMS, Line, from_zero, left_out, legend, line, plot, stages_of
from preceptor.report.figures.drawn import DrawnFigure, drawing, finish, new_figure
from preceptor.report.figures.looks import Looks

NAME = "losses"
_LOGGED_BESIDE = {
    *("loss", "eval_loss", "grad_norm", "learning_rate", "epoch", "step", "seconds", "skipped_steps"),
    "nonfinite_steps",
}
_COUNTS = ("tokens", "targets", "peak_memory", "rows")


def draw(report: Mapping[str, Any], looks: Looks) -> DrawnFigure | None:
    """A panel for each term, a line for each stage; None where no stage logged a loss."""
    stages = stages_of(report)
    compared = {label: curves for label, curves in stages.items() if not _routed(curves[0])} or stages
    panels: dict[str, list[Line]] = {}
    for label, curves in compared.items():
        terms = terms_of(curves[0]["series"]) or ["loss"]
        for key in [*terms, "eval_loss"]:
            found = line(label, curves, key)
            if found is not None:
                panels.setdefault(key, []).append(found)
    if not panels:
        return None
    order = [key for key in (*TERMS, *sorted(set(panels) - set(TERMS))) if key in panels]
    columns = min(3, len(order)) if len(order) != 4 else 2
    rows = -(-len(order) // columns)
    with drawing(NAME):
        handles: dict[str, Any] = {}
        figure = new_figure(2.9 * rows + 0.3 * (1 + len(compared) // 3))
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, key in zip(grid.flat, order, strict=False):
            for each in panels[key]:
                handles.setdefault(each.label, plot(axes, each, looks.of(each.label)))
            from_zero(axes, [each.mean for each in panels[key]])
            axes.set_title(TERMS.get(key, key))
            axes.set_xlabel("step")
            axes.set_ylabel("" if key == "router_balance" else "nats per target")
        for axes in grid.flat[len(order) :]:
            axes.set_visible(False)
        legend(figure, handles)
        return finish(
            figure, NAME, title="Losses while training", alt=_alt(panels, order), caption=_caption(report, panels)
        )


def terms_of(series: Mapping[str, Any]) -> list[str]:
    """The objective's terms among a stage's logged series."""
    return [
        key
        for key in series
        if key not in _LOGGED_BESIDE and "/" not in key and not key.startswith(_COUNTS) and not key.startswith("eval_")
        and not key.endswith("_per_second")
    ]  # fmt: skip


def _routed(curve: Mapping[str, Any]) -> bool:
    """Whether the stage's rows have different teachers or roles: its loss is a mixture, drawn by route instead."""
    return any("/" in key and key.partition("/")[0] in TERMS for key in curve["series"])


def _alt(panels: Mapping[str, list[Line]], order: list[str]) -> str:
    ends = [f"{TERMS.get(key, key)}: {', '.join(_ends(each) for each in panels[key])}" for key in order]
    return f"Line charts of loss over steps. First and last values of {'; '.join(ends)}."


def _ends(drawn: Line) -> str:
    return f"{drawn.label} from {drawn.mean[0]:.3g} to {drawn.mean[-1]:.3g}"


def three_way(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """{"prediction only" | "attention only" | "both": stages}, where distillations of a report differ in their terms.

    Both losses are logged whatever is minimised, so the difference is read from the settings: a term of weight 0 is
    measured alone. Empty where fewer than two of the three exist.
    """
    found: dict[str, list[str]] = {}
    ways = {(True, False): "prediction only", (False, True): "attention only", (True, True): "both"}
    for label, curves in stages_of(report).items():
        weights = _weights(report, curves[0])
        way = ways.get((weights.get("logits", 0) > 0, weights.get("attention", 0) > 0))
        if curves[0]["kind"] == "distill" and way is not None and not _routed(curves[0]):
            found.setdefault(way, []).append(label)
    order = [way for way in ways.values() if way in found]
    return {way: found[way] for way in order} if len(order) > 1 else {}


def _weights(report: Mapping[str, Any], curve: Mapping[str, Any]) -> dict[str, float]:
    """{term: weight} of a stage, from its dotted settings; without them every term logged counts as minimised."""
    settings = next(
        (
            stage.get("settings") or {}
            for run in report["runs"]
            for stage in run["stages"]
            if (run["id"], stage["name"]) == (curve["run"], curve["stage"])
        ),
        {},
    )
    terms = [key.removesuffix(".kind") for key in settings if key.startswith("objective.") and key.endswith(".kind")]
    if not terms:
        return dict.fromkeys(terms_of(curve["series"]), 1.0)
    weights = {str(settings[f"{term}.kind"]): settings.get(f"{term}.weight", 1.0) for term in terms}
    return {kind: float(weight) if isinstance(weight, int | float) else 1.0 for kind, weight in weights.items()}


def _caption(report: Mapping[str, Any], panels: Mapping[str, list[Line]]) -> str:
    parts = ["Each term of the objective, per target position, over optimiser steps."]
    ways = three_way(report)
    if ways:
        told = "; ".join(f"{way}: {', '.join(stages)}" for way, stages in ways.items())
        parts.append(
            f"The comparison of Figure 4 in arXiv 2406.19112 ({told}): a stage's curve of a loss it does not minimise "
            "is that loss measured as it trains."
        )
    if any(each.low is not None for lines in panels.values() for each in lines):
        parts.append("Lines are means over seeds, bands reach from the lowest seed to the highest.")
    return " ".join(parts) + left_out(each for lines in panels.values() for each in lines)
