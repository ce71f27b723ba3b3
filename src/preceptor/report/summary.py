"""report.json from runs as they were read: everything the page shows, and nothing the page would have to compute.

docs/report.md describes the fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from preceptor import __version__
from preceptor.report.cautions import cautions
from preceptor.report.curves import curves
from preceptor.report.examples import examples
from preceptor.report.groups import Group, differences, grouped
from preceptor.report.merge import over
from preceptor.report.published import published_models, published_rows
from preceptor.report.read import Run, Stage
from preceptor.report.scores_file import SUITES, nothing_of_rows, nothing_of_suites
from preceptor.report.seeds import interval_over, mean_over, pareto_front

FORMAT = 1
_RESULTS_ELSEWHERE = ("data", "models", "warnings", *SUITES)


def summarise(runs: Sequence[Run], *, title: str | None = None, published: bool = False) -> dict[str, Any]:
    """The content of report.json, without `figures`."""
    groups = grouped(runs)
    models = {key: entry for group in groups for key, entry in _models(group).items()}
    for name in pareto_front(_points(models)):
        models[name]["pareto"] = True
    if published:
        models |= {key: {**_nothing(), **entry} for key, entry in published_models().items()}
    compared = [each for group in groups for each in _differences(group)]
    shown, totals = examples(groups)
    suites = {suite: _facts(groups, suite) for suite in SUITES}
    return {
        "format": FORMAT,
        "preceptor": __version__,
        "title": title or _title(groups),
        "seconds": round(sum(_seconds(stage) or 0.0 for run in runs for stage in run.stages), 3),
        "runs": [_run(run) for run in runs],
        "models": models,
        "datasets": _datasets(groups),
        "curves": curves(groups),
        "examples": shown,
        "examples_total": totals,
        "published": published_rows() if published else [],
        **suites,
        "differences": compared,
        "warnings": cautions(groups, models, compared),
    }


def _title(groups: Sequence[Group]) -> str:
    named = [group.title for group in groups]
    return ", ".join(named) if len(named) <= 3 else f"{len(named)} runs"


# --- models ----------------------------------------------------------------------------------------------------


def _nothing() -> dict[str, Any]:
    """A model of which nothing is known."""
    rows = nothing_of_rows()
    del rows["over_reference"]
    fields: dict[str, Any] = {"run": None, "runs": [], "seeds": 0, "seconds": None, "pareto": False, "source": None}
    return {"title": "", "kind": "model", **fields, **rows, **nothing_of_suites()}


def _models(group: Group) -> dict[str, dict[str, Any]]:
    """The group's models by key, seeds as one."""
    found = {}
    for name in group.names:
        runs = [run for run in group.runs if name in run.entries]
        ids = [run.run.id for run in runs]
        kind = next((run.kinds[name] for run in runs if run.kinds[name] != "other"), "other")
        sources = {
            entry[suite]["source"]
            for run in runs
            for entry in (run.entries[name],)
            for suite in SUITES[:2]
            if entry[suite]
        }
        found[group.key(name)] = {
            **_nothing(),
            "title": f"{group.prefix}{runs[0].run.title_of(name)}",
            "kind": kind,
            "run": ids[0] if len(ids) == 1 else None,
            "runs": ids,
            "seeds": len(ids),
            **over([run.entries[name] for run in runs]),
            "seconds": mean_over([run.seconds[name] for run in runs]),
            "source": ", ".join(sorted(map(str, sources))) if kind == "other" else None,
            **_measured(runs, name),
        }
    return found


def _measured(runs: Sequence[Any], name: str) -> dict[str, float]:
    """Further figures that the caller has measured of a model in every seed."""
    each = [run.run.measured.get(name, {}) for run in runs]
    means = {key: mean_over([seed.get(key) for seed in each]) for key in each[0]}
    return {key: value for key, value in means.items() if value is not None}


def _points(models: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    return {
        key: (model["general"]["score"], model["domain"]["score"])
        for key, model in models.items()
        if model["general"] is not None and model["domain"] is not None
    }


def _differences(group: Group) -> list[dict[str, Any]]:
    found = []
    for names, seeds in differences(group):
        interval = interval_over(seeds, "value")  # None where a seed has none
        if interval is None:
            continue
        low, high = interval["low"], interval["high"]
        apart = low is not None and high is not None and not low <= 0 <= high
        found.append({**names, **interval, "distinguishable": apart})
    return found


# --- what was measured -----------------------------------------------------------------------------------------


def _scored(groups: Sequence[Group]) -> list[Stage]:
    return [stage for group in groups for run in group.runs for stage in run.run.stages if stage.scores is not None]


def _datasets(groups: Sequence[Group]) -> dict[str, Any]:
    """By name; of runs that evaluate other rows of one dataset the first, which the warnings say."""
    found: dict[str, Any] = {}
    for stage in _scored(groups):
        assert stage.scores is not None
        for name, facts in stage.scores.datasets.items():
            found.setdefault(name, facts)
    return found


def _facts(groups: Sequence[Group], suite: str) -> dict[str, Any] | None:
    """How a suite was measured: of the first stage that did, with the judges and categories of all."""
    each = [
        stage.scores.facts[suite]
        for stage in _scored(groups)
        if stage.scores is not None and suite in stage.scores.facts
    ]
    if not each:
        return None
    found = dict(each[0])
    if suite != "tasks":
        found["judges"] = list(dict.fromkeys(str(facts["judge"]) for facts in each if facts.get("judge") is not None))
    if suite == "mt_bench":
        found["categories"] = list(dict.fromkeys(name for facts in each for name in facts.get("categories") or ()))
    return found


# --- runs ------------------------------------------------------------------------------------------------------


def _run(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "path": run.path,
        "seed": run.seed,
        "recipe": run.recipe,
        "problems": run.problems,
        "stages": [_stage(stage) for stage in run.stages],
    }


def _stage(stage: Stage) -> dict[str, Any]:
    record = stage.record
    data = stage.results.get("data")
    return {
        "name": stage.name,
        "kind": stage.kind,
        "status": stage.status,
        "seconds": _seconds(stage),
        "started": _text(record.get("started")),
        "finished": _text(record.get("finished")),
        "versions": _object(record.get("versions")),
        "hardware": _object(record.get("hardware")),
        "settings": flattened(stage.given),
        "results": {key: value for key, value in stage.results.items() if key not in _RESULTS_ELSEWHERE},
        "data": data if isinstance(data, dict) else None,
    }


def _seconds(stage: Stage) -> float | None:
    value = stage.record.get("seconds")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def flattened(value: Any, where: str = "") -> dict[str, Any]:
    """A nested spec as {dotted key: value}; list items count from 0, and what is null or empty is left out."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found: dict[str, Any] = {}
        for key, item in items:
            found |= flattened(item, f"{where}.{key}" if where else str(key))
        return found
    return {} if value is None else {where: value}
