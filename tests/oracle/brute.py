"""The losses by brute force in float64: one row at a time, whole maps, no code shared with the package.

Models are run row by row without padding, with an attention function of our own that keeps its maps; probabilities
are plain softmaxes over all keys and vocabulary entries, and the gradients are autograd's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

import toys

Row = tuple[Tensor, Tensor]


_maps: list[Tensor] = []


def _attend(module, query, key, value, attention_mask=None, scaling=None, sliding_window=None, softcap=None, **_):
    """Dense attention; transformers' eager one rounds its softmax to float32."""
    group, S = query.shape[1] // key.shape[1], query.shape[2]
    maps = torch.zeros(*query.shape[:3], S, dtype=query.dtype)
    for h in range(query.shape[1]):
        scores = query[:, h] @ key[:, h // group].transpose(1, 2) * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        window = sliding_window or S
        seen = torch.tensor([[j <= i and i - j < window for j in range(S)] for i in range(S)])
        maps[:, h] = torch.where(seen, scores, -torch.inf).softmax(-1)
    _maps.append(maps)
    output = torch.stack([maps[:, h] @ value[:, h // group] for h in range(query.shape[1])], 2)
    return output, None


AttentionInterface.register("brute", _attend)


def doubled(model: PreTrainedModel) -> PreTrainedModel:
    """A float64 copy, exact in its norms, whose attention keeps its maps."""
    copied = copy.deepcopy(model).to(torch.float64)
    copied.set_attn_implementation("brute")
    toys.make_norms_exact(copied)
    return copied


def forward(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [S, V] and each layer's maps [H, S, S] of one row."""
    _maps.clear()
    logits = model(ids[None], use_cache=False).logits[0]
    return logits, [each[0] for each in _maps]


def divergence(p_T: Tensor, p_S: Tensor, kind: str, beta: float = 0.5, alpha: float = 0.1) -> Tensor:
    def kl(p: Tensor, q: Tensor) -> Tensor:
        terms = [pi * (torch.log(pi) - torch.log(qi)) for pi, qi in zip(p, q, strict=True) if pi > 0]
        return torch.stack(terms).sum()

    if kind == "forward_kl":
        return kl(p_T, p_S)
    if kind == "reverse_kl":
        return kl(p_S, p_T)
    if kind == "jsd":
        m = beta * p_T + (1 - beta) * p_S
        return beta * kl(p_T, m) + (1 - beta) * kl(p_S, m)
    return kl(p_T, alpha * p_T + (1 - alpha) * p_S)


def terms_of_row(
    row: Row,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    alpha: float = 0.1,
    layer_map: Mapping[int, int] | None = None,
    heads: Sequence[int] | None = None,
    window: int | None = None,
) -> dict[str, Tensor]:
    """Sums over one row's target positions of cross-entropy, logit divergence and attention KL (over H and L)."""
    ids, is_target = row
    logits_S, maps_S = forward(student, ids)
    with torch.no_grad():
        logits_T, maps_T = forward(teacher, ids)
    layer_map = layer_map or {i: i for i in range(len(maps_S))}
    V = min(logits_S.shape[-1], logits_T.shape[-1])
    zero = logits_S.sum() * 0
    sums = {"next_token": zero, "logits": zero, "attention": zero}
    for t in range(len(ids) - 1):
        if not is_target[t + 1]:
            continue
        sums["next_token"] = sums["next_token"] - torch.log(logits_S[t].softmax(-1)[ids[t + 1]])
        p_T = (logits_T[t, :V] / temperature).softmax(-1)
        p_S = (logits_S[t, :V] / temperature).softmax(-1)
        sums["logits"] = sums["logits"] + temperature**2 * divergence(p_T, p_S, kind, beta, alpha)
        for s, theirs in layer_map.items():
            H = len(maps_S[s])
            for h in range(H):
                first = 0 if window is None else max(0, t - window + 1)
                a_S = maps_S[s][h, t, first : t + 1]
                a_T = maps_T[theirs][h if heads is None else heads[h], t, first : t + 1]
                value = divergence(a_T / a_T.sum(), a_S / a_S.sum(), "forward_kl")
                sums["attention"] = sums["attention"] + value / (H * len(layer_map))
    return sums


def train(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    steps: Sequence[Sequence[Row]],
    weights: Mapping[str, float],
    learning_rate: float,
) -> PreTrainedModel:
    """Plain SGD on the mean over each step's target positions, in float64."""
    student, teacher = doubled(student), doubled(teacher)
    for step in steps:
        n = sum(int(is_target[1:].sum()) for _, is_target in step)
        student.zero_grad()
        for row in step:
            sums = terms_of_row(row, student, teacher)
            loss = sum(weight * sums[name] for name, weight in weights.items()) / max(n, 1)
            assert math.isfinite(float(loss.detach()))
            loss.backward()
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.grad is not None:
                    parameter -= learning_rate * parameter.grad
    return student
