"""From the scores of each seed to the report: means, intervals, differences, what succeeded, and plain tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from preceptor.pocket.methods import DISTILLED, METHODS, REFERENCE
from preceptor.pocket.tasks import TASKS

BASELINE = "sft"
TITLES = {"teacher": "teacher", **{name: method.title for name, method in METHODS.items()}}

Seed = Mapping[str, Any]
"""One seed's results: `scores` (the content of scores.json), and by model `distances`, `seconds` and `mixtures`."""
Models = Mapping[str, Mapping[str, Any]]


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


def _interval(seeds: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """Over seeds; of one seed the interval its scores have, from resampling the questions within each task."""
    found = [each for each in seeds if each is not None]
    if len(found) < len(seeds):
        return None
    values = [each["score"] if "score" in each else each["value"] for each in found]
    if len(values) > 1:
        return over_seeds(values).as_dict()
    return Interval(values[0], found[0]["low"], found[0]["high"]).as_dict()


def summarise(results: Mapping[int, Seed]) -> dict[str, dict[str, Any]]:
    """{model: {"general": {score, low, high}, "domain", "tasks", "recovery", "kl_teacher", ...}} from {seed: results}.

    `over_sft` is the difference in general exact match to plain fine-tuning, paired by seed, where there are several.
    """
    seeds = list(results.values())
    models: dict[str, dict[str, Any]] = {}
    for name in (name for name in TITLES if all(name in seed["scores"]["models"] for seed in seeds)):
        entries = [seed["scores"]["models"][name] for seed in seeds]
        entry: dict[str, Any] = {"title": TITLES[name]}
        for key in ("general", "domain", "recovery", "retention", "kl_reference", "kl_expert"):
            entry[key] = _interval([each[key] for each in entries])
        entry["tasks"] = _tasks(entries)
        distances = [seed["distances"][name] for seed in seeds if name in seed["distances"]]
        if distances:
            entry["kl_teacher"] = float(np.mean([each["kl_teacher"] for each in distances]))
            entry["attention_kl"] = float(np.mean([each["attention_kl"] for each in distances]))
        if all(name in seed["seconds"] for seed in seeds):
            entry["seconds"] = float(np.mean([seed["seconds"][name] for seed in seeds]))
        if name in seeds[0]["mixtures"]:
            entry["mixture"] = seeds[0]["mixtures"][name]
        compared = name in (*DISTILLED, "sft_clean") and name != BASELINE
        if compared and len(seeds) > 1 and all(BASELINE in seed["scores"]["models"] for seed in seeds):
            entry["over_sft"] = _paired(seeds, name, BASELINE, "general").as_dict()
        models[name] = entry
    return models


def _paired(seeds: Sequence[Seed], name: str, other: str, role: str) -> Interval:
    models = [seed["scores"]["models"] for seed in seeds]
    return over_seeds([each[name][role]["score"] - each[other][role]["score"] for each in models])


def _tasks(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Exact match by task, of both datasets."""
    found: dict[str, list[float]] = {}
    for entry in entries:
        for dataset in entry["datasets"].values():
            for task, score in dataset["tasks"].items():
                found.setdefault(task, []).append(score["score"])
    return {task: float(np.mean(values)) for task, values in found.items()}


def pareto_front(models: Models) -> list[str]:
    """The models that no other is better than in one of general and domain score without being worse in the other."""
    points = {name: (entry["general"]["score"], entry["domain"]["score"]) for name, entry in models.items()}

    def beaten(name: str) -> bool:
        g, d = points[name]
        return any(og >= g and od >= d and (og > g or od > d) for other, (og, od) in points.items() if other != name)

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


# --- tables ----------------------------------------------------------------------------------------------------


def distillation_table(models: Models) -> str:
    """Stage 1: a line per general task, a column per model, then the means and distances to the teacher."""
    shown = {name: models[name] for name in ("teacher", *DISTILLED, "sft_clean") if name in models}
    lines = [["exact match", *(TITLES[name] for name in shown)]]
    lines += [[task, *(f"{model['tasks'][task]:.2f}" for model in shown.values())] for task in TASKS]
    general = [model["general"] for model in shown.values()]
    lines += [
        ["mean", *(f"{each['score']:.3f}" for each in general)],
        ["95 % interval", *(_range(each) for each in general)],
        ["KL to the teacher", *(_number(model.get("kl_teacher")) for model in shown.values())],
        ["attention KL", *(_number(model.get("attention_kl")) for model in shown.values())],
        ["seconds", *(_number(model.get("seconds"), 0) for model in shown.values())],
    ]
    return _table(lines, rules=(1, len(TASKS) + 1))


def alignment_table(models: Models) -> str:
    """Stage 2: a line per model, what it knows in general and of the shop, what it gained and what it kept."""
    head = ["", "general", "95 % interval", "shop", "95 % interval", "recovery", "retention", "KL to ref.", "seconds"]
    lines = [head]
    for name, model in models.items():
        if name in ("teacher", "sft_clean") or (name in DISTILLED and name != REFERENCE):
            continue
        lines.append(
            [
                "reference (KD, both)" if name == REFERENCE else TITLES[name],
                f"{model['general']['score']:.3f}",
                _range(model["general"]),
                f"{model['domain']['score']:.3f}",
                _range(model["domain"]),
                _number(None if model["recovery"] is None else model["recovery"]["score"], 2),
                _number(None if model["retention"] is None else model["retention"]["score"], 2),
                _number(None if model["kl_reference"] is None else model["kl_reference"]["score"]),
                _number(model.get("seconds"), 0),
            ]
        )
    return _table(lines, rules=(1,))


def _range(interval: Mapping[str, float]) -> str:
    return f"{interval['low']:.2f} to {interval['high']:.2f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(lines: Sequence[Sequence[str]], *, rules: Sequence[int]) -> str:
    """Columns to the right but the first; a rule before each line whose number is in `rules`."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    out = []
    for number, row in enumerate(rows):
        out += ["-" * len(row)] if number in rules else []
        out.append(row)
    return "\n".join(out)
