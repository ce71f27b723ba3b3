"""Gain against loss: domain score over general score of every model, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.figures.drawn import DrawnFigure, drawing, finish, new_figure
from preceptor.report.figures.looks import INK, MUTED, PAPER, Looks, readable_all, title_of, titles_of

NAME = "retention"


def draw(report: Mapping[str, Any], looks: Looks) -> DrawnFigure | None:
    """A point for each model that has both scores; None where fewer than two have."""
    models = {key: each for key, each in report["models"].items() if each.get("general") and each.get("domain")}
    if len(models) < 2:
        return None
    titles = titles_of(models, report)
    front = sorted((each for each in models.values() if each.get("pareto")), key=lambda each: each["general"]["score"])
    with drawing(NAME):
        figure = new_figure(max(4.6, 0.8 + 0.235 * len(models)))
        axes = figure.subplots()
        if len(front) > 1:
            axes.plot(
                [each["general"]["score"] for each in front],
                [each["domain"]["score"] for each in front],
                color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1,
            )  # fmt: skip
        handles = []
        for key, model in models.items():
            look = looks.of(title_of(key, model))
            x, y = model["general"], model["domain"]
            if x["low"] is not None:
                axes.plot([x["low"], x["high"]], [y["score"]] * 2, color=look.colour, linewidth=0.9, alpha=0.75)
            if y["low"] is not None:
                axes.plot([x["score"]] * 2, [y["low"], y["high"]], color=look.colour, linewidth=0.9, alpha=0.75)
            # A ring marks the front, which colour alone would not tell everyone.
            edge, width = (INK, 1.1) if model.get("pareto") else (PAPER, 0.5)
            handles += axes.plot(
                [x["score"]], [y["score"]], marker=look.marker, color=look.colour, linestyle="none", zorder=3,
                markersize=10 if look.marker in "*PX" else 7,
                markeredgecolor=edge, markeredgewidth=width,
            )  # fmt: skip
        axes.set_xlabel("general score")
        axes.set_ylabel("domain score")
        axes.margins(0.06)
        figure.legend(
            handles,
            [" " + title for title in readable_all(list(titles.values()))],
            loc="outside right upper",
            handlelength=1.2,
        )
        told = "; ".join(
            f"{titles[key]}: general {each['general']['score']:.3f}, domain {each['domain']['score']:.3f}"
            + (", on the Pareto front" if each.get("pareto") else "")
            for key, each in models.items()
        )
        return finish(
            figure,
            NAME,
            title="What the domain gained and what was kept",
            alt=f"Scatter chart of domain score over general score. {told}.",
            caption=(
                "Up is gained, left is forgotten; bars are 95 % intervals. Ringed points and the dashed line are the "
                "Pareto front: no other model is better in one score without being worse in the other. Whether two "
                "points differ at all is for their intervals to say."
            ),
        )
