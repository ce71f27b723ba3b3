"""MT-Bench by category, the radar of the MT-Bench paper (arXiv 2306.05685), with the means and intervals beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from preceptor.report.figures.drawn import DrawnFigure, drawing, finish, new_figure
from preceptor.report.figures.looks import MUTED, Looks, readable, title_of, titles_of
from preceptor.report.figures.rows import label_rows, put_row

NAME = "mt_bench"
MOST_WEBS = 7
"""More webs than this cannot be told apart; the reference, the expert and the best are drawn."""


def draw(report: Mapping[str, Any], looks: Looks) -> DrawnFigure | None:
    """Radar and means; None where no model of ours has a score."""
    models = {
        key: model for key, model in report["models"].items() if (model.get("mt_bench") or {}).get("score") is not None
    }
    if all(model["kind"] == "published" for model in models.values()):
        return None
    titles = titles_of(models, report)
    categories = _categories(report, models)
    webs = _webs(models, categories)
    with drawing(NAME):
        figure = new_figure(max(4.2 if webs else 1.0, 0.9 + 0.27 * len(models)))
        wide = bool(webs)
        layout = figure.add_gridspec(1, 2 if wide else 1, width_ratios=[1.15, 1] if wide else [1])
        if wide:
            _radar(
                figure.add_subplot(layout[0, 0], projection="polar"),
                {key: [_score(models[key], category) for category in categories] for key in webs},
                categories,
                {key: looks.of(title_of(key, models[key])) for key in webs},
            )
        axes = figure.add_subplot(layout[0, -1])
        for place, (key, model) in enumerate(models.items()):
            score = model["mt_bench"]["score"]
            low, high = score.get("low"), score.get("high")
            value = score["score"]
            put_row(
                axes, place, value, low, high,
                look=looks.of(title_of(key, model)), text=f"{value:.2f}", stem=False,
            )  # fmt: skip
        axes.set_xlim(0.7, 11.2)
        axes.set_xticks([1, 4, 7, 10])
        axes.set_title("mean score")
        axes.set_xlabel("1 to 10")
        label_rows(axes, list(titles.values()), 28)
        left_out = len([key for key in models if _has(models[key], categories)]) - len(webs)
        told = "; ".join(f"{titles[key]} {model['mt_bench']['score']['score']:.2f}" for key, model in models.items())
        weak = "; ".join(_extremes(titles[key], models[key], categories) for key in webs)
        return finish(
            figure,
            NAME,
            title="MT-Bench by category" if webs else "MT-Bench",
            alt=f"{'Radar chart of scores by category and dot' if webs else 'Dot'} chart of MT-Bench means: {told}."
            + (f" Highest and lowest category: {weak}." if weak else ""),
            caption=_caption(report, left_out, bool(webs)),
        )


def _categories(report: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    told = (report.get("mt_bench") or {}).get("categories") or []
    found = dict.fromkeys(
        category for model in models.values() for category in model["mt_bench"].get("categories") or {}
    )
    return [*(category for category in told if category in found), *(each for each in found if each not in told)]


def _score(model: Mapping[str, Any], category: str) -> float | None:
    entry = (model["mt_bench"].get("categories") or {}).get(category)
    return None if entry is None else entry["score"]


def _has(model: Mapping[str, Any], categories: list[str]) -> bool:
    return len(categories) > 2 and all(_score(model, category) is not None for category in categories)


def _webs(models: Mapping[str, Mapping[str, Any]], categories: list[str]) -> list[str]:
    """The models drawn on the radar, in the report's order."""
    able = [key for key in models if _has(models[key], categories)]
    rank = {"reference": 0, "expert": 1}
    able_by_worth = sorted(
        able, key=lambda key: (rank.get(models[key]["kind"], 2), -models[key]["mt_bench"]["score"]["score"])
    )
    return [key for key in able if key in able_by_worth[:MOST_WEBS]]


def _radar(axes: Any, webs: Mapping[str, list[float | None]], categories: list[str], looks: Mapping[str, Any]) -> None:
    angles = [2 * math.pi * place / len(categories) for place in range(len(categories))]
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    for key, scores in webs.items():
        look = looks[key]
        axes.plot(
            [*angles, angles[0]], [*scores, scores[0]], color=look.colour, linestyle=look.dash, linewidth=1.4,
            marker=look.marker, markersize=6 if look.marker in "*PX" else 4,
        )  # fmt: skip
    axes.set_xticks(angles, [readable(category, 16) for category in categories])
    axes.set_ylim(0, 10)
    axes.set_yticks([2, 4, 6, 8, 10])
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=MUTED)
    axes.set_rlabel_position(180 / len(categories))
    axes.spines["polar"].set_visible(False)


def _extremes(title: str, model: Mapping[str, Any], categories: list[str]) -> str:
    scores = {category: _score(model, category) or 0.0 for category in categories}
    best, worst = max(scores, key=lambda each: scores[each]), min(scores, key=lambda each: scores[each])
    return f"{title} {best} {scores[best]:.1f}, {worst} {scores[worst]:.1f}"


def _caption(report: Mapping[str, Any], left_out: int, radar: bool) -> str:
    judge = (report.get("mt_bench") or {}).get("judge")
    parts = [f"Graded by {judge}." if judge else "", "Means over questions and turns with 95 % intervals."]
    if radar:
        parts.append("The radar has the marks and colours of the list.")
        parts.append("A category has few questions: small differences on the radar are noise.")
    if radar and left_out > 0:
        parts.append(f"It has the reference, the expert and the best; {left_out} more are in the table.")
    return " ".join(part for part in parts if part)
