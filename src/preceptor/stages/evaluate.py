"""The `evaluate` stage: named models on held-out rows and by suites, into `scores.json` and `predictions/`.

A stopped evaluation goes on with the next model: a predictions file is written whole, and the stage's directory belongs
to one identity, so that a file found there is of these models and rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from preceptor.evaluation.evaluate import evaluate_models
from preceptor.evaluation.predict import Settings
from preceptor.evaluation.predictions import Prediction
from preceptor.evaluation.rows import EvaluationSet, evaluation_set
from preceptor.evaluation.scores import summarise
from preceptor.recipe import EvaluateStage
from preceptor.stages.datasets import split_for
from preceptor.system.files import json_text, write_atomic

if TYPE_CHECKING:
    from preceptor.stages.context import StageContext


def execute(spec: EvaluateStage, context: StageContext) -> dict[str, Any]:
    """Writes `predictions/NAME.jsonl` for each model and `scores.json`; returns scores, intervals and warnings.

    Raises:
        InputError: whatever loading models and data refuses, rows that do not say how they are scored, and what suites
            refuse.
        RunFailed: a judge or a served model stopped answering.
    """
    log = lambda line: context.log(f"{context.name}: {line}")  # noqa: E731
    suites = None
    if spec.has_suites:
        from preceptor.stages.suites import Suites

        suites = Suites(spec, context)  # what it refuses is refused before any model is loaded
    if spec.on:
        scores = evaluate_models(
            {name: context.resolve_model(model) for name, model in spec.named.items()},
            _sets(spec, spec.on, context, where=f"stages.{context.name}.on: "),
            reference=spec.name_of(spec.reference),
            expert=spec.name_of(spec.expert),
            settings=Settings(spec.max_length, spec.max_new_tokens, spec.batch_size),
            seed=context.seed,
            resamples=spec.resamples,
            directory=context.directory,
            log=log,
        )
    else:
        nothing: dict[str, list[Prediction]] = {name: [] for name in (*spec.named, *spec.served)}
        scores = summarise(nothing, {}, seed=context.seed, resamples=spec.resamples)
        scores |= {"reference": spec.name_of(spec.reference), "expert": spec.name_of(spec.expert)}
    found = {} if suites is None else suites.run()
    scores |= found
    write_atomic(context.directory / "scores.json", json_text(scores))
    kept = ("general", "domain", "kl_reference", "kl_expert", "recovery", "retention")
    results: dict[str, Any] = {
        "models": {name: {key: entry[key] for key in kept} for name, entry in scores["models"].items()},
        "warnings": scores["warnings"] + [line for part in found.values() for line in part["warnings"]],
    }
    for suite, part in found.items():
        results[suite] = {"models": {name: _headline(suite, entry) for name, entry in part["models"].items()}}
        if part.get("usage") is not None:
            results[suite]["usage"] = part["usage"]
    return results


def _headline(suite: str, entry: Mapping[str, Any]) -> Any:
    """A model's one figure of a suite, or of each task."""
    if suite == "tasks":
        return {task: score["value"] for task, score in entry.items()}
    return entry["score"] if suite == "mt_bench" else {key: entry[key] for key in ("win_rate", "low", "high")}


def check_rows(context: StageContext) -> None:
    """Makes sure, before any stage runs, that the rows to be scored say how; rows that a stage will write are left out.

    A metric misspelt in a data file would otherwise be found when all models are trained, and mending the file would
    make them all be trained again.

    Raises:
        InputError: unreadable or overlapping data, and rows that do not say how they are scored.
    """
    spec = context.recipe.stages[context.name]
    assert isinstance(spec, EvaluateStage)
    there = [name for name in spec.datasets if not context.recipe.dataset(name).stages]
    if there:
        _sets(spec, there, replace(context, log=lambda line: None))


def _sets(spec: EvaluateStage, names: Sequence[str], context: StageContext, *, where: str = "") -> list[EvaluationSet]:
    splits = split_for(names, context)
    return [
        evaluation_set(splits[name], context.recipe.dataset(name), rows=spec.rows, seed=context.seed, where=where)
        for name in names
    ]
