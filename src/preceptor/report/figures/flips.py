"""Answers forgotten and gained against the reference, row by row: what a difference of means hides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import MaxNLocator

from preceptor.report.figures.drawn import DrawnFigure, drawing, finish, new_figure
from preceptor.report.figures.looks import INK, MUTED, PALETTE, titles_of
from preceptor.report.figures.rows import label_rows

NAME = "flips"
_SIDES = (("forgotten", -1, PALETTE["vermillion"]), ("gained", 1, PALETTE["blue"]))


def draw(report: Mapping[str, Any]) -> DrawnFigure | None:
    """Forgotten to the left, gained to the right, a panel for each role; None where nothing was compared."""
    models = {
        key: model
        for key, model in report["models"].items()
        if model.get("flips") and model["kind"] != "reference" and any(model["flips"].values())
    }
    if not models:
        return None
    titles = titles_of(models, report)
    roles = [role for role in ("general", "domain") if any(model["flips"].get(role) for model in models.values())]
    compared = [flips for model in models.values() for flips in model["flips"].values() if flips]
    # Per cent, with room for the figures beside the bars.
    most = max(5.0, 130 * max(_reach(flips[side]) for flips in compared for side, _, _ in _SIDES))
    with drawing(NAME):
        figure = new_figure(0.95 + 0.27 * len(models))
        grid = figure.subplots(1, len(roles), squeeze=False, sharey=True)
        for axes, role in zip(grid.flat, roles, strict=True):
            for place, model in enumerate(models.values()):
                if model["flips"].get(role):
                    _put(axes, place, model["flips"][role])
            axes.axvline(0, color=INK, linewidth=0.8)
            ticks = [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(-most, most) if abs(tick) <= 100]
            axes.set_xticks(ticks, [f"{abs(tick):g}" for tick in ticks])
            axes.set_xlim(-most, most)
            axes.set_title(f"{role} rows")
            axes.set_xlabel("forgotten ←  % of rows  → gained")
        label_rows(grid[0, 0], list(titles.values()))
        told = "; ".join(
            f"{titles[key]}, {role}: "
            f"forgotten {100 * flips['forgotten']['rate']:.1f} %, gained {100 * flips['gained']['rate']:.1f} %"
            for key, model in models.items()
            for role, flips in model["flips"].items()
            if flips
        )
        return finish(
            figure,
            NAME,
            title="Answers forgotten and gained",
            alt=f"Bars to the left for forgotten and to the right for gained answers. {told}.",
            caption=(
                "Share of rows the reference answered rightly and the model wrongly (left), and the reverse (right), "
                "mean over tasks with 95 % intervals. The paler part is what guessing alone would flip; graded "
                "metrics such as ROUGE-L do not flip and are left out."
            ),
        )


def _put(axes: Any, place: int, flips: Mapping[str, Any]) -> None:
    for side, sign, colour in _SIDES:
        found = flips[side]
        rate = 100 * found["rate"]
        axes.barh(place, sign * rate, height=0.56, color=colour, alpha=0.4, linewidth=0)
        if found["adjusted"] is not None:
            axes.barh(place, sign * 100 * found["adjusted"], height=0.56, color=colour, linewidth=0)
        if found["low"] is not None:
            axes.plot([sign * 100 * found["low"], sign * 100 * found["high"]], [place, place], color=INK, linewidth=1)
        axes.annotate(
            f"{rate:.1f}",
            (sign * 100 * _reach(found), place),
            (5 * sign, 0),
            textcoords="offset points",
            ha="left" if sign > 0 else "right",
            va="center",
            fontsize=9.5,
            color=MUTED,
        )


def _reach(found: Mapping[str, Any]) -> float:
    """How far the bar or its interval goes."""
    return float(found["rate"] if found["high"] is None else max(found["rate"], found["high"]))
