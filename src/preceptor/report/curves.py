"""What training logged, as series over steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from preceptor.report.groups import Group
from preceptor.report.read import Stage

POINTS = 1000
"""A longer curve is thinned to about so many steps; steps with an evaluation are all kept."""


def curves(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One entry per training stage of each run. Seeds of one recipe have the same title."""
    several = len(groups) > 1
    found = []
    for group in groups:
        for each in group.runs:
            for stage in each.run.stages:
                if not stage.metrics:
                    continue
                title = each.run.title_of(stage.name)
                steps, series = series_of(stage)
                found.append(
                    {
                        "run": each.run.id,
                        "stage": stage.name,
                        "title": f"{group.title}: {title}" if several else title,
                        "kind": stage.kind,
                        "seed": each.run.seed,
                        "finished": stage.status == "done",
                        "step": steps,
                        "series": series,
                    }
                )
    return found


def series_of(stage: Stage) -> tuple[list[int], dict[str, list[float | None]]]:
    """Steps, and each logged figure at them; null where it was not logged.

    Training and evaluation log separate lines at one step; of two lines with one figure the later one counts.
    """
    by_step: dict[int, dict[str, float]] = {}
    for line in stage.metrics:
        numbers = {key: float(value) for key, value in line.items() if key != "step" and _number(value)}
        by_step.setdefault(line["step"], {}).update(numbers)
    steps = _thinned(sorted(by_step), by_step)
    keys = list(dict.fromkeys(key for line in stage.metrics for key in line if key in by_step[line["step"]]))
    series = {key: [by_step[step].get(key) for step in steps] for key in keys}
    return steps, {key: values for key, values in series.items() if any(value is not None for value in values)}


def _thinned(steps: Sequence[int], by_step: Mapping[int, Mapping[str, float]]) -> list[int]:
    stride = -(-len(steps) // POINTS)
    return [
        step
        for number, step in enumerate(steps)
        if (len(steps) - 1 - number) % stride == 0 or any(key.startswith("eval_") for key in by_step[step])
    ]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
