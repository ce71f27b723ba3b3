"""The datasets a stage sees, together with those it must not overlap with."""

from __future__ import annotations

from collections.abc import Sequence

from preceptor.data.split import SplitRows, split_rows
from preceptor.recipe import DatasetSpec
from preceptor.recipe.base import one_or_many, stage_of
from preceptor.stages.context import StageContext


def specs_for(names: Sequence[str], context: StageContext) -> tuple[dict[str, DatasetSpec], set[str]]:
    """Resolved specs of `names` and all other datasets of the recipe that no stage writes; which were generated.

    All are needed because a prompt found in two datasets is removed, and every stage must remove the same
    ones. What a stage writes is there only for those that read it: for others it may not have been made yet.
    """
    specs: dict[str, DatasetSpec] = {}
    generated: set[str] = set()
    for name in dict.fromkeys([*names, *context.recipe.data]):
        spec = context.recipe.dataset(name)
        if spec.stages and name not in names:
            continue
        specs[name] = context.resolve_dataset(name)
        if all(stage_of(text) for text in one_or_many(spec.path)):
            generated.add(name)
    return specs, generated


def split_for(names: Sequence[str], context: StageContext, *, answers: bool = True) -> dict[str, SplitRows]:
    """The rows of `names`, parted into training, holdout and test rows as in every stage of the run.

    Raises:
        InputError: unreadable data or overlapping prompts.
    """
    specs, generated = specs_for(names, context)
    split = split_rows(
        specs,
        seed=context.seed,
        overlap=context.recipe.overlap,
        announce=context.log,
        generated=generated,
        answers=answers,
    )
    return {name: split[name] for name in names}
