"""A live model as the teacher: local, possibly quantised, possibly a PEFT adapter on base weights."""

from __future__ import annotations

import torch
from torch import nn

from preceptor.errors import InputError
from preceptor.models.recorder import record
from preceptor.models.taps import tapped_layers
from preceptor.signals import AttentionScores, LayerShape, Needs, Part, Signal, TokenBatch


class ModelTeacher:
    """Teaches with the last hidden states, head, queries and keys of one frozen model.

    The model is put into evaluation mode and its parameters are frozen; it is called without labels, cache or logits.

    Args:
        model: a transformers causal language model, or a PEFT model around one, on any device and in any dtype.
        name: how messages call it.

    Raises:
        InputError: when weights are offloaded.
    """

    def __init__(self, model: nn.Module, *, name: str = "teacher") -> None:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise InputError(
                f"{name}: `device_map` left some of its weights off the devices (offloaded), and the losses read its "
                "head whole; give it more devices, quantise it, or use a smaller teacher"
            )
        self.model = model.eval().requires_grad_(False)
        self.name = name

    @torch.no_grad()
    def __call__(self, batch: TokenBatch, needs: Needs) -> Signal:
        """One part that covers every row of `batch`; no part when nothing is needed or no row has a target."""
        if not needs or batch.targets.count == 0:
            return Signal()
        device = next(self.model.parameters()).device
        there = batch.to(device)
        with torch.autocast(device.type, enabled=False):
            recorded = record(self.model, there, needs)
        home = batch.input_ids.device
        attention = {
            layer: AttentionScores(each.q_BHRD.to(home), each.k_BGSD.to(home), each.scale, each.window, each.softcap)
            for layer, each in recorded.attention.items()
        }
        hidden_ND = None if recorded.hidden_ND is None else recorded.hidden_ND.to(home)
        return Signal((Part(None, None, hidden_ND, recorded.head, attention),))

    def attention_shapes(self) -> list[LayerShape]:
        return tapped_layers(self.model, name=self.name)
