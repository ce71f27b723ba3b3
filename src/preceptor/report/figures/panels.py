"""Small multiples: one panel per task, the same models in the same rows of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preceptor.report.figures.drawn import new_figure
from preceptor.report.figures.looks import INK, PALETTE, Look, readable_all
from preceptor.report.figures.rows import label_rows, put_row, reference_band

MOST_PANELS = 20
MANY_MODELS = 12


@dataclass(frozen=True)
class Panel:
    """One task: figures (value, low, high) by model, the last two None where no interval is known.

    `marks` are values drawn across, such as the majority's.
    """

    title: str
    label: str
    values: Mapping[str, tuple[float, float | None, float | None]]
    marks: Sequence[float] = ()


def draw_panels(
    panels: Sequence[Panel], titles: Mapping[str, str], looks: Mapping[str, Look], reference: str | None
) -> Any:
    """A figure of `panels`, a row in each for every model of `titles` {model: name}."""
    columns = min(len(panels), 3 if len(titles) > MANY_MODELS else 4)
    rows = -(-len(panels) // columns)
    figure = new_figure(rows * (0.8 + 0.19 * max(3, len(titles))))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=_alike(panels))
    names = readable_all([panel.title for panel in panels], 88 // columns)
    for axes, panel, name in zip(grid.flat, panels, names, strict=False):
        if reference is not None and reference in panel.values:
            reference_band(axes, *panel.values[reference])
        for mark in panel.marks:
            axes.axvline(mark, color=PALETTE["vermillion"], linewidth=1, linestyle=(0, (1, 2)), zorder=0.6)
        for place, model in enumerate(titles):
            if model in panel.values:
                put_row(axes, place, *panel.values[model], look=looks[model], stem=False)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(panel.label, fontsize=9)
        axes.tick_params(axis="x", labelsize=9, labelbottom=True)
        if _alike(panels):
            axes.set_xlim(-0.04, 1.04)
            axes.set_xticks([0, 0.5, 1])
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    label_rows(grid[0, 0], list(titles.values()), 26)
    for axes in grid[:, 0]:
        axes.tick_params(axis="y", labelsize=9, labelcolor=INK)
    return figure


def _alike(panels: Sequence[Panel]) -> bool:
    """Whether all values are shares, which then have one axis."""
    values = (value for panel in panels for each in panel.values.values() for value in each if value is not None)
    return all(0 <= value <= 1 for value in values)
