"""The `merge` stage: a model between two others of one shape, by interpolating their weights."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from preceptor.models.card import render_card
from preceptor.models.merge import plan_merge
from preceptor.models.sources import open_sources, stored_config
from preceptor.models.streaming import write_model
from preceptor.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from preceptor.recipe import MergeStage
    from preceptor.stages.context import StageContext


def execute(spec: MergeStage, context: StageContext) -> dict[str, Any]:
    """Writes `model/`: the interpolated weights in the first model's dtype, with the first model's tokenizer.

    Raises:
        InputError: models that are not of one shape and tokenizer, or whatever reading them refuses.
    """
    started = time.monotonic()

    def say(line: str) -> None:
        context.log(f"{context.name}: {line}")

    specs = [context.resolve_model(model) for model in spec.models]
    with open_sources(specs, context.directory / ".merged", say) as (first, second):
        tokenizer = load_tokenizer(first.spec, announce=context.log)
        planned = plan_merge(first, second, alpha=spec.alpha, method=spec.method)
        results: dict[str, Any] = {
            "parameters": sum(math.prod(item.shape) for item in planned),
            "method": spec.method,
            "alpha": spec.alpha,
        }
        names = [model.title for model in spec.models]
        say(f"{1 - spec.alpha:g} of {names[0]}, {spec.alpha:g} of {names[1]}, {spec.method}")
        write_model(
            context.directory / "model",
            stored_config(first, first.checkpoint.dtype),
            planned,
            tokenizer=tokenizer,
            generation_from=first.checkpoint.folder,
            card=render_card(
                name=context.recipe.name,
                stage=context.name,
                kind="merge",
                training={"first": names[0], "second": names[1]},
                results=results,
                seed=context.seed,
            ),
            announce=say,
        )
    return {**results, "seconds": round(time.monotonic() - started, 1)}
