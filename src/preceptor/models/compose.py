"""A sparse mixture of experts made of dense models of one shape, so that a student of twice the size starts trained.

Expert e's three MLP matrices in every layer are those of source e; attention, norms, embeddings and head are the
base's. With top-k weights that sum to 1, identical sources give exactly the dense model. The idea of growing a mixture
from dense checkpoints is that of sparse upcycling (arXiv 2212.05055); the paper's 2x7B student is made this way.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from preceptor.models.sources import Source, check_sources
from preceptor.models.sparse import PROJECTIONS, complete, sparse_config, sparse_kind
from preceptor.models.streaming import Planned

if TYPE_CHECKING:
    from preceptor.recipe import ModelSpec


@dataclass(frozen=True)
class Composition:
    """A mixture that is yet to be written: its `config.json`, its tensors, and how large it is."""

    config: dict[str, Any]
    planned: list[Planned]
    parameters: int
    active_parameters: int
    """Those that work on one token: all, without the experts that are not chosen."""
    architecture: str


def check_composition(specs: Sequence[ModelSpec]) -> None:
    """Makes sure that models can be put together, without reading a weight.

    Raises:
        InputError: whatever `check_sources` and `check_experts` refuse.
    """
    check_experts(check_sources(specs))


def check_experts(sources: Sequence[Source]) -> None:
    """Makes sure that sources found alike by `check_sources` can be experts of one mixture, or its base.

    Raises:
        InputError: whatever `sparse_kind` and `complete` refuse.
    """
    for source in sources:
        sparse_kind(source)
        complete(source)


def base_tensors(experts: Sequence[Source], base: Source | None) -> Callable[[str], Tensor]:
    """Reads a tensor of the model that gives attention, norms, embeddings and head; no `base`: the experts' mean.

    The mean is taken in float32.
    """
    if base is not None:
        return base.reader.read

    def mean(name: str) -> Tensor:
        total = experts[0].reader.read(name).float()
        for source in experts[1:]:
            total = total + source.reader.read(name)
        return total / len(experts)

    return mean


def plan_composition(
    experts: Sequence[Source],
    base: Source | None,
    routers: Sequence[Tensor],
    *,
    experts_per_token: int,
    noise: float,
    seed: int,
    dtype: torch.dtype,
) -> Composition:
    """Says what the mixture consists of; weights are read when it is written.

    `base` None is the experts' mean. `routers` are one [experts, hidden size] per layer. `noise` is the standard
    deviation of normal noise on every expert matrix, relative to the matrix's own; it depends on `seed` and the
    tensor's name alone.
    """
    model = base or experts[0]
    kind = sparse_kind(model)
    config = sparse_config(model, kind, experts=len(experts), experts_per_token=experts_per_token)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind.model_type]]
    config.dtype = dtype
    read = base_tensors(experts, base)
    planned: list[Planned] = []

    def plan(name: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> None:
        planned.append(Planned(name, dtype, shape, make))

    expert_parameters = 0
    for name in complete(model):
        if ".mlp." not in name:
            plan(name, model.reader.tensors[name].shape, partial(_cast, partial(read, name), dtype))
    for layer in range(config.num_hidden_layers):
        router = routers[layer]
        plan(kind.router(layer), tuple(router.shape), partial(router.to, dtype))
        for number, source in enumerate(experts):
            for projection in PROJECTIONS:
                name, there = kind.expert(layer, number, projection), f"model.layers.{layer}.mlp.{projection}.weight"
                shape = model.reader.tensors[there].shape
                plan(name, shape, partial(_expert, partial(source.reader.read, there), name, noise, seed, dtype))
                expert_parameters += math.prod(shape)
        for name, shape in kind.shared(layer, config.hidden_size).items():
            plan(name, shape, partial(torch.zeros, shape, dtype=dtype))
    total = sum(math.prod(item.shape) for item in planned)
    active = total - expert_parameters // len(experts) * (len(experts) - experts_per_token)
    values = json.loads(config.to_json_string(use_diff=True))
    return Composition(values, planned, total, active, config.architectures[0])


def _cast(read: Callable[[], Tensor], dtype: torch.dtype) -> Tensor:
    return read().to(dtype)


def _expert(read: Callable[[], Tensor], name: str, noise: float, seed: int, dtype: torch.dtype) -> Tensor:
    weight = read()
    if noise == 0:
        return weight.to(dtype)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    weight = weight.float()
    scale = noise * weight.std(unbiased=False)
    return torch.randn(weight.shape, generator=generator).mul_(scale).add_(weight).to(dtype)
