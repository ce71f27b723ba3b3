"""The `compose` stage: a sparse mixture of experts out of dense models, ready to be trained as a student."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from preceptor.data.template import ChatTemplate, choose_template
from preceptor.errors import InputError
from preceptor.models.card import render_card
from preceptor.models.compose import base_tensors, check_experts, plan_composition
from preceptor.models.router_init import PROMPT_TOKENS, hidden_routers, random_routers, uniform_routers
from preceptor.models.sources import Source, open_sources
from preceptor.models.streaming import write_model
from preceptor.models.tokenizers import load_tokenizer
from preceptor.stages.datasets import split_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.recipe import ComposeStage
    from preceptor.stages.context import StageContext


def execute(spec: ComposeStage, context: StageContext) -> dict[str, Any]:
    """Writes `model/`: the mixture, with the tokenizer and chat template of the base (or of the first expert).

    Raises:
        InputError: sources that are not of one shape and tokenizer or have no sparse twin, prompts that no router can
            tell apart, or whatever reading models and data refuses.
    """
    started = time.monotonic()
    specs = [context.resolve_model(model) for model in spec.experts]
    if spec.base is not None and not spec.averaged:
        specs.append(context.resolve_model(spec.base))

    def say(line: str) -> None:
        context.log(f"{context.name}: {line}")

    with open_sources(specs, context.directory / ".merged", say) as sources:
        experts = sources[: len(spec.experts)]
        base = None if spec.averaged else sources[-1] if spec.base is not None else experts[0]
        check_experts(sources)
        model = base or experts[0]
        tokenizer = load_tokenizer(model.spec, announce=context.log)
        kind = spec.router or ("random" if spec.prompts is None else "hidden")
        composition = plan_composition(
            experts,
            base,
            _routers(kind, spec, context, experts, base, tokenizer),
            experts_per_token=spec.experts_per_token,
            noise=spec.noise,
            seed=context.seed,
            dtype=getattr(torch, spec.dtype) if spec.dtype else experts[0].checkpoint.dtype,
        )
        say(
            f"{composition.architecture} of {len(experts)} experts, {spec.experts_per_token} per token; "
            f"{composition.parameters:,} parameters, {composition.active_parameters:,} of them at work on a token"
        )
        for line in _remarks(spec, kind):
            say(line)
        results: dict[str, Any] = {
            "architecture": composition.architecture,
            "parameters": composition.parameters,
            "active_parameters": composition.active_parameters,
            "experts": len(experts),
            "experts_per_token": spec.experts_per_token,
            "router": kind,
        }
        settings = {
            "experts": ", ".join(source.title for source in spec.experts),
            "base": "the experts' mean" if spec.averaged else (spec.base or spec.experts[0]).title,
            **({} if spec.prompts is None else {"prompts": ", ".join(spec.prompts), "prompt_rows": spec.prompt_rows}),
            "noise": spec.noise,
        }
        write_model(
            context.directory / "model",
            composition.config,
            composition.planned,
            tokenizer=tokenizer,
            generation_from=model.checkpoint.folder,
            card=render_card(
                name=context.recipe.name,
                stage=context.name,
                kind="compose",
                training=settings,
                results=results,
                seed=context.seed,
            ),
            announce=say,
        )
    return {**results, "seconds": round(time.monotonic() - started, 1)}


def _routers(
    kind: str,
    spec: ComposeStage,
    context: StageContext,
    experts: Sequence[Source],
    base: Source | None,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Tensor]:
    config, read = (base or experts[0]).config, base_tensors(experts, base)
    if kind == "uniform":
        return uniform_routers(config, len(experts))
    if kind == "random":
        return random_routers(config, len(experts), read, context.seed)
    prompts = _prompts(spec, context, tokenizer, min(PROMPT_TOKENS, config.max_position_embeddings))
    try:
        return hidden_routers(config, read, prompts)
    except InputError as error:
        raise InputError(f"stages.{context.name}.{error}") from error


def _prompts(
    spec: ComposeStage, context: StageContext, tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[list[list[int]]]:
    """Token ids of at most `prompt_rows` prompts (or plain texts) per expert, drawn from training rows by the seed."""
    names = spec.prompts or []
    split = split_for(list(dict.fromkeys(names)), context, answers=False)
    if choose_template(tokenizer) == "default":
        context.log(f"{context.name}: the model has no chat template; the default one is used")
    template = ChatTemplate(tokenizer)
    prompts: list[list[list[int]]] = []
    for name in names:
        rows = [row for row in split[name].train if row.prompt_messages or row.text]
        rows = random.Random(f"{context.seed}:{name}").sample(rows, min(spec.prompt_rows, len(rows)))
        ids: list[list[int]] = []
        for row in rows:
            if row.prompt_messages:
                text = template.render(row.prompt_messages, add_generation_prompt=True)
                encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
            else:
                encoded = tokenizer(row.text)["input_ids"]
            ids += [list(encoded[:longest])] if encoded else []
        if not ids:
            raise InputError(
                f"stages.{context.name}.prompts: {name} has no prompt and no text for a router to begin from; name a "
                "dataset of conversations or texts"
            )
        prompts.append(ids)
    counts = ", ".join(f"{len(ids)} of {name}" for name, ids in zip(names, prompts, strict=True))
    context.log(f"{context.name}: routers begin from the hidden states of prompts: {counts}")
    return prompts


def _remarks(spec: ComposeStage, kind: str) -> list[str]:
    """What a user should know of this mixture before it is trained."""
    count, chosen = len(spec.experts), spec.experts_per_token
    lines = []
    if chosen == count:
        lines.append(
            f"{chosen} of {count} experts per token is a dense ensemble, not a sparse model: every expert works on "
            "every token"
        )
    elif kind == "uniform":
        lines.append(
            f"all router logits are 0, so every token has the same {chosen} of {count} experts until training moves "
            "the router"
        )
    if chosen == 1:
        lines.append(
            "with 1 expert per token its weight is always 1, so the router learns from no loss but `router_balance`"
        )
    if len({(model.path, model.adapter) for model in spec.experts}) < count and spec.noise == 0:
        lines.append("experts of one source begin equal; `noise` would tell them apart")
    return lines
