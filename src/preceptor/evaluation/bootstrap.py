"""Percentile bootstrap over evaluated rows, stratified by task and the same draws for every model.

Rows are drawn with replacement within each task (Efron and Tibshirani 1993, chapters 8 and 13). A task's draws depend
on the seed and the task alone: figures of two models on the same rows are therefore paired, and the interval of their
difference leaves out what they share.

Of n rows n − 1 are drawn, each counting n / (n − 1) times: the mean then varies by s² / n, where n draws would vary by
(n − 1) / n of it, too little for small n (Rao and Wu 1988, the rescaled bootstrap with n − 1 draws). One row does not
tell how much rows of its task vary. Tasks of one row are therefore drawn as one task, in which they also vary by what
tasks differ by (collapsed strata, Cochran 1977, section 5A.12).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
FEWEST = 6
"""Rows from which an interval is known: one between the least and the largest of n values, as all of the bootstrap's
are, holds their median in at most 1 − 2 / 2ⁿ of cases, and that is 95 % from n = 6."""
_BLOCK = 1 << 21  # drawn rows held at once
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; `low` and `high` are None where the rows are too few to know one."""

    score: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, score: float, drawn_R: Array, rows: int) -> Estimate:
        """The percentile interval of resampled figures, of at least `FEWEST` rows; what is not finite is left out."""
        finite = drawn_R[np.isfinite(drawn_R)]
        if rows < FEWEST or not len(finite):
            return cls(float(score), None, None)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(finite, [tail, 1 - tail])
        return cls(float(score), float(low), float(high))

    @property
    def above_0(self) -> bool:
        """Whether the whole interval is; never without one."""
        return self.low is not None and self.low > 0

    def as_dict(self) -> dict[str, float | None]:
        return {"score": self.score, "low": self.low, "high": self.high}


def resampled_sums(values_nF: Array, *, task: str, seed: int, resamples: int) -> Array:
    """[R, F] sums of each column over n rows, drawn R times (see the module); NaN of one row."""
    n = len(values_nF)
    if n < 2:
        return np.full((resamples, values_nF.shape[1]), np.nan)
    digest = hashlib.sha256(f"{seed}\n{task}".encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    sums = np.empty((resamples, values_nF.shape[1]))
    block = max(1, _BLOCK // n)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = rng.integers(0, n, (count, n - 1))
        for column in range(values_nF.shape[1]):
            sums[start : start + count, column] = values_nF[:, column][drawn].sum(1) * n / (n - 1)
    return sums


@dataclass(frozen=True)
class Resampler:
    """Figures over several tasks, with their resampled values and rows: what `Estimate.of` takes."""

    seed: int
    resamples: int

    def mean_over_tasks(self, tasks: Mapping[str, Array]) -> tuple[float, Array, int]:
        """Mean over tasks of each task's mean [n]: a task with many rows weighs no more than another.

        The resampled values are NaN where just one of several tasks has one row: its weight is that of a whole task,
        and nothing tells how much it varies.
        """
        means = [float(values.mean()) for values in tasks.values()]
        drawn = np.zeros(self.resamples)
        for name, values_n1 in _strata({task: values[:, None] for task, values in tasks.items()}).items():
            # Rows of a task weigh 1/n of it; those drawn together are a task each.
            drawn += self._sums(name, values_n1)[:, 0] / (len(values_n1) if name in tasks else 1)
        return float(np.mean(means)), drawn / len(tasks), sum(map(len, tasks.values()))

    def ratio_of_sums(self, tasks: Mapping[str, tuple[Array, Array]]) -> tuple[float, Array, int]:
        """Σ numerator / Σ denominator over all rows of all tasks, both [n] per task.

        Rows whose denominator is 0 are not there. All rows weigh alike here, so that a single row is drawn together
        with the smallest of the other tasks.
        """
        pairs = {task: np.stack(pair, 1)[pair[1] != 0] for task, pair in tasks.items()}
        top, bottom = sum(pair.sum(0) for pair in pairs.values())
        drawn_R2 = np.zeros((self.resamples, 2))
        for name, values_n2 in _strata(pairs, join=True).items():
            drawn_R2 += self._sums(name, values_n2)
        return float(top / bottom), drawn_R2[:, 0] / drawn_R2[:, 1], sum(map(len, pairs.values()))

    def _sums(self, task: str, values_nF: Array) -> Array:
        return resampled_sums(values_nF, task=task, seed=self.seed, resamples=self.resamples)


def _strata(tasks: Mapping[str, Array], *, join: bool = False) -> dict[str, Array]:
    """What is drawn from: the tasks, those of one row as one; `join` gives a single such row to the smallest task."""
    found = {task: values for task, values in tasks.items() if len(values) > 1}
    alone = sorted(task for task, values in tasks.items() if len(values) == 1)
    if len(alone) == 1 and join and found:
        alone.append(min(found, key=lambda task: (len(found[task]), task)))
        del found[alone[-1]]
    if alone:
        found["\n".join(alone)] = np.concatenate([tasks[task] for task in alone])
    return found
