"""The tables of models and of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.figures.looks import title_of
from preceptor.report.views.numbers import duration, number
from preceptor.report.views.table import EMPTY, Cell, Column, Table, figure, plain, without_empty, words

METRICS = {"exact": "exact match", "accuracy": "accuracy", "rougeL": "ROUGE-L"}


def name_cell(key: str, model: Mapping[str, Any]) -> Cell:
    """A model's title, what it is, and the name the recipe gave it."""
    title, tags = title_of(key, model), []
    if model["kind"] in ("reference", "expert"):
        tags.append(model["kind"])
    elif model["kind"] == "published":
        tags.append(f"published: {model.get('source') or 'source not given'}")
    elif model["kind"] == "other":
        tags.append("from files")
    if model.get("pareto"):
        tags.append("Pareto front")
    if (model.get("seeds") or 0) > 1:
        tags.append(f"{model['seeds']} seeds")
    return Cell(
        title,
        order=title.casefold(),
        tags=tuple(tags),
        code="" if key == title or model["kind"] == "published" else key,
    )


def models_table(report: Mapping[str, Any]) -> Table | None:
    """Every model with every figure, columns that nobody has left out."""
    columns = [
        Column("Model", numeric=False),
        Column("General", "score on general rows, mean over tasks"),
        Column("Domain", "score on domain rows, mean over tasks"),
        Column("Retention", "general score divided by the reference's"),
        Column("Recovery", "share of the expert's gain over the reference on the domain"),
        Column("Forgotten", "general rows right in the reference and wrong here, %"),
        Column("Gained", "domain rows wrong in the reference and right here, %"),
        Column("KL to ref.", "KL divergence to the reference on general rows, nats per target"),
        Column("KL to expert", "KL divergence to the expert on domain rows, nats per target"),
        Column("KL to teacher", "KL divergence to its own teacher, nats per target"),
        Column("MT-Bench", "mean score from 1 to 10"),
        Column("AlpacaEval", "win rate against the baseline, %"),
        Column("Training", "duration of the stage that made it"),
    ]
    rows = [_row(key, model) for key, model in report["models"].items()]
    quiet = [model["kind"] == "published" for model in report["models"].values()]
    return without_empty("models", "Models, with 95 % intervals under each figure.", columns, rows, quiet)


def _row(key: str, model: Mapping[str, Any]) -> list[Cell]:
    flips = model.get("flips") or {}
    compared = model["kind"] != "reference"
    alpaca = model.get("alpaca_eval") or {}
    return [
        name_cell(key, model),
        figure(model.get("general")),
        figure(model.get("domain")),
        figure(model.get("retention"), 2) if compared else EMPTY,
        figure(model.get("recovery"), 2) if compared else EMPTY,
        _flip(flips.get("general"), "forgotten") if compared else EMPTY,
        _flip(flips.get("domain"), "gained") if compared else EMPTY,
        figure(model.get("kl_reference"), None) if compared else EMPTY,
        figure(model.get("kl_expert"), None) if model["kind"] != "expert" else EMPTY,
        plain(model.get("kl_teacher"), 3),
        figure((model.get("mt_bench") or {}).get("score"), 2),
        figure({**alpaca, "value": alpaca.get("win_rate")}, 2),
        EMPTY if model.get("seconds") is None else Cell(duration(model["seconds"]), order=float(model["seconds"])),
    ]


def _flip(flips: Mapping[str, Any] | None, side: str) -> Cell:
    return EMPTY if not flips else figure({**flips[side], "value": flips[side]["rate"]}, 1, 100)


def tasks_table(report: Mapping[str, Any]) -> Table | None:
    """A row for each task, a column for each model that was given it."""
    models = {key: model for key, model in report["models"].items() if model.get("tasks")}
    tasks = {task: about for model in models.values() for task, about in model["tasks"].items()}
    columns = [
        Column("Task", numeric=False),
        Column("Metric", numeric=False),
        Column("Rows"),
        Column("Majority", "score of the best constant answer"),
        *(Column(title_of(key, model)) for key, model in models.items()),
    ]
    rows = []
    for task, about in tasks.items():
        dataset = report["datasets"].get(about.get("dataset"), {})
        facts = dataset.get("tasks", {}).get(task) or dataset.get("tasks", {}).get(task.rpartition("/")[2]) or {}
        where = " · ".join(str(each) for each in (about.get("role"), about.get("dataset")) if each)
        rows.append(
            [
                Cell(task, where, task.casefold()),
                words(METRICS.get(str(about.get("metric")), str(about.get("metric") or ""))),
                plain(facts.get("rows")),
                plain(facts.get("majority"), 2),
                *(figure(model["tasks"].get(task), 2) for model in models.values()),
            ]
        )
    return without_empty("tasks", "Score of each model on each task, with 95 % intervals.", columns, rows)


def suites_table(report: Mapping[str, Any]) -> Table | None:
    """Tasks of lm-evaluation-harness: a row for each task, a column for each model."""
    models = {key: model for key, model in report["models"].items() if model.get("suites")}
    tasks = {task: entry for model in models.values() for task, entry in model["suites"].items()}
    columns = [
        Column("Task", numeric=False),
        Column("Metric", numeric=False),
        Column("Rows"),
        *(Column(title_of(key, model)) for key, model in models.items()),
    ]
    rows = [
        [
            words(task),
            words(str(entry["metric"] or ""), "lower is better" if entry.get("higher_is_better") is False else ""),
            plain(entry.get("rows")),
            *(_suite(model["suites"].get(task)) for model in models.values()),
        ]
        for task, entry in tasks.items()
    ]
    harness = (report.get("tasks") or {}).get("harness") or "lm-evaluation-harness"
    return without_empty("suites", f"Task suites, measured by {harness}; ± is one standard error.", columns, rows)


def _suite(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None or entry.get("value") is None:
        return EMPTY
    stderr = entry.get("stderr")
    return Cell(number(entry["value"], 3), "" if stderr is None else f"± {number(stderr, 3)}", float(entry["value"]))
