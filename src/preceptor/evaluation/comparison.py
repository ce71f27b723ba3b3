"""A model against the reference it started from and the expert it learned from, on the same rows.

Forgetting is counted row by row (arXiv 2510.17776): a mean hides that one answer was lost and another won. Of
questions with c choices some answers are right by guessing, and change by guessing. A model that knows the share q of
the answers and guesses the rest scores a = q + (1−q)/c, so it guesses (1−a)·c/(c−1) of them. Where both models guess,
a right answer turns wrong with probability (1/c)(1−1/c), and a wrong one right. If what one model knows were
independent of what the other knows, then of all questions

    chance = (1−a_ref)(1−a_S)/(c−1)

would flip each way without anything forgotten or learned; the adjusted rates are the observed ones less that, and at
least 0. That is the paper's correction. Models that descend from one another mostly guess on the same questions, more
often than independence says, so that adjusted rates err on the side of forgetting. Written answers (exact match) are
not guessed: their chance is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from preceptor.evaluation.bootstrap import Array, Estimate, Resampler


@dataclass(frozen=True)
class BinaryTask:
    """Scores 0 or 1 of two models on the same rows [n], and 1/(c−1) of each row's c choices (0 where none)."""

    before_n: Array
    after_n: Array
    guess_n: Array

    @property
    def chance(self) -> float:
        """Expected share of rows that flip one way by guessing (see the module)."""
        return float((1 - self.before_n.mean()) * (1 - self.after_n.mean()) * self.guess_n.mean())


def flips(tasks: Mapping[str, BinaryTask], resampler: Resampler) -> dict[str, Any] | None:
    """Answers forgotten (1 → 0) and gained (0 → 1): counts, and rates as means over tasks.

    Rates are shares of all rows of a task, so that gained less forgotten is the change of the score over these tasks.
    None without tasks of 0/1 metrics.
    """
    if not tasks:
        return None
    result: dict[str, Any] = {"rows": sum(len(task.before_n) for task in tasks.values()), "tasks": len(tasks)}
    result["chance"] = float(np.mean([task.chance for task in tasks.values()]))
    for name, sign in (("forgotten", 1.0), ("gained", -1.0)):
        flipped = {key: (sign * (task.before_n - task.after_n) > 0).astype(float) for key, task in tasks.items()}
        interval = Estimate.of(*resampler.mean_over_tasks(flipped))
        adjusted = [max(0.0, float(flipped[key].mean()) - task.chance) for key, task in tasks.items()]
        result[name] = {
            "count": int(sum(values.sum() for values in flipped.values())),
            "rate": interval.score,
            "low": interval.low,
            "high": interval.high,
            "adjusted": float(np.mean(adjusted)),
        }
    return result


@dataclass(frozen=True)
class Drawn:
    """A score, its resampled values [R], drawn alike for all models, and how many rows it is of."""

    score: float
    drawn_R: Array
    rows: int

    def estimate(self) -> Estimate:
        return Estimate.of(self.score, self.drawn_R, self.rows)

    def minus(self, other: Drawn) -> Estimate:
        """The paired difference."""
        return Estimate.of(self.score - other.score, self.drawn_R - other.drawn_R, self.rows)


def recovery(model: Drawn, reference: Drawn, expert: Drawn) -> Estimate | None:
    """(S − ref) / (expert − ref) on the domain: 0 at the reference, 1 at the expert.

    None where the expert does not beat the reference beyond noise (the paired interval of the difference reaches 0, or
    is not known): the quotient would then be one of noise.
    """
    gain = expert.minus(reference)
    if not gain.above_0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (model.drawn_R - reference.drawn_R) / (expert.drawn_R - reference.drawn_R)
    return Estimate.of((model.score - reference.score) / gain.score, drawn, model.rows)


def retention(model: Drawn, reference: Drawn) -> Estimate | None:
    """S / ref on general rows: 1 where nothing is lost.

    None where the reference's own interval reaches 0 or is not known.
    """
    if not reference.estimate().above_0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = model.drawn_R / reference.drawn_R
    return Estimate.of(model.score / reference.score, drawn, model.rows)
