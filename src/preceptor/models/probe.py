"""Whether losses can look into a model, found out on a real forward of a few tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from preceptor.errors import InputError
from preceptor.models.calls import AttentionCall
from preceptor.models.offload import working_device
from preceptor.models.taps import attention_taps, forward_observed, text_config
from preceptor.signals import Head, LayerShape


class Probe:
    """An observer that lets no logits be made; subclasses look at what they check."""

    def at_attention(self, call: AttentionCall, output: Tensor) -> Tensor:
        return output

    def at_head(self, head: Head, hidden_BSD: Tensor) -> Tensor:
        return hidden_BSD[..., :1]

    def result(self, output: Tensor) -> dict[str, Tensor]:
        return {}


@torch.no_grad()
def run_probe(model: nn.Module, probe: Probe) -> None:
    """One forward of 7 tokens through `model`, an unwrapped transformers or PEFT model; compiled layers run eagerly."""
    tokens = torch.arange(1, 8, device=working_device(model))[None] % text_config(model).vocab_size
    training = model.training
    model.eval()
    try:
        with attention_taps(), torch.compiler.set_stance("force_eager"):
            forward_observed(model, model, {"input_ids": tokens, "use_cache": False}, probe)
    finally:
        model.train(training)


class _AttentionProbe(Probe):
    """Checks that queries and keys say all there is to know about attention."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.layers: list[LayerShape] = []
        self.worst = 0.0

    def at_attention(self, call: AttentionCall, output: Tensor) -> Tensor:
        if call.unreadable is not None:
            raise InputError(
                f"{self.kind} uses {call.unreadable}, which the attention term cannot read from queries and keys; "
                "leave `{kind: attention}` out of the objective"
            )
        _, H, S, D = call.q_BHSD.shape
        G = call.k_BGSD.shape[1]
        self.layers.append(LayerShape(call.layer, H, G, D))
        q, k, v = (x.float().repeat_interleave(H // x.shape[1], 1) for x in (call.q_BHSD, call.k_BGSD, call.v_BGSD))
        scores = q @ k.mT * call.scale
        if call.softcap is not None:
            scores = (scores / call.softcap).tanh() * call.softcap
        seen = torch.ones(S, S, dtype=torch.bool, device=q.device).tril()
        hidden = ~(seen if call.window is None else seen.triu(1 - call.window))
        expected = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)
        error = (output.float().reshape(expected.shape) - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
        self.worst = max(self.worst, float(error))
        return output


def tapped_layers(model: nn.Module, *, name: str) -> list[LayerShape]:
    """The attention layers of `model` whose rows can be computed from tapped queries and keys, checked by running it.

    Raises:
        InputError: when some layer's attention does not pass through transformers' attention interface, or when
            softmax(scale·q kᵀ)·v is not what the layer computes (another mask, a bias, chunks); `name` says whose.
    """
    config = text_config(model)
    mixed = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    kind = type(model).__name__
    probe = _AttentionProbe(kind)
    run_probe(model, probe)
    tapped = sorted(shape.layer for shape in probe.layers)
    if mixed or tapped != list(range(config.num_hidden_layers)):
        seen = f"{len(tapped)} of {config.num_hidden_layers} layers" + (f", layer types {mixed}" if mixed else "")
        raise InputError(
            f"{name}: the attention of {kind} cannot be tapped ({seen}); the attention term needs softmax attention "
            "through transformers' attention interface in every layer; leave `{kind: attention}` out of the objective"
        )
    if probe.worst > 0.05:
        raise InputError(
            f"{name}: the attention of {kind} is not softmax(scale·q·kᵀ) of the tapped queries and keys (its output "
            f"differs by {probe.worst:.0%}); leave `{{kind: attention}}` out of the objective"
        )
    return sorted(probe.layers, key=lambda shape: shape.layer)
