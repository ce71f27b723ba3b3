"""What can be checked of all stages before the first one runs for hours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preceptor.errors import InputError, InputErrors
from preceptor.recipe import (
    ComposeStage,
    DistillStage,
    EvaluateStage,
    InitStage,
    MergeStage,
    ModelSpec,
    Recipe,
    TrainingStage,
    models_of,
)
from preceptor.recipe.base import stage_of
from preceptor.stages import check_of, combination_check, evaluation_check, model_check, pair_check
from preceptor.stages.context import StageContext, run_directory


def check_ahead(recipe: Recipe, names: Sequence[str], *, models: bool = True) -> None:
    """Checks the data paths, the `training:` blocks and (with `models`) the model files of the named stages.

    Models named on the Hub are fetched into the cache for that. Raises InputErrors with all that is wrong.
    """
    errors: list[str] = []
    seen: list[ModelSpec] = []
    for name in names:
        stage = recipe.stages[name]
        where = f"{recipe.source}: stages.{name}"
        errors += _training(recipe, name)
        context = StageContext(recipe, name, run_directory(recipe) / name, recipe.seed, print)
        if recipe.stage_datasets(name):  # prompts are compared among all datasets, so all must be there
            for dataset in recipe.data:
                errors += _found(f"{recipe.source}: data.{dataset}: ", context.resolve_dataset, dataset)
        for key, model in models_of(stage).items():
            if not models or isinstance(stage, InitStage) or stage_of(model.path):
                continue  # a tokenizer alone, or a model that is yet to be made
            unmade = model.adapter is not None and stage_of(model.adapter)
            spec = context.resolve_model(model.model_copy(update={"adapter": None}) if unmade else model)
            if spec not in seen:
                seen.append(spec)
                errors += _found(f"{where}.{'.'.join(map(str, key))}: ", model_check(), spec)
        if models and not errors and isinstance(stage, DistillStage):
            for key, teacher in stage.teachers.items():
                pair = [context.resolve_model(model) for model in (stage.student, teacher)]
                if all(_made(model, resolved) for model, resolved in zip((stage.student, teacher), pair)):
                    # Of several teachers it matters which one.
                    route = "" if len(key) == 1 else "." + ".".join(map(str, key))
                    errors += _found(f"{where}{route}: ", pair_check(), pair)
        if not errors and isinstance(stage, EvaluateStage):
            errors += _found(f"{recipe.source}: stages.{name}.on: ", evaluation_check(), context)
        if models and not errors and isinstance(stage, ComposeStage | MergeStage):
            named = list(models_of(stage).values())
            resolved = [context.resolve_model(model) for model in named]
            if all(_made(model, there) for model, there in zip(named, resolved)):
                errors += _found(f"{where}: ", combination_check(stage.kind), resolved)
    if errors:
        raise InputErrors(list(dict.fromkeys(errors)))


def _made(model: ModelSpec, resolved: ModelSpec) -> bool:
    """Whether all that `model` refers to is there: what a stage is yet to make cannot be looked into."""
    if stage_of(model.path) is None and (model.adapter is None or stage_of(model.adapter) is None):
        return True
    return Path(resolved.path).exists() and (resolved.adapter is None or Path(resolved.adapter).exists())


def check_together(recipe: Recipe, names: Sequence[str]) -> None:
    """The part of `check_ahead` in which other processes must join: TrainingArguments waits for all of them.

    What it refuses, the first process reports.
    """
    for name in names:
        _training(recipe, name)


def _training(recipe: Recipe, name: str) -> list[str]:
    """What is refused of a stage's `training:` block."""
    stage = recipe.stages[name]
    check = check_of(stage.kind)
    if check is None or not isinstance(stage, TrainingStage) or not stage.training:
        return []
    return _found(f"{recipe.source}: stages.{name}.", check, stage.training)


def _found(where: str, check: Callable[[Any], object], value: Any) -> list[str]:
    """The sentences with which `check` refuses `value`."""
    try:
        check(value)
    except InputErrors as error:
        return [where + sentence for sentence in error.errors]
    except InputError as error:
        return [f"{where}{error}"]
    return []
