"""Recipes: what a user asks for, as data. Validated whole, before anything is loaded.

This package is private but for `load_recipe` (re-exported by `preceptor`); inside preceptor its specs are
imported from here.
"""

from __future__ import annotations

from preceptor.recipe.data import DatasetSpec, OverlapSpec
from preceptor.recipe.load import load_recipe, parse_recipe
from preceptor.recipe.models import LoraSpec, ModelSpec
from preceptor.recipe.objective import AttentionSpec, LogitsSpec, NextTokenSpec, Term, TermSpec
from preceptor.recipe.paths import expand, local_path
from preceptor.recipe.recipe import Recipe
from preceptor.recipe.stages import (
    OWNED_TRAINING_KEYS,
    DistillStage,
    GenerateStage,
    InitStage,
    SftStage,
    Stage,
    TrainingStage,
    TrainTokenizerSpec,
    datasets_of,
    models_of,
)

__all__ = [
    "OWNED_TRAINING_KEYS",
    "AttentionSpec",
    "DatasetSpec",
    "DistillStage",
    "GenerateStage",
    "InitStage",
    "LogitsSpec",
    "LoraSpec",
    "ModelSpec",
    "NextTokenSpec",
    "OverlapSpec",
    "Recipe",
    "SftStage",
    "Stage",
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
