"""Which sparse architecture can hold which dense one exactly, and how it names its tensors on disk.

transformers keeps all experts of a layer in one tensor in memory; on disk, and for every other reader of the
checkpoint, they are the separate matrices named here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from preceptor.errors import InputError, accepted, shown
from preceptor.models.load import quiet_transformers
from preceptor.models.sources import Source

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""The three matrices of a gated MLP, down(act(gate(x)) · up(x)), arXiv 2002.05202."""
SHARED_WIDTH = 16
"""Intermediate size of the shared expert that Qwen2Moe cannot do without; its weights are zero and stay so."""


@dataclass(frozen=True)
class SparseKind:
    """One sparse architecture.

    `block` is its name for a layer's mixture, `projections` its names for `PROJECTIONS`; `settings` are config keys
    that make it compute what the dense model does.
    """

    model_type: str
    block: str
    projections: tuple[str, str, str]
    settings: Mapping[str, Any]
    shared_expert: bool = False

    def router(self, layer: int) -> str:
        """The router's weight, [experts, hidden size]."""
        return f"model.layers.{layer}.{self.block}.gate.weight"

    def expert(self, layer: int, expert: int, projection: str) -> str:
        """The matrix of one expert that is `mlp.PROJECTION` in a dense model, of the same shape."""
        name = self.projections[PROJECTIONS.index(projection)]
        return f"model.layers.{layer}.{self.block}.experts.{expert}.{name}.weight"

    def shared(self, layer: int, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Names and shapes of the shared expert and its gate, where the architecture has one."""
        if not self.shared_expert:
            return {}
        start = f"model.layers.{layer}.{self.block}."
        wide, tall = (SHARED_WIDTH, hidden_size), (hidden_size, SHARED_WIDTH)
        shapes = {f"{start}shared_expert.{p}.weight": tall if p == "down_proj" else wide for p in PROJECTIONS}
        return {**shapes, f"{start}shared_expert_gate.weight": (1, hidden_size)}


_MIXTRAL = SparseKind("mixtral", "block_sparse_moe", ("w1", "w3", "w2"), MappingProxyType({}))
# Top-k weights that do not sum to 1 would shrink the MLP's output, and layers without experts are not composed.
_QWEN = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
SPARSE: Mapping[str, SparseKind] = MappingProxyType(
    {
        "llama": _MIXTRAL,
        "mistral": _MIXTRAL,
        "qwen2": SparseKind(
            "qwen2_moe",
            "mlp",
            PROJECTIONS,
            MappingProxyType({**_QWEN, "qkv_bias": True, "shared_expert_intermediate_size": SHARED_WIDTH}),
            shared_expert=True,
        ),
        "qwen3": SparseKind("qwen3_moe", "mlp", PROJECTIONS, MappingProxyType(_QWEN)),
    }
)
# Keys the sparse config lacks and that do not matter to it: windows are refused below.
_UNUSED = {"pretraining_tp", "max_window_layers", "layer_types"}


def sparse_kind(source: Source) -> SparseKind:
    """The architecture that can hold experts such as this one.

    Raises:
        InputError: the source is a mixture of experts itself, of an architecture without a sparse twin, or has
            something that the twin has no place for: biases, windows in some layers.
    """
    config, where = source.config, source.where
    kind = SPARSE.get(config.model_type)
    if kind is None:
        what = f"is a {config.model_type} model"
        if any(key in source.checkpoint.config for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            what = f"is a mixture of experts itself ({config.model_type})"
        raise InputError(f"{where}: {what}; experts are taken from dense models of type {accepted(SPARSE)}")
    if getattr(config, "use_sliding_window", False):
        raise InputError(
            f"{where}: has `use_sliding_window: true`, which {kind.model_type} applies to other layers; give models "
            "without windows"
        )
    target = {field.name for field in fields(_config_class(kind))} | {"head_dim"} | _UNUSED
    for field in fields(type(config)):
        value = getattr(config, field.name)
        if field.name not in target and value != field.default:
            raise InputError(
                f"{where}: has `{field.name}: {shown(value)}`, for which {kind.model_type} has no place; "
                f"give models whose `{field.name}` is {shown(field.default)}"
            )
    return kind


def sparse_config(source: Source, kind: SparseKind, *, experts: int, experts_per_token: int) -> PreTrainedConfig:
    """The config of a mixture of models such as `source`, which carries over whatever both kinds have."""
    return mixture_config(source.config, kind, experts=experts, experts_per_token=experts_per_token)


def mixture_config(
    config: PreTrainedConfig, kind: SparseKind, *, experts: int, experts_per_token: int
) -> PreTrainedConfig:
    """The same, of the config of such a model."""
    target = {field.name for field in fields(_config_class(kind))} - {field.name for field in fields(PreTrainedConfig)}
    ours = {field.name for field in fields(type(config))} & target
    values = {name: copy.deepcopy(getattr(config, name)) for name in ours}
    if getattr(config, "head_dim", None) is not None:
        values["head_dim"] = config.head_dim
    values["num_local_experts" if "num_local_experts" in target else "num_experts"] = experts
    if "moe_intermediate_size" in target:
        values["moe_intermediate_size"] = config.intermediate_size
    values |= {**kind.settings, "num_experts_per_tok": experts_per_token}
    return AutoConfig.for_model(kind.model_type, **values)


def complete(source: Source) -> list[str]:
    """The tensors a dense checkpoint's model uses, after checking that it holds every one, in its shape.

    Raises:
        InputError: naming the first one that is missing or of another shape.
    """
    with torch.device("meta"), quiet_transformers():
        wanted = AutoModelForCausalLM.from_config(source.config).state_dict()
    there = source.reader.tensors
    for name, tensor in list(wanted.items()):
        if name not in there:
            if source.config.tie_word_embeddings and name == "lm_head.weight":
                del wanted[name]
                continue
            raise InputError(
                f"{source.where}: {name!r} is missing from the weights; the config and the weights belong to different "
                "models"
            )
        if there[name].shape != tuple(tensor.shape):
            raise InputError(
                f"{source.where}: {name!r} is {list(there[name].shape)} and config.json says {list(tensor.shape)}; "
                "the config and the weights belong to different models"
            )
    return list(wanted)


def _config_class(kind: SparseKind) -> type[PreTrainedConfig]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: type[PreTrainedConfig] = CONFIG_MAPPING[kind.model_type]
    return found
