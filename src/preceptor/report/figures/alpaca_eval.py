"""AlpacaEval: how often the judge prefers each model's answer to the baseline's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.figures.drawn import DrawnFigure, drawing, finish, new_figure
from preceptor.report.figures.looks import MUTED, Looks, title_of, titles_of
from preceptor.report.figures.rows import label_rows, put_row

NAME = "alpaca_eval"


def draw(report: Mapping[str, Any], looks: Looks) -> DrawnFigure | None:
    """A row for each model; None where no model of ours has a win rate."""
    models = {
        key: model
        for key, model in report["models"].items()
        if model.get("alpaca_eval") and model["alpaca_eval"].get("win_rate") is not None
    }
    if all(model["kind"] == "published" for model in models.values()):
        return None
    titles = titles_of(models, report)
    with drawing(NAME):
        figure = new_figure(1.0 + 0.27 * len(models))
        axes = figure.subplots()
        for place, (key, model) in enumerate(models.items()):
            entry = model["alpaca_eval"]
            value = entry["win_rate"]
            put_row(
                axes,
                place,
                value,
                entry.get("low"),
                entry.get("high"),
                look=looks.of(title_of(key, model)),
                text=f"{value:.2f} %",
            )
        axes.axvline(50, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_xlim(0, 112)
        axes.set_xticks([0, 25, 50, 75, 100])
        about = report.get("alpaca_eval") or {}
        axes.set_xlabel("win rate, %")
        label_rows(axes, list(titles.values()))
        told = ", ".join(f"{titles[key]} {model['alpaca_eval']['win_rate']:.2f} %" for key, model in models.items())
        against = f" against {about['baseline']}" if about.get("baseline") else ""
        judged = f", judged by {about['judge']}" if about.get("judge") else ""
        return finish(
            figure,
            NAME,
            title="AlpacaEval win rates",
            alt=f"Dot chart of win rates. {told}.",
            caption=f"Win rate{against}{judged}, with 95 % intervals. At 50 % the judge prefers neither.",
        )
