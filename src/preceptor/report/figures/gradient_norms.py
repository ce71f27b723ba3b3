"""Norm of the gradient over steps: where a training was unstable, and where clipping worked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.figures.curves import Line, left_out, legend, line, logarithmic, plot, stages_of
from preceptor.report.figures.drawn import DrawnFigure, drawing, finish, new_figure
from preceptor.report.figures.looks import Looks

NAME = "gradient_norms"


def draw(report: Mapping[str, Any], looks: Looks) -> DrawnFigure | None:
    """A line for each stage on a logarithmic axis; None where no stage logged it."""
    found = [line(label, curves, "grad_norm") for label, curves in stages_of(report).items()]
    lines: list[Line] = [each for each in found if each is not None]
    if not lines:
        return None
    with drawing(NAME):
        figure = new_figure(3.3 + 0.22 * (len(lines) // 4))
        axes = figure.subplots()
        handles: dict[str, Any] = {each.label: plot(axes, each, looks.of(each.label)) for each in lines}
        if all((each.mean > 0).all() for each in lines):
            logarithmic(axes)
        axes.set_xlabel("step")
        axes.set_ylabel("gradient norm")
        legend(figure, handles)
        ends = ", ".join(f"{each.label} {each.mean.min():.3g} to {each.mean.max():.3g}" for each in lines)
        return finish(
            figure,
            NAME,
            title="Gradient norms",
            alt=f"Line chart of gradient norm over steps. Ranges: {ends}.",
            caption=f"Norm of the whole gradient at each logged step, before clipping.{left_out(lines)}",
        )
