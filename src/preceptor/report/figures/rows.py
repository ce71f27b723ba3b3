"""Rows of points with intervals under one list of names: readable with any number of models, unlike bars in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preceptor.report.figures.looks import INK, PAPER, RULE, Look, readable_all


def put_row(
    axes: Any,
    place: int,
    value: float,
    low: float | None,
    high: float | None,
    *,
    look: Look,
    text: str = "",
    stem: bool = True,
) -> None:
    """A point at `value`, its interval where there is one, a stem from 0, and the figure as text beside it.

    A point without an interval is hollow: an interval of no width would say that it is known exactly.
    """
    if stem:
        axes.plot([0, value], [place, place], color=look.colour, linewidth=5, alpha=0.22, solid_capstyle="butt")
    if low is not None and high is not None and high > low:
        axes.plot([low, high], [place, place], color=look.colour, linewidth=1.6, solid_capstyle="butt")
    known = low is not None and high is not None
    # Stars and crosses look smaller than discs of their size.
    size = {"*": 10.0, "P": 8.0, "X": 8.0, "d": 7.5}.get(look.marker, 5.5)
    axes.plot(
        [value], [place], marker=look.marker, markersize=size, color=look.colour if known else PAPER,
        markeredgecolor=PAPER if known else look.colour, markeredgewidth=0.5 if known else 1.2, linestyle="none",
    )  # fmt: skip
    if text:
        axes.annotate(
            text,
            (value if high is None else max(value, high), place),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=INK,
        )


def label_rows(axes: Any, labels: Sequence[str], limit: int = 34) -> None:
    """Names down the side, the first on top, and no lines across but the rows' own."""
    axes.set_yticks(range(len(labels)), readable_all(labels, limit))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    for each in (each for each in axes.figure.axes if "left" in each.spines):  # a radar has none
        each.grid(visible=False, axis="y")
        each.spines["left"].set_visible(False)
        if each is not axes:
            each.tick_params(axis="y", length=0)


def reference_band(axes: Any, value: float, low: float | None, high: float | None) -> None:
    """The reference's figure and interval behind all rows: a row that reaches into the band may be no better."""
    if low is not None and high is not None:
        axes.axvspan(low, high, color=RULE, alpha=0.6, linewidth=0, zorder=0)
    axes.axvline(value, color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
