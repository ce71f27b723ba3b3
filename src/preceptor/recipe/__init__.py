"""Recipes: what a user asks for, as data. Validated whole, before anything is loaded.

This package is private but for `load_recipe` (re-exported by `preceptor`); inside preceptor its specs are
imported from here.
"""

from __future__ import annotations

from preceptor.recipe.data import DatasetSpec, OverlapSpec
from preceptor.recipe.evaluating import EvaluateStage
from preceptor.recipe.generating import GenerateStage
from preceptor.recipe.load import load_recipe, parse_recipe
from preceptor.recipe.making import ComposeStage, InitStage, MergeStage, TrainTokenizerSpec
from preceptor.recipe.models import LoraSpec, ModelSpec
from preceptor.recipe.objective import (
    AttentionSpec,
    LogitsSpec,
    NextTokenSpec,
    RouterBalanceSpec,
    Term,
    TermSpec,
)
from preceptor.recipe.paths import expand, local_path
from preceptor.recipe.recipe import Recipe
from preceptor.recipe.routes import RoutesSpec, ShareSpec
from preceptor.recipe.stages import Stage, datasets_of, models_of
from preceptor.recipe.storing import StoreStage
from preceptor.recipe.suites import AlpacaEvalSpec, EndpointSpec, MtBenchSpec, PriceSpec, TasksSpec
from preceptor.recipe.training import OWNED_TRAINING_KEYS, DistillStage, SftStage, TrainingStage

__all__ = [
    "OWNED_TRAINING_KEYS",
    "AlpacaEvalSpec",
    "AttentionSpec",
    "ComposeStage",
    "DatasetSpec",
    "DistillStage",
    "EndpointSpec",
    "EvaluateStage",
    "GenerateStage",
    "InitStage",
    "LogitsSpec",
    "LoraSpec",
    "MergeStage",
    "ModelSpec",
    "MtBenchSpec",
    "NextTokenSpec",
    "OverlapSpec",
    "PriceSpec",
    "Recipe",
    "RouterBalanceSpec",
    "RoutesSpec",
    "SftStage",
    "ShareSpec",
    "Stage",
    "StoreStage",
    "TasksSpec",
    "Term",
    "TermSpec",
    "TrainTokenizerSpec",
    "TrainingStage",
    "datasets_of",
    "expand",
    "load_recipe",
    "local_path",
    "models_of",
    "parse_recipe",
]
