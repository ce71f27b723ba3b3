"""A recipe for another machine, read on this one: what transformers would refuse only for want of a device here."""

from __future__ import annotations

import importlib.util
from typing import Any

from preceptor.recipe import Recipe, TrainingStage


def readable(recipe: Recipe) -> Recipe:
    """`recipe` with `training:` blocks that can be checked here, in other respects the same."""
    stages = {
        name: stage.model_copy(update={"training": readable_training(stage.training)})
        if isinstance(stage, TrainingStage)
        else stage
        for name, stage in recipe.stages.items()
    }
    return recipe.model_copy(update={"stages": stages})


def readable_training(training: dict[str, Any]) -> dict[str, Any]:
    """A `training:` block as it is where there is a GPU; elsewhere one for CPUs, in bfloat16 for float16."""
    import torch

    given = dict(training)
    if importlib.util.find_spec("deepspeed") is None:
        given.pop("deepspeed", None)
    if any(kind in str(given.get("optim")) for kind in ("bnb", "8bit", "4bit")):
        del given["optim"]  # of a library that may be missing here, and may refuse a machine without a GPU
    if torch.cuda.is_available() or not (given.get("bf16") or given.get("fp16")):
        return given
    given.setdefault("use_cpu", True)
    if given.pop("fp16", None):
        given["bf16"] = True
    return given
