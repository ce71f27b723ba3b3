"""Models with random weights at the shapes of Mistral-7B and Mixtral-8x7B, made on the device.

Nothing is read from a disk and nothing passes through the host's memory. Random weights cost what trained ones cost but
for one thing: random routers spread tokens evenly over the experts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, MixtralConfig, PreTrainedModel


@dataclass(frozen=True)
class Sizes:
    """One decoder's shape; `experts` is 0 for a dense one. No sliding window."""

    vocabulary: int = 32_000
    width: int = 4096
    intermediate: int = 14_336
    layers: int = 32
    heads: int = 32
    key_heads: int = 8
    experts: int = 0
    per_token: int = 2
    label: str = "Mistral-7B"

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def config(self) -> Any:
        """transformers' configuration."""
        common: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "max_position_embeddings": 32_768,
            "sliding_window": None,
            "attn_implementation": "sdpa",
            "tie_word_embeddings": False,
        }
        if not self.experts:
            return MistralConfig(**common)
        return MixtralConfig(num_local_experts=self.experts, num_experts_per_tok=self.per_token, **common)

    def body_parameters(self, *, active: bool) -> int:
        """Parameters of all layers; `active` counts only the experts that one token passes through."""
        attention = 2 * self.width * self.width + 2 * self.width * self.key_heads * self.head_dim
        mlp = 3 * self.width * self.intermediate
        if self.experts:
            mlp = mlp * (self.per_token if active else self.experts) + self.width * self.experts
        return self.layers * (attention + mlp)

    def forward_flops(self, rows: int, S: int) -> float:
        """Of the layers on `rows` rows of S tokens, the causal half of attention counted."""
        attention = self.layers * 2 * S * S * self.heads * self.head_dim
        return rows * (2.0 * self.body_parameters(active=True) * S + attention)

    def head_flops(self, positions: int) -> float:
        """Of the output head on so many positions."""
        return 2.0 * positions * self.width * self.vocabulary


MISTRAL = Sizes()
MIXTRAL = Sizes(experts=8, label="Mixtral-8x7B")
TINY = Sizes(vocabulary=48, width=32, intermediate=32, layers=2, heads=2, key_heads=1, label="tiny")
TINY_EXPERTS = replace(TINY, experts=2)


def make_student(sizes: Sizes, device: torch.device) -> PreTrainedModel:
    """A float32 model in training mode whose layers are recomputed in the backward."""
    model = make_model(sizes, device, torch.float32, seed=1).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


TEACHERS = {
    "nf4": "4-bit (NF4, bitsandbytes)",
    "int8": "experts in 8 bit, the rest in bfloat16",
    "shared": "bfloat16, {own} layers' weights shared by {all}",
}
"""How a teacher's weights are held; the first that is possible is the one that all steps are measured with."""


def make_teacher(sizes: Sizes, device: torch.device, how: str, own_layers: int = 8) -> tuple[PreTrainedModel, str]:
    """A frozen teacher and what to call it; packed ones are made layer by layer.

    "shared" has `own_layers` layers with weights of their own, and layer i has those of layer i mod `own_layers`: time,
    activations and taps are the whole model's, its weights take `own_layers` / `sizes.layers` of the memory.

    Raises:
        ImportError: "nf4" without bitsandbytes.
    """
    if how == "nf4":
        import bitsandbytes  # noqa: F401
    label = TEACHERS[how].format(own=min(own_layers, sizes.layers), all=sizes.layers)
    if how == "shared":
        model = make_model(replace(sizes, layers=min(own_layers, sizes.layers)), device, torch.bfloat16, seed=2)
        share_layers(model, sizes.layers)
        return model.eval().requires_grad_(False), label
    one = replace(sizes, layers=1)
    model: Any = make_model(one, device, torch.bfloat16, seed=2)
    _pack(model.model.layers[0], how)
    for index in range(1, sizes.layers):
        layer: Any = make_model(one, device, torch.bfloat16, seed=2 + index).model.layers[0]
        layer.self_attn.layer_idx = index
        # One configuration for all: how attention and experts run is read from it.
        for module in layer.modules():
            if hasattr(module, "config"):
                module.config = model.config
        _pack(layer, how)
        model.model.layers.append(layer)
    model.config.num_hidden_layers = sizes.layers
    model.set_experts_implementation("eager")  # the one that takes one expert's matrix after the other
    return model.eval().requires_grad_(False), label


def _pack(layer: Any, how: str) -> None:
    """Quantise a layer's experts, and with "nf4" its projections too."""
    from preceptor.models.quantized_experts import Experts4Bit, Experts8Bit

    experts = layer.mlp.experts
    for name in ("gate_up_proj", "down_proj"):
        weight_EOI = getattr(experts, name).data
        packed = Experts4Bit(weight_EOI, kind="nf4", double=False) if how == "nf4" else Experts8Bit(weight_EOI)
        del experts._parameters[name]
        experts.add_module(name, packed)
    if how == "nf4":
        from bitsandbytes.nn import Linear4bit, Params4bit

        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear = getattr(layer.self_attn, name)
            packed = Linear4bit(
                linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, device="meta"
            )
            packed.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
            setattr(layer.self_attn, name, packed.to(linear.weight.device))


def make_model(sizes: Sizes, device: torch.device, dtype: torch.dtype, *, seed: int) -> PreTrainedModel:
    """Random weights by transformers' own initialisation, drawn on the device."""
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(sizes.config(), dtype=dtype)


def share_layers(model: Any, layers: int) -> None:
    """Append layers that share the weights of those there, in turn, until there are `layers`."""
    own = list(model.model.layers)
    for index in range(len(own), layers):
        source = own[index % len(own)]
        kept = [*source.parameters(), *source.buffers(), model.config]
        layer: Any = copy.deepcopy(source, {id(each): each for each in kept})
        layer.self_attn.layer_idx = index
        model.model.layers.append(layer)
    model.config.num_hidden_layers = layers


def gigabytes(model: nn.Module) -> float:
    """Of parameters and buffers, each counted once."""
    held = {each.data_ptr(): each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers())}
    return sum(held.values()) / 1e9
