"""What a training stage leaves: the student or its adapter, and a card that says what it is and how it came about."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from preceptor.models.card import render_card
from preceptor.models.save import save_model
from preceptor.recipe import DistillStage, ModelSpec, SftStage, ShareSpec, local_path
from preceptor.recipe.base import stage_of
from preceptor.stages.context import StageContext
from preceptor.stages.stores import title_of
from preceptor.trainer import DistillationTrainer


def save_trained(
    spec: SftStage | DistillStage,
    context: StageContext,
    trainer: DistillationTrainer,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    results: dict[str, Any],
    weights: dict[str, torch.Tensor],
) -> None:
    """Writes `model` or `adapter` with the tokenizer and a card; `weights` is the whole student's state."""
    trained = spec.student if isinstance(spec, DistillStage) else spec.model
    base = trained.path
    on_hub = stage_of(base) is None and local_path(base, context.recipe.folder) is None
    card = render_card(
        name=context.recipe.name,
        stage=context.name,
        kind=spec.kind,
        student=base,
        base_model=base if on_hub else None,
        teacher=_teacher_names(spec, context),
        data=spec.shares,
        losses=[term.model_dump(exclude_none=True) for term in spec.objective],
        training={**spec.training, "rows_per_step": spec.rows_per_step, "max_length": spec.max_length},
        results={"before": results["before"], "after": results["after"]},
        seed=context.seed,
    )
    folder = context.directory / ("model" if spec.lora is None else "adapter")
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    save_model(model, tokenizer, folder, dtype=dtype, state_dict=weights, card=card, base_name=context.name_of(trained))


def _teacher_names(spec: SftStage | DistillStage, context: StageContext) -> str | dict[str, str] | None:
    """What the card calls the teacher, or the teacher of each route."""
    if isinstance(spec, SftStage):
        return None
    if isinstance(spec.teacher, ModelSpec):
        return title_of(spec.teacher, context)
    named = {
        route: " + ".join(_share_name(share, len(shares), context) for share in shares)
        for route, shares in spec.teacher.routes.items()
    }
    default = spec.teacher.default
    return named if default is None else {**named, "other routes": title_of(default, context)}


def _share_name(share: ShareSpec, of: int, context: StageContext) -> str:
    title = title_of(share.model, context)
    return title if of == 1 else f"{share.weight:g} × {title}"
