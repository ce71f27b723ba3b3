"""A small recipe with a stored teacher: the same distillation from the live teacher and from its store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invariant import recipes
from preceptor.recipe import Recipe, parse_recipe

STORE: dict[str, Any] = {
    "kind": "store",
    "teacher": "stage:teacher",
    "student": "stage:student",
    "data": ["shop", "other"],
    "max_length": 96,
    "batch_size": 4,
}
OBJECTIVE = [{"kind": "next_token", "weight": 0.5}, {"kind": "logits"}]
TRAINING = {**recipes.TRAINING, "num_train_epochs": 1}


def document(folder: Path, runs: str = "runs", *, store: dict[str, Any] | None = None, **kd: Any) -> dict[str, Any]:
    """The recipe as written; `store` changes the store stage, `kd` the stage that learns from it."""
    taught = {"objective": OBJECTIVE, "training": TRAINING}
    written = recipes.document(folder, runs, dropout=0.0, **{**taught, "teacher": "stage:st", **kd})
    stages = written["stages"]
    written["stages"] = {
        "teacher": stages["teacher"],
        "student": {**stages["student"], "chat_template": "default"},
        "st": {**STORE, **(store or {})},
        "kd": stages["kd"],
    }
    return written


def recipe(folder: Path, runs: str = "runs", *, store: dict[str, Any] | None = None, **kd: Any) -> Recipe:
    return parse_recipe(document(folder, runs, store=store, **kd), folder=folder)
