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
    Stage,
    StoreStage,
    TrainingStage,
    models_of,
)
from preceptor.recipe.base import KeyPath, stage_of
from preceptor.stages import ahead_check, check_of
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
        if models and isinstance(stage, StoreStage):
            errors += _found(f"{where}.", ahead_check("served"), stage)
        context = StageContext(recipe, name, run_directory(recipe) / name, recipe.seed, print)
        if recipe.stage_datasets(name):  # prompts are compared among all datasets, so all must be there
            for dataset in recipe.data:
                errors += _found(f"{recipe.source}: data.{dataset}: ", context.resolve_dataset, dataset)
        for key, model in models_of(stage).items():
            if not models or isinstance(stage, InitStage) or stage_of(model.path):
                continue  # a tokenizer alone, or a model that is yet to be made
            if (key == ("student",) and isinstance(stage, StoreStage)) or _is_stored(key, model, context):
                continue  # of which the tokenizer is read, or what a teacher said
            unmade = model.adapter is not None and stage_of(model.adapter)
            spec = context.resolve_model(model.model_copy(update={"adapter": None}) if unmade else model)
            if spec not in seen:
                seen.append(spec)
                errors += _found(f"{where}.{_dotted(key)}: ", ahead_check("one"), spec)
        if models and not errors:
            errors += _together(stage, context, where)
        if not errors and isinstance(stage, EvaluateStage):
            errors += _found(f"{where}.on: ", ahead_check("rows"), context) if stage.on else []
            errors += _found(f"{recipe.source}: ", ahead_check("suites"), context) if stage.has_suites else []
    if errors:
        raise InputErrors(list(dict.fromkeys(errors)))


def _together(stage: Stage, context: StageContext, where: str) -> list[str]:
    """What is refused of models that have to fit each other, as far as they are there."""
    errors: list[str] = []
    if isinstance(stage, DistillStage):
        errors += _found(f"{where}.", lambda given: ahead_check("stored")(given, context), stage)
    if isinstance(stage, DistillStage | StoreStage):
        for key, teacher in models_of(stage).items():
            if key == ("student",) or _is_stored(key, teacher, context):
                continue
            if (pair := _made(context, [stage.student, teacher])) is not None:
                route = "" if len(key) == 1 else f".{_dotted(key)}"  # of several teachers it matters which one
                errors += _found(f"{where}{route}: ", ahead_check("pair"), pair)
    elif isinstance(stage, ComposeStage | MergeStage):
        sources = _made(context, list(models_of(stage).values()))
        if sources is not None:
            errors += _found(f"{where}: ", ahead_check(stage.kind), sources)
    return errors


def _is_stored(key: KeyPath, model: ModelSpec, context: StageContext) -> bool:
    """Whether a teacher is a store, whose predictions are read and of which there is no model."""
    return key[0] == "teacher" and ahead_check("store")(model, context) is not None


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))


def _made(context: StageContext, models: Sequence[ModelSpec]) -> list[ModelSpec] | None:
    """The models resolved; None where a stage is yet to make one of them, which cannot be looked into."""
    resolved = [context.resolve_model(model) for model in models]
    return resolved if all(map(_there, models, resolved)) else None


def _there(model: ModelSpec, resolved: ModelSpec) -> bool:
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
