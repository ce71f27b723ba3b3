"""From predictions to `scores.json`: every figure a report needs, with its interval and what to be wary of.

Works on the rows alone, without a model: the same function scores fresh predictions and those read back from disk.
docs/scores.md describes the result field by field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from preceptor.evaluation.bootstrap import CONFIDENCE, FEWEST, Array, Estimate, Resampler
from preceptor.evaluation.comparison import BinaryTask, Drawn, flips, recovery, retention
from preceptor.evaluation.predictions import Prediction
from preceptor.evaluation.rows import BINARY
from preceptor.evaluation.score_warnings import model_warnings

FORMAT = 1
ROLES = ("general", "domain")
SMALL = 100
"""A dataset with fewer scored rows is warned about."""
Key = tuple[str, str]  # dataset, task


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of an evaluated dataset beside its rows: where they come from and what was lost."""

    role: str
    part: str
    dropped: Mapping[str, int] = field(default_factory=dict)
    cut: int = 0


def summarise(
    predictions: Mapping[str, Sequence[Prediction]],
    datasets: Mapping[str, DatasetFacts],
    *,
    reference: str | None = None,
    expert: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """The content of `scores.json` without `settings`.

    Args:
        predictions: by model, of the same rows in the same order.
        datasets: the datasets the rows come from.
        reference: the model of `predictions` that the others started from: flips, retention, `over_reference`.
        expert: the one they learned the domain from: recovery.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: predictions of other rows for one model than for another.
    """
    asked = {name: [(each["dataset"], each["id"]) for each in rows] for name, rows in predictions.items()}
    first = next(iter(asked), "")
    for name, rows in asked.items():
        if rows != asked[first]:
            raise ValueError(f"{name} was evaluated on other rows than {first}, so that they cannot be compared")
    resampler = Resampler(seed, resamples)
    models = {name: _Model(rows, resampler) for name, rows in predictions.items()}
    shape = models.get(first) or _Model([], resampler)
    facts = {name: _dataset(name, each, shape) for name, each in datasets.items()}
    entries = {
        name: model.entry(None if reference is None else models[reference], None if expert is None else models[expert])
        for name, model in models.items()
    }
    return {
        "format": FORMAT,
        "seed": seed,
        "resamples": resamples,
        "confidence": CONFIDENCE,
        "reference": reference,
        "expert": expert,
        "datasets": facts,
        "models": entries,
        "warnings": [
            *_data_warnings(facts, shape),
            *_alone(shape),
            *model_warnings(facts, entries, reference, expert),
        ],
    }


class _Model:
    """One model's rows grouped by dataset and task, and the figures over them."""

    def __init__(self, rows: Sequence[Prediction], resampler: Resampler) -> None:
        self.resampler = resampler
        self.groups: dict[Key, list[Prediction]] = {}
        for each in rows:
            self.groups.setdefault((each["dataset"], each["task"]), []).append(each)
        self.roles: dict[str, Drawn | None] = {role: self._score(role=role) for role in ROLES}

    def scored(self, *, role: str | None = None, dataset: str | None = None) -> dict[Key, list[Prediction]]:
        """Groups of rows with a metric; a task's rows without one are measured by likelihood alone."""
        found = {}
        for key, rows in self.groups.items():
            chosen = [each for each in rows if each["metric"] is not None]
            if chosen and role in (None, rows[0]["role"]) and dataset in (None, key[0]):
                found[key] = chosen
        return found

    def _score(self, **which: str | None) -> Drawn | None:
        tasks = {_name(key): _column(rows, "score") for key, rows in self.scored(**which).items()}
        return Drawn(*self.resampler.mean_over_tasks(tasks)) if tasks else None

    def entry(self, reference: _Model | None, expert: _Model | None) -> dict[str, Any]:
        """One value of `models`."""
        entry: dict[str, Any] = {role: self._aggregate(role) for role in ROLES}
        entry["kl_reference"] = self._ratio("kl", role="general")
        entry["kl_expert"] = self._ratio("kl", role="domain")
        entry["agreement_reference"] = self._ratio("agree", role="general")
        entry["agreement_expert"] = self._ratio("agree", role="domain")
        entry["over_reference"] = {role: _difference(self, reference, role) for role in ROLES}
        entry["flips"] = {role: None if reference is None else self._flips(reference, role) for role in ROLES}
        entry["recovery"] = entry["retention"] = None
        if reference is not None:
            ours, base = self.roles["general"], reference.roles["general"]
            if ours is not None and base is not None:
                entry["retention"] = _value(retention(ours, base))
            ours, base = self.roles["domain"], reference.roles["domain"]
            best = None if expert is None else expert.roles["domain"]
            if ours is not None and base is not None and best is not None:
                entry["recovery"] = _value(recovery(ours, base, best))
        names = dict.fromkeys(dataset for dataset, _ in self.groups)
        entry["datasets"] = {name: self._dataset(name) for name in names}
        return entry

    def _aggregate(self, role: str) -> dict[str, Any] | None:
        drawn, groups = self.roles[role], self.scored(role=role)
        if drawn is None:
            return None
        rows = sum(len(each) for each in groups.values())
        return {**drawn.estimate().as_dict(), "tasks": len(groups), "rows": rows}

    def _dataset(self, name: str) -> dict[str, Any]:
        score = self._score(dataset=name)
        nll, drawn, rows = self._summed("nll", dataset=name)
        entry: dict[str, Any] = {} if score is None else score.estimate().as_dict()
        return {
            **(entry or {"score": None, "low": None, "high": None}),
            "nll": _value(Estimate.of(nll, drawn, rows)),
            "perplexity": _value(Estimate.of(np.exp(nll), np.exp(drawn), rows)),
            "kl": self._ratio("kl", dataset=name),
            "agreement": self._ratio("agree", dataset=name),
            "tasks": {key[1]: self._task(key, rows) for key, rows in self.scored(dataset=name).items()},
        }

    def _task(self, key: Key, rows: Sequence[Prediction]) -> dict[str, Any]:
        score = Drawn(*self.resampler.mean_over_tasks({_name(key): _column(rows, "score")}))
        entry: dict[str, Any] = score.estimate().as_dict()
        if rows[0]["metric"] == "accuracy":
            entry["acc_norm"] = float(np.mean([_normalised(each) for each in rows]))
        return entry

    def _summed(self, column: str, *, role: str | None = None, dataset: str | None = None) -> tuple[float, Array, int]:
        """Σ column / Σ targets over rows of a role or dataset."""
        chosen = {
            _name(key): (_column(rows, column), _column(rows, "targets"))
            for key, rows in self.groups.items()
            if role in (None, rows[0]["role"]) and dataset in (None, key[0])
        }
        return self.resampler.ratio_of_sums(chosen)

    def _ratio(self, column: str, **which: str | None) -> dict[str, float | None] | None:
        role, dataset = which.get("role"), which.get("dataset")
        rows = [r for key, r in self.groups.items() if role in (None, r[0]["role"]) and dataset in (None, key[0])]
        if not rows or any(each[column] is None for group in rows for each in group):
            return None
        return _value(Estimate.of(*self._summed(column, role=role, dataset=dataset)))

    def _flips(self, reference: _Model, role: str) -> dict[str, Any] | None:
        before = reference.scored(role=role)
        tasks = {
            _name(key): BinaryTask(_column(before[key], "score"), _column(rows, "score"), _guess(rows))
            for key, rows in self.scored(role=role).items()
            if rows[0]["metric"] in BINARY
        }
        return flips(tasks, self.resampler)


def _name(key: Key) -> str:
    return "/".join(key)


def _column(rows: Sequence[Prediction], name: str) -> Array:
    return np.array([each[name] for each in rows], dtype=np.float64)


def _guess(rows: Sequence[Prediction]) -> Array:
    return np.array([1 / (len(each["choices"]) - 1) if each["choices"] else 0.0 for each in rows])


def _normalised(row: Prediction) -> bool:
    """Whether the choice with the largest log-likelihood per character is the right one."""
    per_character = [value / len(text) for value, text in zip(row["log_likelihoods"], row["choices"], strict=True)]
    return bool(row["choices"][int(np.argmax(per_character))].strip() == row["expected"].strip())


def _value(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else {"value": estimate.score, "low": estimate.low, "high": estimate.high}


def _difference(model: _Model, reference: _Model | None, role: str) -> dict[str, float | None] | None:
    ours, theirs = model.roles[role], None if reference is None else reference.roles[role]
    return None if ours is None or theirs is None else _value(ours.minus(theirs))


# --- the data --------------------------------------------------------------------------------------------------


def _dataset(name: str, facts: DatasetFacts, model: _Model) -> dict[str, Any]:
    """One value of `datasets`: what the rows are, and what answering without looking would score."""
    tasks: dict[str, Any] = {}
    for (_, task), rows in model.scored(dataset=name).items():
        metric = rows[0]["metric"]
        counts = Counter(each["expected"].strip() for each in rows)
        chances = [1 / len(each["choices"]) for each in rows if each["choices"]]
        tasks[task] = {
            "metric": metric,
            "rows": len(rows),
            "majority": counts.most_common(1)[0][1] / len(rows) if metric in BINARY else None,
            "chance": float(np.mean(chances)) if chances else None,
        }
    rows = [each for key, group in model.groups.items() if key[0] == name for each in group]
    return {
        "role": facts.role,
        "part": facts.part,
        "rows": len(rows),
        "targets": int(sum(each["targets"] for each in rows)),
        "dropped": dict(facts.dropped),
        "cut": facts.cut,
        "tasks": tasks,
    }


def _data_warnings(datasets: Mapping[str, Any], model: _Model) -> list[str]:
    found = []
    for name, data in datasets.items():
        scored = sum(task["rows"] for task in data["tasks"].values())
        if 0 < scored < SMALL:
            told = "its intervals are wide" if scored >= FEWEST else "too few to know an interval"
            counted = "1 scored row" if scored == 1 else f"{scored} scored rows"
            found.append(f"{name}: only {counted}, fewer than {SMALL}; {told}")
        if data["dropped"]:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in data["dropped"].items())
            found.append(f"{name}: {sum(data['dropped'].values()):,} rows dropped for all models: {reasons}")
        for (_, task), rows in model.scored(dataset=name).items():
            inner = next((pair for each in rows if (pair := _prefix(each["choices"] or ()))), None)
            if inner is not None:
                found.append(
                    f"{name}: in task {task} the choice {inner[1]!r} begins with the choice {inner[0]!r}, which is "
                    "therefore never the less likely of the two; read acc_norm there"
                )
    return found


def _alone(model: _Model) -> list[str]:
    """A task of one row beside larger ones, whose share in a score has no known spread (see `mean_over_tasks`)."""
    found = []
    for role in ROLES:
        groups = model.scored(role=role)
        alone = [key for key, rows in groups.items() if len(rows) == 1]
        if len(alone) == 1 < len(groups):
            found.append(
                f"{alone[0][0]}: task {alone[0][1]} has a single scored row and weighs as much as the other "
                f"{len(groups) - 1} in the {role} score, whose interval is therefore not known; give it more rows"
            )
    return found


def _prefix(choices: Sequence[str]) -> tuple[str, str] | None:
    return next(((a, b) for a in choices for b in choices if a != b and b.startswith(a)), None)
