"""`scores.json` as the report uses it: each model's figures checked, so that a damaged one is left out and named.

docs/scores.md describes the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preceptor.errors import shown
from preceptor.report.lines import Say, of_newer_format, read_object
from preceptor.report.values import MalformedError, interval, items, mapping, number, text, with_ends

FORMAT = 1
NAME = "scores.json"
SUITES = ("mt_bench", "alpaca_eval", "tasks")
TITLES = {"mt_bench": "MT-Bench", "alpaca_eval": "AlpacaEval", "tasks": "task suites"}
_VALUES = ("recovery", "retention", "kl_reference", "kl_expert")


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
        if isinstance(value.get(role), str) and value[role] in scores.models:
            setattr(scores, role, value[role])
        elif value.get(role) is not None:
            say(f"{NAME}: {role} is {shown(value[role])}, which is none of its models; it is left out")
    _read_differences(scores)
    scores.warnings = [each for each in items(value.get("warnings")) if isinstance(each, str)]
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
    scores.warnings = [each for each in items(results.get("warnings")) if isinstance(each, str)]
    return scores


# --- parts -----------------------------------------------------------------------------------------------------


def _read_datasets(value: Mapping[str, Any], scores: Scores, say: Say) -> None:
    datasets = value.get("datasets")
    if datasets is not None and not isinstance(datasets, dict):
        say(f"{NAME}: datasets is {shown(datasets)} where a JSON object belongs; it is left out")
    for name, data in datasets.items() if isinstance(datasets, dict) else ():
        try:
            scores.datasets[name] = _dataset(data)
        except MalformedError as error:
            say(f"{NAME}: datasets.{name}{error}; it is left out")


def _dataset(data: Any) -> dict[str, Any]:
    data = mapping(data, "")
    tasks = {}
    for task, facts in mapping(data.get("tasks"), ".tasks").items():
        where = f".tasks.{task}"
        metric = text(mapping(facts, where).get("metric"), f"{where}.metric")
        counts = {key: number(facts.get(key), f"{where}.{key}") for key in ("rows", "majority", "chance")}
        tasks[task] = {"metric": metric, **counts}
    role, part = (text(data.get(key), f".{key}") for key in ("role", "part"))
    return {"role": role, "part": part, "rows": number(data.get("rows"), ".rows"), "tasks": tasks}


def _rows(entry: Any, datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A model's figures over evaluated rows."""
    entry = mapping(entry, "")
    found: dict[str, Any] = {role: interval(entry.get(role), f".{role}", "score") for role in ("general", "domain")}
    found |= {key: interval(entry.get(key), f".{key}", "value") for key in _VALUES}
    found["flips"] = _flips(entry.get("flips"))
    over = entry.get("over_reference")
    over = {} if over is None else mapping(over, ".over_reference")
    found["over_reference"] = {
        role: interval(over.get(role), f".over_reference.{role}", "value") for role in ("general", "domain")
    }
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
    for dataset, each in (mapping(entry.get("datasets") or {}, ".datasets")).items():
        where = f".datasets.{dataset}"
        facts = datasets.get(dataset, {})
        for task, score in mapping(mapping(each, where).get("tasks") or {}, f"{where}.tasks").items():
            measured = interval(score, f"{where}.tasks.{task}", "score")
            if measured is not None:
                metric = facts.get("tasks", {}).get(task, {}).get("metric")
                found.append(
                    (dataset, task, {**measured, "role": facts.get("role"), "dataset": dataset, "metric": metric})
                )
    names = [task for _, task, _ in found]
    return {task if names.count(task) == 1 else f"{dataset}/{task}": score for dataset, task, score in found}


def _flips(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    found: dict[str, Any] = {}
    for role, each in mapping(value, ".flips").items():
        if each is None:
            found[role] = None
            continue
        where = f".flips.{role}"
        flips = mapping(each, where)
        found[role] = {key: number(flips.get(key), f"{where}.{key}") for key in ("rows", "tasks", "chance")}
        for kind in ("forgotten", "gained"):
            parts = mapping(flips.get(kind), f"{where}.{kind}")
            keys = ("count", "rate", "low", "high", "adjusted")
            found[role][kind] = with_ends({key: number(parts.get(key), f"{where}.{kind}.{key}") for key in keys})
            if found[role][kind]["rate"] is None:
                found[role] = None
                break
    return found if any(found.values()) else None


def _read_differences(scores: Scores) -> None:
    for name, entry in scores.models.items():
        for role, each in entry["over_reference"].items():
            if each is not None and name != scores.reference and scores.reference is not None:
                scores.differences.append({"measure": role, "model": name, "than": scores.reference, **each})


def _read_suite(suite: str, value: Any, scores: Scores, say: Say) -> None:
    """One of MT-Bench, AlpacaEval and the task suites: its models' entries, differences, warnings and facts."""
    try:
        block = mapping(value, "")
        models = mapping(block.get("models"), ".models")
        block = {**block, **_facts(suite, block, say)}
    except MalformedError as error:
        say(f"{NAME}: {suite}{error}; it is left out")
        return
    read = {"mt_bench": _mt_bench, "alpaca_eval": _alpaca_eval, "tasks": _suites}[suite]
    for name, entry in models.items():
        try:
            measured = read(mapping(entry, f".models.{name}"), f".models.{name}", block)
        except MalformedError as error:
            say(f"{NAME}: {suite}{error}; the model's figures of it are left out")
            continue
        if name not in scores.models:
            scores.models[name] = {**nothing_of_rows(), **nothing_of_suites(), "listed": False}
        scores.models[name]["suites" if suite == "tasks" else suite] = measured
    scores.facts[suite] = {key: each for key, each in block.items() if key not in ("models", "differences", "warnings")}
    for each in items(block.get("differences")):
        try:
            paired = interval(each, "", "value")
            names = {key: each[key] for key in ("model", "than") if isinstance(each[key], str)}
        except (MalformedError, KeyError, TypeError):
            continue
        if paired is not None and len(names) == 2:
            scores.differences.append({"measure": suite, **names, **paired})
    said = (each for each in items(block.get("warnings")) if isinstance(each, str))
    scores.warnings += [f"{TITLES[suite]}: {each}" for each in said if each not in scores.warnings]


_FACTS: Mapping[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("judge", "baseline", "preference", "order", "harness"), text),
    **dict.fromkeys(("questions", "instructions"), number),
    "categories": lambda value, where: None if value is None else _names(value, where),
    "usage": lambda value, where: None if value is None else _usage(value, where),
}


def _facts(suite: str, block: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """How a suite was measured; what is of another type is null."""
    found: dict[str, Any] = {}
    for key in (key for key in _FACTS if key in block):
        try:
            found[key] = _FACTS[key](block[key], f".{key}")
        except MalformedError as error:
            say(f"{NAME}: {suite}{error}; it is left out")
            found[key] = None
    return found


def _names(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise MalformedError(f"{where} is {shown(value)} where a list of texts belongs")
    return value


def _usage(value: Any, where: str) -> dict[str, Any]:
    return {key: number(each, f"{where}.{key}") for key, each in mapping(value, where).items()}


def _mt_bench(entry: Mapping[str, Any], where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    turns = mapping(entry.get("turns") or {}, f"{where}.turns")
    categories = mapping(entry.get("categories") or {}, f"{where}.categories")
    found = {}
    for name, each in categories.items():
        mean = interval(each, f"{where}.categories.{name}", "score")
        if mean is not None:
            found[name] = {**mean, "rows": number(each.get("rows"), f"{where}.categories.{name}.rows")}
    return {
        "source": text(entry.get("source"), f"{where}.source"),
        "judge": text(entry.get("judge", block.get("judge")), f"{where}.judge"),
        "score": interval(entry.get("score"), f"{where}.score", "score"),
        "turns": {turn: interval(turns.get(turn), f"{where}.turns.{turn}", "score") for turn in ("1", "2")},
        "categories": found,
        **{key: number(entry.get(key), f"{where}.{key}") for key in ("rows", "failed", "missing")},
    }


def _alpaca_eval(entry: Mapping[str, Any], where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("win_rate", "low", "high", "standard_error", "wins", "losses", "ties", "rows", "failed", "missing")
    lengths = ("mean_length", "baseline_mean_length")
    return {
        "source": text(entry.get("source"), f"{where}.source"),
        "judge": text(entry.get("judge", block.get("judge")), f"{where}.judge"),
        **with_ends({key: number(entry.get(key), f"{where}.{key}") for key in (*keys, *lengths)}),
    }


def _suites(entry: Mapping[str, Any], where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for task, each in entry.items():
        facts = mapping(each, f"{where}.{task}")
        found[task] = {
            **{key: text(facts.get(key), f"{where}.{task}.{key}") for key in ("metric", "filter")},
            **{key: number(facts.get(key), f"{where}.{task}.{key}") for key in ("value", "stderr", "rows")},
            "higher_is_better": _direction(facts.get("higher_is_better"), f"{where}.{task}.higher_is_better"),
        }
    return found


def _direction(value: Any, where: str) -> bool | None:
    """Whether higher is better; None where the harness does not say it."""
    if value is not None and not isinstance(value, bool):
        raise MalformedError(f"{where} is {shown(value)} where true or false belongs")
    return value
