"""The load-balancing loss by brute force in float64: row by row without padding, token by token, no shared code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import toys
from oracle import brute

Row = tuple[Tensor, Tensor]


def doubled(model: PreTrainedModel) -> PreTrainedModel:
    """A float64 copy, exact in its routers too."""
    copied = brute.doubled(model)
    toys.make_routers_exact(copied)
    return copied


def logits_of_rows(model: PreTrainedModel, rows: Sequence[Row]) -> list[list[Tensor]]:
    """Per layer, the router logits [E] of every token of every row, with their graph."""
    found: list[list[Tensor]] = [[] for _ in model.model.layers]
    handles = [
        layer.mlp.gate.register_forward_hook(lambda _, __, output, mine=mine: mine.extend(output[0]))
        for layer, mine in zip(model.model.layers, found, strict=True)
    ]
    for ids, _ in rows:
        model(ids[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def balance(layers: Sequence[Sequence[Tensor]], k: int) -> Tensor:
    """E · Σ_e f_e · P_e over all tokens of all layers together."""
    E = len(layers[0][0])
    chosen, probability, tokens = [0.0] * E, [torch.zeros((), dtype=torch.float64)] * E, 0
    for layer in layers:
        for logits in layer:
            p = torch.exp(logits - logits.max()) / torch.exp(logits - logits.max()).sum()
            size = p.tolist()
            tokens += 1
            for e in sorted(range(E), key=lambda e: -size[e])[:k]:
                chosen[e] += 1
            for e in range(E):
                probability[e] = probability[e] + p[e]
    return E * sum(f / tokens * P / tokens for f, P in zip(chosen, probability, strict=True))


def loss(model: PreTrainedModel, batches: Sequence[Sequence[Row]], weight: float, cross_entropy: float) -> Tensor:
    """A step's loss times N: the balance of each micro-batch counts as often as it has target positions."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in batches:
        count = sum(int(is_target[1:].sum()) for _, is_target in rows)
        total = total + weight * count * balance(logits_of_rows(model, rows), model.config.num_experts_per_tok)
        for ids, is_target in rows:
            log_probs = model(ids[None], use_cache=False).logits[0].log_softmax(-1)
            for t in range(len(ids) - 1):
                if is_target[t + 1]:
                    total = total - cross_entropy * log_probs[t, ids[t + 1]]
    return total


def train(
    model: PreTrainedModel, steps: Sequence[Sequence[Sequence[Row]]], rate: float, weight: float, cross_entropy: float
) -> PreTrainedModel:
    """Plain SGD in float64; a step is a list of micro-batches, of all ranks."""
    model = doubled(model)
    for batches in steps:
        n = sum(int(is_target[1:].sum()) for rows in batches for _, is_target in rows)
        model.zero_grad()
        (loss(model, batches, weight, cross_entropy) / max(n, 1)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
