"""The figures of a report. Each module draws one, or nothing where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from preceptor.report.figures import (
    alpaca_eval,
    flips,
    gradient_norms,
    losses,
    mt_bench,
    retention,
    routes,
    scores,
    suites,
    tasks,
    throughput,
)
from preceptor.report.figures.drawn import DrawnFigure
from preceptor.report.figures.looks import Looks

__all__ = ["DrawnFigure", "draw"]


def draw(
    report: Mapping[str, Any], *, failed: Callable[[str, Exception], None] | None = None
) -> dict[str, DrawnFigure]:
    """{name: figure} of the content of a report.json, in the page's order; the same report gives the same bytes.

    `failed` is told the name and the error of a figure that cannot be drawn, and the others are drawn all the same;
    without it the error is raised.
    """
    looks = Looks(report)
    figures: dict[str, Callable[[], DrawnFigure | None]] = {
        scores.NAME: lambda: scores.draw(report, looks),
        retention.NAME: lambda: retention.draw(report, looks),
        flips.NAME: lambda: flips.draw(report),
        tasks.NAME: lambda: tasks.draw(report, looks),
        mt_bench.NAME: lambda: mt_bench.draw(report, looks),
        alpaca_eval.NAME: lambda: alpaca_eval.draw(report, looks),
        suites.NAME: lambda: suites.draw(report, looks),
        losses.NAME: lambda: losses.draw(report, looks),
        routes.NAME: lambda: routes.draw(report),
        gradient_norms.NAME: lambda: gradient_norms.draw(report, looks),
        throughput.NAME: lambda: throughput.draw(report, looks),
    }
    drawn = {}
    for name, figure in figures.items():
        try:
            found = figure()
        except Exception as error:  # whatever is wrong with one figure, the report has the others
            if failed is None:
                raise
            failed(name, error)
            continue
        if found is not None:
            drawn[name] = found
    return drawn
