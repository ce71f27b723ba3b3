"""From the scores of each seed to the report: means, intervals, differences, and one plain table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from preceptor.pocket.study import CONTROL, METHODS
from preceptor.pocket.tasks import TASKS

RESAMPLES = 2000
BASELINE = "sft"
TITLES = {"teacher": "teacher", **{name: method.title for name, method in METHODS.items()}, CONTROL: "SFT, clean"}

Scores = Mapping[str, Any]
"""What the worker writes for one method of one seed."""


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
    half = float(student_t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def over_questions(values: Sequence[float], kinds: Sequence[str]) -> Interval:
    """Mean over tasks with a bootstrap interval over questions, drawn within each task; says nothing of other seeds."""
    rng = np.random.default_rng(0)
    value_Q, kind_Q = np.asarray(values, dtype=float), np.asarray(kinds)
    means, drawn = [], []
    for kind in dict.fromkeys(kinds):
        of_kind = value_Q[kind_Q == kind]
        means.append(of_kind.mean())
        drawn.append(of_kind[rng.integers(0, len(of_kind), (RESAMPLES, len(of_kind)))].mean(1))
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return Interval(float(np.mean(means)), float(low), float(high))


def _interval(seeds: Sequence[Scores]) -> Interval:
    if len(seeds) > 1:
        return over_seeds([scores["score"] for scores in seeds])
    return over_questions([float(bit) for bit in seeds[0]["correct"]], seeds[0]["kinds"])


def _difference(seeds: Sequence[Scores], baselines: Sequence[Scores]) -> Interval:
    """Paired by seed, or by question where there is one seed."""
    if len(seeds) > 1:
        return over_seeds([a["score"] - b["score"] for a, b in zip(seeds, baselines, strict=True)])
    bits = zip(seeds[0]["correct"], baselines[0]["correct"], strict=True)
    return over_questions([float(a) - float(b) for a, b in bits], seeds[0]["kinds"])


def summarise(results: Mapping[int, Mapping[str, Scores]]) -> dict[str, dict[str, Any]]:
    """{model: {"general": {score, low, high}, "tasks", "kl_teacher", ...}} from {seed: {model: scores}}.

    With one seed intervals come from resampling the questions, with several from the seeds; `over_sft` is the paired
    difference in exact match to plain fine-tuning.
    """
    models: dict[str, dict[str, Any]] = {}
    for name in (name for name in TITLES if all(name in scores for scores in results.values())):
        seeds = [scores[name] for scores in results.values()]
        entry: dict[str, Any] = {
            "general": _interval(seeds).as_dict(),
            "tasks": {kind: float(np.mean([scores["tasks"][kind] for scores in seeds])) for kind in TASKS},
            "kl_teacher": float(np.mean([scores["kl_teacher"] for scores in seeds])),
            "attention_kl": float(np.mean([scores["attention_kl"] for scores in seeds])),
        }
        if name != "teacher":
            entry["seconds"] = float(np.mean([scores["seconds"] for scores in seeds]))
        if name not in ("teacher", BASELINE):
            entry["over_sft"] = _difference(seeds, [scores[BASELINE] for scores in results.values()]).as_dict()
        models[name] = entry
    return models


def table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Plain text: a line per task kind, a column per model, then the means and distances."""
    lines = [["exact match", *(TITLES[name] for name in models)]]
    lines += [[kind, *(f"{model['tasks'][kind]:.2f}" for model in models.values())] for kind in TASKS]
    general = [model["general"] for model in models.values()]
    lines += [
        ["mean", *(f"{each['score']:.3f}" for each in general)],
        ["95 % interval", *(f"{each['low']:.2f} to {each['high']:.2f}" for each in general)],
        ["KL to the teacher", *(f"{model['kl_teacher']:.3f}" for model in models.values())],
        ["attention KL", *(f"{model['attention_kl']:.3f}" for model in models.values())],
        ["seconds", *(f"{model['seconds']:.0f}" if "seconds" in model else "" for model in models.values())],
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    rule = "-" * len(rows[0])
    return "\n".join([rows[0], rule, *rows[1 : len(TASKS) + 1], rule, *rows[len(TASKS) + 1 :]])
