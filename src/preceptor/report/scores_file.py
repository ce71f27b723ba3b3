"""`scores.json` as the report uses it: each model's figures checked, so that a damaged one is left out and named.

docs/scores.md describes the fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preceptor.errors import shown
from preceptor.report.lines import Say, of_newer_format, read_object

FORMAT = 1
NAME = "scores.json"
SUITES = ("mt_bench", "alpaca_eval", "tasks")
TITLES = {"mt_bench": "MT-Bench", "alpaca_eval": "AlpacaEval", "tasks": "task suites"}
_VALUES = ("recovery", "retention", "kl_reference", "kl_expert")


class MalformedError(ValueError):
    """A part of a file is not what its description says: the place, and what was found there."""


@dataclass
class Scores:
    """One evaluate stage's results.

    `models` has an entry for each model of `scores.json` and of the suites: `general`, `domain`, `recovery`,
    `retention`, `kl_reference`, `kl_expert`, `flips`, `over_reference`, `tasks`, `mt_bench`, `alpaca_eval`, `suites`,
    and `listed`, false where files of other models' answers were judged only. `facts` are the suites without their
    models.
    """

    reference: str | None = None
    expert: str | None = None
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    differences: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_scores(path: Path, say: Say) -> Scores | None:
    """What a scores.json holds, as far as it is well-formed; what is not is left out and said."""
    value = read_object(path, say)
    if value is None:
        return None
    if of_newer_format(value, FORMAT):
        say(
            f"{NAME}: is of format {value['format']}, and this preceptor reads format {FORMAT}; "
            "make the report with the version that wrote it"
        )
        return None
    if value.get("format") != FORMAT or not isinstance(value.get("models"), dict):
        say(f"{NAME}: is not a scores file of preceptor (format {shown(value.get('format'))}); its scores are left out")
        return None
    scores = Scores()
    _read_datasets(value, scores, say)
    for name, entry in value["models"].items():
        try:
            scores.models[name] = {**_rows(entry, scores.datasets), "listed": True}
        except MalformedError as error:
            say(f"{NAME}: models.{name}{error}; the model is left out")
    for role in ("reference", "expert"):
        if value.get(role) in scores.models:
            setattr(scores, role, value[role])
    _read_differences(scores)
    scores.warnings = [each for each in _list(value.get("warnings")) if isinstance(each, str)]
    for suite in SUITES:
        if value.get(suite) is not None:
            _read_suite(suite, value[suite], scores, say)
    return scores


def scores_of_record(results: Mapping[str, Any]) -> Scores:
    """What stage.json itself says of an evaluate stage whose scores.json is lost: means and intervals alone."""
    scores = Scores()
    models = results.get("models")
    for name, entry in models.items() if isinstance(models, dict) else ():
        try:
            scores.models[name] = {**_rows(entry, {}), "listed": True}
        except MalformedError:
            continue
    scores.warnings = [each for each in _list(results.get("warnings")) if isinstance(each, str)]
    return scores


# --- parts -----------------------------------------------------------------------------------------------------


def _read_datasets(value: Mapping[str, Any], scores: Scores, say: Say) -> None:
    datasets = value.get("datasets")
    for name, data in datasets.items() if isinstance(datasets, dict) else ():
        tasks = data.get("tasks") if isinstance(data, dict) else None
        if not isinstance(tasks, dict) or not all(isinstance(task, dict) for task in tasks.values()):
            say(f"{NAME}: datasets.{name} is not as docs/scores.md describes it; it is left out")
            continue
        scores.datasets[name] = {
            "role": data.get("role"),
            "part": data.get("part"),
            "rows": data.get("rows"),
            "tasks": {
                task: {key: facts.get(key) for key in ("metric", "rows", "majority", "chance")}
                for task, facts in tasks.items()
            },
        }


def _rows(entry: Any, datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A model's figures over evaluated rows."""
    entry = _mapping(entry, "")
    found: dict[str, Any] = {role: _interval(entry.get(role), f".{role}", "score") for role in ("general", "domain")}
    found |= {key: _interval(entry.get(key), f".{key}", "value") for key in _VALUES}
    found["flips"] = _flips(entry.get("flips"))
    over = entry.get("over_reference")
    over = {} if over is None else _mapping(over, ".over_reference")
    found["over_reference"] = {role: _interval(each, f".over_reference.{role}", "value") for role, each in over.items()}
    found["tasks"] = _tasks(entry, datasets)
    return {**found, **nothing_of_suites()}


def nothing_of_suites() -> dict[str, Any]:
    """The fields of a model that no suite has measured."""
    return {"mt_bench": None, "alpaca_eval": None, "suites": {}}


def nothing_of_rows() -> dict[str, Any]:
    """The fields of a model that was not given any rows."""
    return {"general": None, "domain": None, **dict.fromkeys(_VALUES), "flips": None, "over_reference": {}, "tasks": {}}


def _tasks(entry: Mapping[str, Any], datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Scores by task; a task of two datasets is called DATASET/TASK."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for dataset, each in (_mapping(entry.get("datasets") or {}, ".datasets")).items():
        where = f".datasets.{dataset}"
        facts = datasets.get(dataset, {})
        for task, score in _mapping(_mapping(each, where).get("tasks") or {}, f"{where}.tasks").items():
            interval = _interval(score, f"{where}.tasks.{task}", "score")
            if interval is not None:
                metric = facts.get("tasks", {}).get(task, {}).get("metric")
                found.append(
                    (dataset, task, {**interval, "role": facts.get("role"), "dataset": dataset, "metric": metric})
                )
    names = [task for _, task, _ in found]
    return {task if names.count(task) == 1 else f"{dataset}/{task}": score for dataset, task, score in found}


def _flips(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    found: dict[str, Any] = {}
    for role, each in _mapping(value, ".flips").items():
        if each is None:
            found[role] = None
            continue
        where = f".flips.{role}"
        flips = _mapping(each, where)
        found[role] = {key: _number(flips.get(key), f"{where}.{key}") for key in ("rows", "tasks", "chance")}
        for kind in ("forgotten", "gained"):
            parts = _mapping(flips.get(kind), f"{where}.{kind}")
            keys = ("count", "rate", "low", "high", "adjusted")
            found[role][kind] = {key: _number(parts.get(key), f"{where}.{kind}.{key}") for key in keys}
    return found if any(found.values()) else None


def _read_differences(scores: Scores) -> None:
    for name, entry in scores.models.items():
        for role, each in entry["over_reference"].items():
            if each is not None and name != scores.reference and scores.reference is not None:
                scores.differences.append({"measure": role, "model": name, "than": scores.reference, **each})


def _read_suite(suite: str, value: Any, scores: Scores, say: Say) -> None:
    """One of MT-Bench, AlpacaEval and the task suites: its models' entries, differences, warnings and facts."""
    try:
        block = _mapping(value, "")
        models = _mapping(block.get("models"), ".models")
    except MalformedError as error:
        say(f"{NAME}: {suite}{error}; it is left out")
        return
    read = {"mt_bench": _mt_bench, "alpaca_eval": _alpaca_eval, "tasks": _suites}[suite]
    for name, entry in models.items():
        try:
            measured = read(_mapping(entry, f".models.{name}"), f".models.{name}", block)
        except MalformedError as error:
            say(f"{NAME}: {suite}{error}; the model's figures of it are left out")
            continue
        if name not in scores.models:
            scores.models[name] = {**nothing_of_rows(), **nothing_of_suites(), "listed": False}
        scores.models[name]["suites" if suite == "tasks" else suite] = measured
    scores.facts[suite] = {key: each for key, each in block.items() if key not in ("models", "differences", "warnings")}
    for each in _list(block.get("differences")):
        try:
            interval = _interval(each, "", "value")
            names = {key: each[key] for key in ("model", "than") if isinstance(each[key], str)}
        except (MalformedError, KeyError):
            continue
        if interval is not None and len(names) == 2:
            p = {"p": each["p"]} if isinstance(each.get("p"), int | float) else {}
            scores.differences.append({"measure": suite, **names, **interval, **p})
    said = (each for each in _list(block.get("warnings")) if isinstance(each, str))
    scores.warnings += [f"{TITLES[suite]}: {each}" for each in said if each not in scores.warnings]


def _mt_bench(entry: Mapping[str, Any], where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    turns = _mapping(entry.get("turns") or {}, f"{where}.turns")
    categories = _mapping(entry.get("categories") or {}, f"{where}.categories")
    found = {}
    for name, each in categories.items():
        interval = _interval(each, f"{where}.categories.{name}", "score")
        if interval is not None:
            found[name] = {**interval, "rows": each.get("rows")}
    return {
        "source": entry.get("source"),
        "judge": block.get("judge"),
        "score": _interval(entry.get("score"), f"{where}.score", "score"),
        "turns": {turn: _interval(turns.get(turn), f"{where}.turns.{turn}", "score") for turn in ("1", "2")},
        "categories": found,
        **{key: _number(entry.get(key), f"{where}.{key}") for key in ("rows", "failed", "missing")},
    }


def _alpaca_eval(entry: Mapping[str, Any], where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("win_rate", "low", "high", "standard_error", "wins", "losses", "ties", "rows", "failed", "missing")
    lengths = ("mean_length", "baseline_mean_length")
    return {
        "source": entry.get("source"),
        "judge": block.get("judge"),
        **{key: _number(entry.get(key), f"{where}.{key}") for key in (*keys, *lengths)},
    }


def _suites(entry: Mapping[str, Any], where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for task, each in entry.items():
        facts = _mapping(each, f"{where}.{task}")
        found[task] = {
            "metric": facts.get("metric"),
            "filter": facts.get("filter"),
            **{key: _number(facts.get(key), f"{where}.{task}.{key}") for key in ("value", "stderr", "rows")},
            "higher_is_better": bool(facts.get("higher_is_better", True)),
        }
    return found


# --- values ----------------------------------------------------------------------------------------------------


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedError(f"{where} is {shown(value)} where a JSON object belongs")
    return value


def _number(value: Any, where: str) -> float | int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MalformedError(f"{where} is {shown(value)} where a number belongs")
    return value


def _interval(value: Any, where: str, key: str) -> dict[str, float | None] | None:
    """{key, low, high}; None where the figure itself is null."""
    if value is None:
        return None
    found = {name: _number(_mapping(value, where).get(name), f"{where}.{name}") for name in (key, "low", "high")}
    return None if found[key] is None else found


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else []
