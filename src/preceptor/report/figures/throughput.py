"""What training cost: tokens per second and peak memory of each stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from preceptor.report.figures.curves import stages_of
from preceptor.report.figures.drawn import DrawnFigure, drawing, finish, new_figure
from preceptor.report.figures.looks import Looks
from preceptor.report.figures.rows import label_rows, put_row

NAME = "throughput"
_PANELS = {
    "tokens_per_second": ("throughput", "tokens per second"),
    "peak_memory_mb": ("peak memory", "MB"),
}


def draw(report: Mapping[str, Any], looks: Looks) -> DrawnFigure | None:
    """A row for each stage; None where no stage logged either."""
    stages = stages_of(report)
    panels: dict[str, dict[str, tuple[float, float, float]]] = {}
    for key in _PANELS:
        for label, curves in stages.items():
            values = [value for curve in curves for value in curve["series"].get(key) or () if value is not None]
            if values:
                panels.setdefault(key, {})[label] = _summary(key, values)
    if not panels:
        return None
    labels = [label for label in stages if any(label in found for found in panels.values())]
    with drawing(NAME):
        figure = new_figure(0.9 + 0.26 * len(labels))
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
        for axes, (key, found) in zip(grid.flat, panels.items(), strict=True):
            for place, label in enumerate(labels):
                if label in found:
                    put_row(axes, place, *found[label], look=looks.of(label), text=f"{found[label][0]:,.0f}")
            axes.set_title(_PANELS[key][0])
            axes.set_xlabel(_PANELS[key][1])
            axes.set_xlim(0, 1.16 * max(high for _, _, high in found.values()) or 1)
        label_rows(grid[0, 0], labels)
        told = [
            f"{label} {value:,.0f} {_PANELS[key][1]}"
            for key, found in panels.items()
            for label, (value, _, _) in found.items()
        ]
        return finish(
            figure,
            NAME,
            title="Throughput and peak memory",
            alt=f"Dot charts by training stage. {', '.join(told)}.",
            caption=(
                "Median over the logged steps, with the range of the middle nine tenths; all tokens of a step count, "
                "targets or not. Peak memory is the highest logged: of the device, or of the process on a CPU."
            ),
        )


def _summary(key: str, values: list[float]) -> tuple[float, float, float]:
    """The value drawn and the ends of its range."""
    if key == "peak_memory_mb":
        most = float(np.max(values))
        return most, most, most
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return float(middle), float(low), float(high)
