"""How the routers of a composed mixture begin.

A router is a matrix W without bias; token x (the normalised hidden state that enters the MLP, which is the router's
input too) goes to the experts with the largest logits W·x. Whatever the method, logits have a standard deviation of
about 1, or are all 0: much smaller ones leave the choice to rounding, much larger ones saturate the softmax from which
the router learns.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig

from preceptor.errors import InputError
from preceptor.models.load import quiet_transformers

Read = Callable[[str], Tensor]
PROMPT_TOKENS = 256
"""A prompt is cut to this many tokens: hidden states of all prompts are in memory at once."""
_BATCH_TOKENS = 1024
_LEAST_APART = 1e-3  # relative to the mean hidden state


def uniform_routers(config: PreTrainedConfig, experts: int) -> list[Tensor]:
    """Zeros, [E, D] per layer. All logits tie, and `topk` resolves ties alike for every token.

    Measured on the CPU (torch 2.13): 2 experts, 1 chosen, expert 0 for all tokens; 8 experts, 2 chosen, experts 6
    and 5 for all. So every token has the same experts until training moves the router.
    """
    return [torch.zeros(experts, config.hidden_size) for _ in range(config.num_hidden_layers)]


def random_routers(config: PreTrainedConfig, experts: int, read: Read, seed: int) -> list[Tensor]:
    """Normal weights of standard deviation 1/‖γ‖, [E, D] per layer, γ being the weight of the norm before the MLP.

    x = γ∘x̂ with a mean square of x̂ of 1, so E[(w·x)²] = Σγ²x̂²/‖γ‖² ≈ 1. With γ = 1 that is the usual 1/√D.
    """
    routers = []
    for layer in range(config.num_hidden_layers):
        size = read(f"model.layers.{layer}.post_attention_layernorm.weight").float().norm().item()
        digest = hashlib.sha256(f"{seed}:router:{layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        drawn = torch.randn(experts, config.hidden_size, generator=generator)
        routers.append(drawn / (size or config.hidden_size**0.5))
    return routers


def hidden_routers(config: PreTrainedConfig, read: Read, prompts: Sequence[Sequence[Sequence[int]]]) -> list[Tensor]:
    """Weights that send tokens like those of `prompts[e]` to expert e, [E, D] per layer.

    With μ_e the mean of x over the tokens of expert e's prompts in the base model, and c the mean of the μ_e,

        d_e = μ_e − c,    w_e = d_e − (d_e·c / c·c) c,    W = w / σ,

    σ² being the mean of (w_e·x)² over experts and tokens, every expert's prompts counting alike. Subtracting c leaves
    what tells the prompts apart (hidden states share a large common part). Removing the rest of c makes the mean
    logit of every expert 0, so that none is favoured for having the longer mean: the router has no bias that could
    even this out. The base model's layers are read one after another, each in float32 on a GPU where there is one.

    Raises:
        InputError: the prompts of two experts give the same hidden states, so that no router can tell them apart.
    """
    routers = []
    for layer, states in enumerate(_mlp_inputs(config, read, [ids for rows in prompts for ids in rows])):
        owners = [expert for expert, rows in enumerate(prompts) for _ in rows]
        tokens = [torch.cat([x for x, own in zip(states, owners) if own == e]) for e in range(len(prompts))]
        means = torch.stack([x.mean(0) for x in tokens])
        centre = means.mean(0)
        apart = means - centre
        weights = apart - torch.outer(apart @ centre, centre) / (centre @ centre)
        for one, other in combinations(range(len(prompts)), 2):
            if (weights[one] - weights[other]).norm() <= _LEAST_APART * centre.norm():
                raise InputError(
                    f"prompts: those of experts {one} and {other} give the same hidden states in layer {layer}, so no "
                    "router can tell them apart; name datasets that differ, or leave `prompts` out"
                )
        square = torch.stack([(x @ weights.T).square().mean() for x in tokens]).mean()
        routers.append(weights / square.sqrt())
    return routers


@torch.no_grad()
def _mlp_inputs(config: PreTrainedConfig, read: Read, rows: Sequence[Sequence[int]]) -> Iterator[list[Tensor]]:
    """For each layer, what enters its MLP: a float32 [tokens, D] per row, on the CPU.

    A model of one layer takes the weights of each layer in turn, and the hidden states the layer before it gave.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _one_layer(config).to(device)
    layer = model.layers[0]
    entered: list[Tensor] = []
    left: list[Tensor] = []
    layer.mlp.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    layer.register_forward_hook(lambda _, inputs, output: left.append(output))
    embedding = read("model.embed_tokens.weight")
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    batches = [order[start : start + size] for start, size in _batches([len(rows[r]) for r in order])]
    states = [embedding[_padded([rows[row] for row in batch])].float() for batch in batches]
    del embedding
    for number in range(config.num_hidden_layers):
        for name, parameter in layer.named_parameters():
            parameter.copy_(read(f"model.layers.{number}.{name}"))
        found: dict[int, Tensor] = {}
        for index, batch in enumerate(batches):
            # Rows are padded on the right, where causal attention never looks, so no mask is needed.
            model(inputs_embeds=states[index].to(device), use_cache=False)
            states[index] = left.pop().cpu()
            for row, x in zip(batch, entered.pop().cpu()):
                found[row] = x[: len(rows[row])].clone()
        yield [found[row] for row in range(len(rows))]


def _one_layer(config: PreTrainedConfig) -> Any:
    small = copy.deepcopy(config)
    small.num_hidden_layers = 1
    small.vocab_size = 1  # embeddings are read from the checkpoint, by row
    small.pad_token_id = None
    if getattr(small, "layer_types", None) is not None:
        small.layer_types = small.layer_types[:1]
    with quiet_transformers():
        model = AutoModel.from_config(small, dtype=torch.float32, attn_implementation="sdpa")
    model.eval()
    return model


def _batches(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of batches of about `_BATCH_TOKENS`, from lengths in ascending order."""
    start = 0
    while start < len(lengths):
        size = 1
        while start + size < len(lengths) and (size + 1) * lengths[start + size] <= _BATCH_TOKENS:
            size += 1
        yield start, size
        start += size


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(len(ids) for ids in rows)
    return torch.tensor([[*ids, *([0] * (longest - len(ids)))] for ids in rows])
