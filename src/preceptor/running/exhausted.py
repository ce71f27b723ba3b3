"""What a run says when memory ran out: what, on which batch, and what needs less of it."""

from __future__ import annotations

import gc
import sys
import traceback
from contextlib import suppress

from preceptor.errors import RunFailed
from preceptor.faults import OutOfMemory, causes, out_of_memory
from preceptor.recipe import EvaluateStage, GenerateStage, Recipe, StoreStage, TrainingStage


def explained(error: Exception, recipe: Recipe, name: str) -> Exception:
    """`error` itself, or, where memory ran out in stage `name`, what says so and what would help.

    Whatever the stage held is given back first.
    """
    known = error if isinstance(error, OutOfMemory) else None
    said = out_of_memory(error) if known is None else str(known)
    if said is None:
        return error
    stage = recipe.stages[name]
    if isinstance(stage, TrainingStage):
        helps = ""
        with suppress(Exception):  # where memory is short anything fails, and the cause is to be told
            _let_go(error)
            from preceptor.plan.out_of_memory import advice

            rows, tokens = (None, None) if known is None else (known.rows, known.tokens)
            helps = advice(recipe, name, rows=rows, tokens=tokens)
        if not helps:
            helps = f"`training.per_device_train_batch_size` can be lower, and {_plan(recipe)} says what else helps"
    elif isinstance(stage, GenerateStage | StoreStage | EvaluateStage):
        helps = f"`batch_size` is {stage.batch_size} and can be lower, which changes no result"
    else:
        helps = f"{_plan(recipe)} says how large its models are"
    failed = RunFailed(f"{said}; {helps}")
    failed.__cause__ = error
    return failed


def _plan(recipe: Recipe) -> str:
    return f"`{recipe.command.replace('preceptor run', 'preceptor plan', 1)}`"


def _let_go(error: BaseException) -> None:
    """Frees what the frames through which `error` came still hold: the models, the optimiser, the batch."""
    for each in causes(error):
        if each.__traceback__ is not None:
            traceback.clear_frames(each.__traceback__)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
