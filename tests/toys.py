"""Tiny models and batches for tests: odd shapes, grouped-query heads, padding on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from preceptor.signals import TokenBatch

VOCABULARY = 61
# Sizes for tests of files rather than numbers, with transformers' own initial range.
TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "initializer_range": 0.02,
}


def llama(seed: int, dtype: torch.dtype = torch.float32, *, sharpness: float = 1.0, **changes: Any) -> PreTrainedModel:
    """A random Llama; `sharpness` above 1 gives attention and distributions far from uniform."""
    return _model(LlamaConfig, LlamaForCausalLM, seed, dtype, sharpness, changes)


def mistral(
    seed: int, dtype: torch.dtype = torch.float32, *, sharpness: float = 1.0, **changes: Any
) -> PreTrainedModel:
    """A random Mistral, with a sliding window where `sliding_window` is given."""
    return _model(MistralConfig, MistralForCausalLM, seed, dtype, sharpness, {"sliding_window": None, **changes})


SPARSE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 5}),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, {"num_experts": 5, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {"num_experts": 5, "head_dim": 6}),
}


def sparse(
    kind: str, seed: int, dtype: torch.dtype = torch.float32, *, sharpness: float = 1.0, **changes: Any
) -> PreTrainedModel:
    """A random mixture of 5 experts, 2 per token, whose routers prefer some of them."""
    config_class, model_class, sizes = SPARSE[kind]
    settings = {"moe_intermediate_size": 12, "num_experts_per_tok": 2, "sliding_window": None, **sizes, **changes}
    model = _model(config_class, model_class, seed, dtype, sharpness, settings)
    model.set_experts_implementation("eager")  # the grouped kernels know no float64
    if dtype == torch.float64:
        make_routers_exact(model)
    return model


def make_routers_exact(model: PreTrainedModel) -> None:
    """Let the routers of a float64 model compute in float64."""
    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.forward = MethodType(_exact_router, module)


def _exact_router(router: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Without transformers' rounding of the weights to float32."""
    logits = hidden.reshape(-1, router.hidden_dim) @ router.weight.T
    weights, chosen = logits.softmax(-1).topk(router.top_k, dim=-1)
    if getattr(router, "norm_topk_prob", True):
        weights = weights / weights.sum(-1, keepdim=True)
    return logits, weights, chosen


def _model(config_class: Any, model_class: Any, seed: int, dtype: torch.dtype, sharpness: float, changes: Any) -> Any:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    model = model_class(config_class(**{**settings, **changes})).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "lm_head" in name:
                parameter *= sharpness
    if dtype == torch.float64:
        make_norms_exact(model)
    return model


def make_norms_exact(model: PreTrainedModel) -> None:
    """Let the norms of a float64 model compute in float64."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_exact_norm, module)


def _exact_norm(norm: Any, x: Tensor) -> Tensor:
    """transformers computes norms in float32 whatever the input is, which would hide what float64 tests look for."""
    return norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)


def rows(seed: int, lengths: Sequence[int], answers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """(token ids, is_target) of random rows; the last `answers[i]` tokens of row i are targets."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length, answer in zip(lengths, answers, strict=True):
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator)
        is_target = torch.arange(length) >= max(length - answer, 1) if answer else torch.zeros(length, dtype=torch.bool)
        made.append((ids, is_target))
    return made


def batch(
    packed_rows: Sequence[Sequence[tuple[Tensor, Tensor]]],
    *,
    padding_side: str = "right",
    extra: int = 0,
    routes: Sequence[int] | None = None,
) -> TokenBatch:
    """A batch whose rows each hold one or more segments, padded to the longest plus `extra` positions."""
    S = max(sum(len(ids) for ids, _ in segments) for segments in packed_rows) + extra
    B = len(packed_rows)
    input_ids = torch.full((B, S), 3)
    position_ids = torch.zeros(B, S, dtype=torch.int64)
    segment_ids = torch.full((B, S), -1)
    target_mask = torch.zeros(B, S, dtype=torch.bool)
    for b, segments in enumerate(packed_rows):
        at = S - sum(len(ids) for ids, _ in segments) if padding_side == "left" else 0
        for number, (ids, is_target) in enumerate(segments):
            span = slice(at, at + len(ids))
            input_ids[b, span] = ids
            position_ids[b, span] = torch.arange(len(ids))
            segment_ids[b, span] = number
            target_mask[b, at : at + len(ids) - 1] = is_target[1:]
            at += len(ids)
    return TokenBatch(
        input_ids=input_ids,
        attention_mask=(segment_ids >= 0).long(),
        position_ids=position_ids,
        segment_ids=segment_ids,
        target_mask=target_mask,
        routes=torch.tensor(routes if routes is not None else [0] * B),
    )


def training_arguments(**settings: Any) -> Any:
    """transformers.TrainingArguments, quietly."""
    from transformers import TrainingArguments

    return TrainingArguments(**settings)
