"""What a training stage logged, as lines to draw: seeds of one stage together, long logs thinned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from preceptor.report.figures.looks import Look, readable_all

MOST_POINTS = 500
"""More than the pixels of a panel; longer logs are averaged over equal spans of steps."""

TERMS = {
    "logits": "prediction loss",
    "attention": "attention loss",
    "next_token": "next-token loss",
    "hidden": "hidden-state loss",
    "router_balance": "router balance",
    "loss": "training loss",
    "eval_loss": "loss on held-out rows",
}
"""Names of what `series` holds."""


@dataclass(frozen=True)
class Line:
    """One stage's values over steps; with several seeds their mean, and the least and the most of them."""

    label: str
    step: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    left_out: tuple[str, ...] = ()
    """Seeds that are not in it: they were stopped, or logged at other steps."""


def stages_of(report: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """{label: curves of one stage, one for each seed}, finished ones first.

    Stages of different runs are told apart by the run's name.
    """
    by_title: dict[str, list[Mapping[str, Any]]] = {}
    for curve in report["curves"]:
        by_title.setdefault(str(curve.get("title") or curve["stage"]), []).append(curve)
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for title, curves in by_title.items():
        seeds = [curve.get("seed") for curve in curves]
        alike = len(set(seeds)) == len(seeds) and len({curve["kind"] for curve in curves}) == 1
        for curve in sorted(curves, key=lambda curve: not curve.get("finished", True)):
            stages.setdefault(title if alike else f"{curve['run']}/{title}", []).append(curve)
    return stages


def line(label: str, curves: Sequence[Mapping[str, Any]], key: str) -> Line | None:
    """The series called `key`, or None where no seed has a value of it.

    Of several seeds the finished ones, where any is; of these as many as have the same steps, then those with the most.
    """
    seeds = [(curve, found) for curve in curves if (found := _values(curve, key)) is not None]
    if not seeds:
        return None
    finished = [each for each in seeds if each[0].get("finished", True)] or seeds
    by_steps: dict[bytes, list[tuple[Mapping[str, Any], tuple[NDArray[np.float64], NDArray[np.float64]]]]] = {}
    for each in finished:
        by_steps.setdefault(each[1][0].tobytes(), []).append(each)
    alike = max(by_steps.values(), key=lambda group: (len(group), len(group[0][1][0])))
    drawn = [id(curve) for curve, _ in alike]
    left_out = tuple(_seed(curve) for curve, _ in seeds if id(curve) not in drawn)
    step, first = alike[0][1]
    if len(alike) < 2:
        return Line(label, step, first, left_out=left_out)
    values = np.stack([values for _, (_, values) in alike])
    return Line(label, step, values.mean(0), values.min(0), values.max(0), left_out)


def _seed(curve: Mapping[str, Any]) -> str:
    return str(curve["run"]) if curve.get("seed") is None else f"seed {curve['seed']}"


def left_out(lines: Iterable[Line]) -> str:
    """A sentence for the caption on the seeds that are in no line of their stage; empty where all are."""
    found = dict.fromkeys((line.label, line.left_out) for line in lines if line.left_out)
    told = "; ".join(f"{label} without {', '.join(seeds)}" for label, seeds in found)
    return f" Left out because they were stopped or logged at other steps: {told}." if told else ""


def _values(curve: Mapping[str, Any], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    series = curve["series"].get(key)
    if series is None:
        return None
    step = np.asarray(curve["step"], dtype=float)
    values = np.asarray([np.nan if value is None else value for value in series], dtype=float)
    there = np.isfinite(values)
    step, values = step[there], values[there]
    if not len(values):
        return None
    if len(values) > MOST_POINTS:
        ends = np.linspace(0, len(values), MOST_POINTS + 1).astype(int)
        step = np.asarray([step[a:b].mean() for a, b in pairwise(ends)])
        values = np.asarray([values[a:b].mean() for a, b in pairwise(ends)])
    return step, values


def plot(axes: Any, drawn: Line, look: Look) -> Any:
    """The line with the range of its seeds; its handle for a legend."""
    if drawn.low is not None:
        axes.fill_between(drawn.step, drawn.low, drawn.high, color=look.colour, alpha=0.18, linewidth=0)
    few = {"marker": look.marker, "markersize": 4} if len(drawn.step) < 8 else {}
    (handle,) = axes.plot(drawn.step, drawn.mean, color=look.colour, linestyle=look.dash, **few)
    return handle


def legend(figure: Any, handles: Mapping[str, Any]) -> None:
    """Below all panels, as many columns as the names allow."""
    labels = readable_all(list(handles))
    columns = max(1, min(len(labels), int(105 // (max(map(len, labels)) + 6))))
    # A label that begins with an underscore would be left out of the legend.
    shown = [f" {label}" if label.startswith("_") else label for label in labels]
    figure.legend(list(handles.values()), shown, loc="outside lower left", ncols=columns, handlelength=2.4)


def from_zero(axes: Any, values: Sequence[NDArray[np.float64]]) -> None:
    """A loss is read against 0, or on a logarithmic axis where it falls by more than a factor of 30."""
    everything = np.concatenate(list(values))
    if everything.min() > 0 and everything.max() / everything.min() > 30:
        logarithmic(axes)
    else:
        axes.set_ylim(bottom=min(0.0, float(everything.min())))


def logarithmic(axes: Any) -> None:
    """A logarithmic axis whose labels are plain numbers: matplotlib's own are TeX."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 60 else (1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
