"""The `evaluate` stage: named models on the held-out rows of named datasets, into `scores.json` and `predictions/`.

A stopped evaluation goes on with the next model: a predictions file is written whole, and the stage's directory belongs
to one identity, so that a file found there is of these models and rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from preceptor.evaluation.evaluate import evaluate_models
from preceptor.evaluation.predict import Settings
from preceptor.evaluation.rows import EvaluationSet, evaluation_set
from preceptor.recipe import EvaluateStage
from preceptor.stages.datasets import split_for

if TYPE_CHECKING:
    from preceptor.stages.context import StageContext


def execute(spec: EvaluateStage, context: StageContext) -> dict[str, Any]:
    """Writes `predictions/NAME.jsonl` for each model and `scores.json`; returns scores, intervals and warnings.

    Raises:
        InputError: whatever loading models and data refuses, and rows that do not say how they are scored.
    """
    sets = _sets(spec, spec.datasets, context, where=f"stages.{context.name}.on: ")
    scores = evaluate_models(
        {name: context.resolve_model(model) for name, model in spec.named.items()},
        sets,
        reference=spec.name_of(spec.reference),
        expert=spec.name_of(spec.expert),
        settings=Settings(spec.max_length, spec.max_new_tokens, spec.batch_size),
        seed=context.seed,
        resamples=spec.resamples,
        directory=context.directory,
        log=lambda line: context.log(f"{context.name}: {line}"),
    )
    kept = ("general", "domain", "kl_reference", "kl_expert", "recovery", "retention")
    return {
        "models": {name: {key: entry[key] for key in kept} for name, entry in scores["models"].items()},
        "warnings": scores["warnings"],
    }


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
