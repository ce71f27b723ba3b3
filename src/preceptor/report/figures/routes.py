"""Losses by route: what a stage with several teachers or datasets learns of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from preceptor.report.figures.curves import TERMS, Line, from_zero, left_out, legend, line, plot, stages_of
from preceptor.report.figures.drawn import DrawnFigure, drawing, finish, new_figure
from preceptor.report.figures.looks import PALETTE, Look, readable

NAME = "routes"
MOST_PANELS = 12
_ROUTES = [Look(colour, dash=dash) for dash in ("solid", (0, (5, 2)), (0, (1.2, 1.6))) for colour in PALETTE.values()]


def draw(report: Mapping[str, Any]) -> DrawnFigure | None:
    """A panel for each stage and term, a line for each route; None where no stage has routes."""
    panels: dict[tuple[str, str], list[Line]] = {}
    for label, curves in stages_of(report).items():
        keys = [key for key in curves[0]["series"] if "/" in key and key.partition("/")[0] in TERMS]
        for key in sorted(keys, key=lambda key: list(TERMS).index(key.partition("/")[0])):
            term, _, route = key.partition("/")
            found = line(route, curves, key)
            if found is not None:
                panels.setdefault((label, term), []).append(found)
    if not panels:
        return None
    shown = dict(list(panels.items())[:MOST_PANELS])
    columns = min(3, len(shown)) if len(shown) != 4 else 2
    rows = -(-len(shown) // columns)
    routes = list(dict.fromkeys(each.label for lines in shown.values() for each in lines))
    looks = {route: _ROUTES[place % len(_ROUTES)] for place, route in enumerate(routes)}
    with drawing(NAME):
        handles: dict[str, Any] = {}
        figure = new_figure(2.6 * rows + 0.4)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, ((label, term), lines) in zip(grid.flat, shown.items(), strict=False):
            for each in lines:
                handles.setdefault(each.label, plot(axes, each, looks[each.label]))
            from_zero(axes, [each.mean for each in lines])
            axes.set_title(f"{readable(label, 22)}: {TERMS[term]}")
            axes.set_xlabel("step")
            axes.set_ylabel("nats per target")
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        legend(figure, handles)
        return finish(figure, NAME, title="Losses by route", alt=_alt(shown), caption=_caption(len(panels), shown))


def _alt(panels: Mapping[tuple[str, str], list[Line]]) -> str:
    ends = [
        f"{label}, {TERMS[term]}: "
        + ", ".join(f"{each.label} from {each.mean[0]:.3g} to {each.mean[-1]:.3g}" for each in lines)
        for (label, term), lines in panels.items()
    ]
    return f"Line charts of loss over steps by route. First and last values of {'; '.join(ends)}."


def _caption(all_panels: int, shown: Mapping[tuple[str, str], list[Line]]) -> str:
    text = (
        "Each route's loss, divided by that route's own target positions. A route that starts near 0 is taught by a "
        "model the student began as: its line shows what is given up there while the other routes are learned."
    )
    if len(shown) < all_panels:
        text += f" The first {len(shown)} of {all_panels} panels are drawn."
    return text + left_out(replace(each, label=label) for (label, _), lines in shown.items() for each in lines)
