"""Percentile bootstrap over evaluated rows, stratified by task and the same draws for every model.

Rows are drawn with replacement within each task, so that a resample holds as many rows of every task as the data do
(Efron and Tibshirani 1993, chapters 8 and 13). A task's draws depend on the seed and the task alone: figures of two
models on the same rows are therefore paired, and the interval of their difference leaves out what they share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_BLOCK = 1 << 21  # drawn rows held at once
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    score: float
    low: float
    high: float

    @classmethod
    def of(cls, score: float, drawn_R: Array) -> Estimate:
        """The percentile interval of resampled figures; what is not finite among them is left out."""
        finite = drawn_R[np.isfinite(drawn_R)]
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(finite, [tail, 1 - tail]) if len(finite) else (np.nan, np.nan)
        return cls(float(score), float(low), float(high))

    def as_dict(self) -> dict[str, float]:
        return {"score": self.score, "low": self.low, "high": self.high}


def resampled_sums(values_nF: Array, *, task: str, seed: int, resamples: int) -> Array:
    """[R, F] sums of each column over n rows drawn with replacement from n rows, R times."""
    n = len(values_nF)
    digest = hashlib.sha256(f"{seed}\n{task}".encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    sums = np.empty((resamples, values_nF.shape[1]))
    block = max(1, _BLOCK // max(n, 1))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = rng.integers(0, n, (count, n))
        for column in range(values_nF.shape[1]):
            sums[start : start + count, column] = values_nF[:, column][drawn].sum(1)
    return sums


@dataclass(frozen=True)
class Resampler:
    """Figures over several tasks, with their resampled values: `value` and [R] `drawn` belong together."""

    seed: int
    resamples: int

    def mean_over_tasks(self, tasks: Mapping[str, Array]) -> tuple[float, Array]:
        """Mean over tasks of each task's mean [n]: a task with many rows weighs no more than another."""
        means = [float(values.mean()) for values in tasks.values()]
        drawn = [self._sums(task, values[:, None])[:, 0] / len(values) for task, values in tasks.items()]
        return float(np.mean(means)), np.mean(drawn, axis=0)

    def ratio_of_sums(self, tasks: Mapping[str, tuple[Array, Array]]) -> tuple[float, Array]:
        """Σ numerator / Σ denominator over all rows of all tasks, both [n] per task."""
        value = sum(float(a.sum()) for a, _ in tasks.values()) / sum(float(b.sum()) for _, b in tasks.values())
        drawn = np.zeros((self.resamples, 2))
        for task, pair in tasks.items():
            drawn += self._sums(task, np.stack(pair, 1))
        return value, drawn[:, 0] / drawn[:, 1]

    def _sums(self, task: str, values_nF: Array) -> Array:
        return resampled_sums(values_nF, task=task, seed=self.seed, resamples=self.resamples)
