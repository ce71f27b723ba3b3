"""The kinds of stages, and what a stage of any kind reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from preceptor.recipe.base import KeyPath, Spec, one_or_many
from preceptor.recipe.evaluating import EvaluateStage
from preceptor.recipe.generating import GenerateStage
from preceptor.recipe.making import ComposeStage, InitStage, MergeStage, TrainTokenizerSpec
from preceptor.recipe.models import ModelSpec
from preceptor.recipe.storing import StoreStage
from preceptor.recipe.training import DistillStage, SftStage

Stage = Annotated[
    InitStage | ComposeStage | MergeStage | SftStage | DistillStage | GenerateStage | StoreStage | EvaluateStage,
    Field(discriminator="kind"),
]
KINDS: dict[str, type[Spec]] = {
    "init": InitStage,
    "compose": ComposeStage,
    "merge": MergeStage,
    "sft": SftStage,
    "distill": DistillStage,
    "generate": GenerateStage,
    "store": StoreStage,
    "evaluate": EvaluateStage,
}


def models_of(stage: Stage) -> dict[KeyPath, ModelSpec]:
    """The models a stage reads, by their key paths inside it."""
    if isinstance(stage, DistillStage):
        return {("student",): stage.student, **stage.teachers}
    if isinstance(stage, SftStage | GenerateStage):
        return {("model",): stage.model}
    if isinstance(stage, StoreStage):
        loaded: dict[KeyPath, ModelSpec] = {}
        if isinstance(stage.teacher, ModelSpec):
            loaded["teacher",] = stage.teacher
        return {**loaded, ("student",): stage.student}
    if isinstance(stage, ComposeStage):
        base: dict[KeyPath, ModelSpec] = {} if stage.base is None or stage.averaged else {("base",): stage.base}
        return {**{("experts", i): model for i, model in enumerate(stage.experts)}, **base}
    if isinstance(stage, MergeStage):
        return {("models", i): model for i, model in enumerate(stage.models)}
    if isinstance(stage, EvaluateStage):
        scored = stage.models.items() if isinstance(stage.models, dict) else enumerate(stage.models)
        found: dict[KeyPath, ModelSpec] = {
            ("models", key): model for key, model in scored if isinstance(model, ModelSpec)
        }
        if stage.reference is not None:
            found["reference",] = stage.reference
        if stage.expert is not None:
            found["expert",] = stage.expert
        return found
    if isinstance(stage.tokenizer, str):
        return {("tokenizer",): ModelSpec(path=stage.tokenizer)}
    return {}


def datasets_of(stage: Stage) -> dict[str, list[str]]:
    """The datasets a stage reads (names, or `stage:NAME`), by the key that names them."""
    if isinstance(stage, DistillStage | SftStage | StoreStage):
        return {"data": stage.dataset_names}
    if isinstance(stage, GenerateStage | ComposeStage):
        return {"prompts": one_or_many(stage.prompts)}
    if isinstance(stage, EvaluateStage):
        return {"on": stage.datasets}
    if isinstance(stage, InitStage) and isinstance(stage.tokenizer, TrainTokenizerSpec):
        return {"tokenizer.train_on": one_or_many(stage.tokenizer.train_on)}
    return {}
