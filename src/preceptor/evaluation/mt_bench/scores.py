"""MT-Bench scores from judgments: means over judged rows, as FastChat's `show_result` takes them, with intervals.

A row is one graded turn. The score is the mean over the rows of both turns together, the score of a turn over its rows,
and judgments without a grade (−1) are in no mean. Intervals draw questions, within each category: the two turns of a
question are one conversation and go together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preceptor.evaluation.bootstrap import Array, Estimate, Resampler
from preceptor.evaluation.mt_bench.files import FAILED, OFFICIAL_QUESTIONS, Judgment, Question, on_scale

Grades = Array
"""[Q, 2] grades by question and turn; NaN where there is none."""


@dataclass(frozen=True)
class Judged:
    """One model's judgments and where they come from: "ours", "answers file" or "judgments file"."""

    judgments: Sequence[Judgment]
    source: str

    @property
    def judge(self) -> str | None:
        """Who graded; a file of judgments has one judge."""
        return self.judgments[0].judge[0] if self.judgments else None


def summarise(
    models: Mapping[str, Judged],
    questions: Sequence[Question],
    *,
    reference: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Entries of the models, paired differences to one of them, and warnings, as docs/judges.md describes them.

    Args:
        models: by name.
        questions: all that are asked.
        reference: the model the others are compared with; the first where it is None or has no judgments. Models that
            another judge graded are not compared with it.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    figures = _Figures(questions, Resampler(seed, resamples))
    grades = {name: figures.grades(each.judgments) for name, each in models.items()}
    entries = {
        name: {"source": each.source, "judge": each.judge, **figures.entry(grades[name], each.judgments)}
        for name, each in models.items()
    }
    against = reference if reference in models else next(iter(models), None)
    differences = []
    for name, each in models.items():
        if against is None or name == against or each.judge != models[against].judge:
            continue
        found = figures.difference(grades[name], grades[against])
        if found is not None:
            differences.append({"model": name, "than": against, **found})
    return entries, differences, _warnings(models, entries, differences, questions)


class _Figures:
    """What is computed from the grades of one model on the questions, or of two."""

    def __init__(self, questions: Sequence[Question], resampler: Resampler) -> None:
        self._resampler = resampler
        self._place = {each.question_id: place for place, each in enumerate(questions)}
        self._turns = [len(each.turns) for each in questions]
        names = dict.fromkeys(each.category for each in questions)
        self._categories = {name: np.array([each.category == name for each in questions]) for name in names}

    def grades(self, judgments: Sequence[Judgment]) -> Grades:
        found = np.full((len(self._turns), 2), np.nan)
        for each in judgments:
            place = self._place.get(each.question_id)
            if place is not None and each.score != FAILED:
                found[place, each.turn - 1] = each.score
        return found

    def entry(self, grades_Q2: Grades, judgments: Sequence[Judgment]) -> dict[str, Any]:
        graded = ~np.isnan(grades_Q2)
        ours = [each for each in judgments if each.question_id in self._place]
        return {
            "score": self._mean(grades_Q2),
            "turns": {str(turn): self._mean(grades_Q2[:, [turn - 1]]) for turn in (1, 2)},
            "categories": {
                name: {
                    **(self._mean(grades_Q2, name) or {"score": None, "low": None, "high": None}),
                    "rows": int(graded[chosen].sum()),
                }
                for name, chosen in self._categories.items()
            },
            "rows": int(graded.sum()),
            "failed": sum(each.score == FAILED for each in ours),
            "missing": sum(self._turns) - len(ours),
        }

    def difference(self, grades_Q2: Grades, base_Q2: Grades) -> dict[str, Any] | None:
        """Paired over the rows graded for both; None where there are none."""
        gain_Q2 = grades_Q2 - base_Q2
        found = self._mean(gain_Q2)
        if found is None:
            return None
        return {
            "value": found["score"],
            "low": found["low"],
            "high": found["high"],
            "rows": int((~np.isnan(gain_Q2)).sum()),
        }

    def _mean(self, values_QT: Array, category: str | None = None) -> dict[str, float | None] | None:
        """Mean over the rows that are there, of one category or all, as {score, low, high}; None without rows.

        Questions without a grade are not drawn.
        """
        there_QT = ~np.isnan(values_QT)
        sums_Q, counts_Q = np.nansum(values_QT, 1), there_QT.sum(1).astype(float)
        tasks = {
            name: (sums_Q[chosen], counts_Q[chosen])
            for name, chosen in self._categories.items()
            if category in (None, name)
        }
        if not any(counts.any() for _, counts in tasks.values()):
            return None
        return Estimate.of(*self._resampler.ratio_of_sums(tasks)).as_dict()


def _warnings(
    models: Mapping[str, Judged],
    entries: Mapping[str, Any],
    differences: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
) -> list[str]:
    found = []
    asked = {each.question_id for each in questions}
    if entries and len(questions) < OFFICIAL_QUESTIONS:
        found.append(
            f"{len(questions):,} questions are fewer than the {OFFICIAL_QUESTIONS} of MT-Bench, so that the scores "
            "cannot be set beside published ones"
        )
    for name, entry in entries.items():
        judgments = models[name].judgments
        rows = entry["rows"] + entry["failed"] + entry["missing"]
        if entry["failed"]:
            found.append(
                f"{name}: no grade could be read from {entry['failed']:,} of {rows:,} judgments; they are left out of "
                "the means"
            )
        if entry["missing"]:
            found.append(f"{name}: {entry['missing']:,} of {rows:,} judgments are missing; the means are over the rest")
        off = sum(each.score != FAILED and not on_scale(each.score) for each in judgments if each.question_id in asked)
        if off:
            found.append(
                f"{name}: the judge left the scale of 1 to 10 in {off:,} of {rows:,} judgments; these grades count as "
                "they stand, as in the official script"
            )
        further = sum(each.question_id not in asked for each in judgments)
        if further:
            found.append(f"{name}: judgments of questions that are not asked here are left out ({further:,})")
    for each in differences:
        if each["low"] is None or each["low"] <= 0 <= each["high"]:
            interval = "too few for an interval"
            if each["low"] is not None:
                interval = f"95 % interval {each['low']:+.2f} to {each['high']:+.2f}"
            found.append(
                f"{each['model']} and {each['than']} are not distinguishable: their scores differ by "
                f"{each['value']:+.2f} over {each['rows']:,} common rows, {interval}"
            )
    return found
