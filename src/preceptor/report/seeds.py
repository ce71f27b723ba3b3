"""Several seeds of one recipe as one figure: the mean with Student's t interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    score: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"score": self.score, "low": self.low, "high": self.high}


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of at least two seeds with Student's t interval: seeds vary the data, the initial weights and the test."""
    mean = float(np.mean(values))
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def interval_over(seeds: Sequence[Mapping[str, Any] | None], key: str = "score") -> dict[str, Any] | None:
    """{key, low, high} over seeds; of one seed the interval it has, from resampling its rows.

    None where a seed has none: a mean of the others would be one of chosen seeds.
    """
    found = [each for each in seeds if each is not None]
    if not found or len(found) < len(seeds):
        return None
    if len(found) == 1:
        return {key: found[0][key], "low": found[0]["low"], "high": found[0]["high"]}
    interval = over_seeds([each[key] for each in found])
    return {key: interval.score, "low": interval.low, "high": interval.high}


def mean_over(values: Sequence[float | None]) -> float | None:
    """The mean; None where a seed has none."""
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found and len(found) == len(values) else None


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names whose point no other beats: at least as good in both figures and better in one. Sorted by the first."""

    def beaten(name: str) -> bool:
        a, b = points[name]
        return any(oa >= a and ob >= b and (oa > a or ob > b) for other, (oa, ob) in points.items() if other != name)

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])
