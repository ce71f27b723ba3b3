"""Reads a forward without changing it: hidden states at the target positions, queries and keys per layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from preceptor.models.calls import AttentionCall
from preceptor.models.opaque import CompiledObserver
from preceptor.models.taps import attention_taps, forward_observed
from preceptor.signals import AttentionScores, Head, TargetPositions, TokenBatch, Wanted


class Recorder(CompiledObserver):
    """An observer that keeps what is wanted and lets no logits be made.

    `copy_head` is for a sharded model, whose head is whole only during its forward.
    """

    def __init__(self, targets: TargetPositions, wanted: Wanted, *, copy_head: bool = False) -> None:
        self._targets = targets
        self._wanted = wanted
        self._copy_head = copy_head
        self.hidden_ND: Tensor | None = None
        self.head: Head | None = None
        self.attention: dict[int, AttentionScores] = {}
        self.sees_attention = bool(wanted.attention_layers)

    def at_attention(self, call: AttentionCall, output: Tensor) -> Tensor:
        self.see_attention(call)
        return output

    def see_attention(self, call: AttentionCall) -> None:
        if call.layer in self._wanted.attention_layers:
            scores = scores_of(call, self._targets)
            # Keys that a model cuts from queries, keys and values in one would keep all of these.
            part = scores.k_BGSD.untyped_storage().nbytes() > scores.k_BGSD.nbytes
            self.attention[call.layer] = replace(scores, k_BGSD=scores.k_BGSD.clone()) if call.lent or part else scores

    def at_head(self, head: Head, hidden_BSD: Tensor) -> Tensor:
        if self._wanted.logits:
            # A model on several devices has its layers elsewhere than its inputs.
            self.hidden_ND = hidden_BSD.flatten(0, 1)[self._targets.flat_N.to(hidden_BSD.device)]
            self.head = head.copy() if self._copy_head else head
        return hidden_BSD[..., :1]

    def result(self, output: Tensor) -> dict[str, Tensor]:
        return {}


def scores_of(call: AttentionCall, targets: TargetPositions) -> AttentionScores:
    """The scores of a tapped call, queries gathered at the target rows."""
    B, H, _, D = call.q_BHSD.shape
    index = targets.position_BR.to(call.q_BHSD.device)[:, None, :, None].expand(B, H, -1, D)
    return AttentionScores(call.q_BHSD.gather(2, index), call.k_BGSD, call.scale, call.window, call.softcap)


@torch.no_grad()
def record(model: nn.Module, batch: TokenBatch, wanted: Wanted, *, copy_head: bool = False) -> Recorder:
    """One forward of an unwrapped transformers or PEFT model on `batch`, recorded."""
    recorder = Recorder(batch.targets, wanted, copy_head=copy_head)
    with attention_taps():
        forward_observed(model, model, batch.model_inputs(), recorder)
    missing = sorted(set(wanted.attention_layers) - set(recorder.attention))
    assert not missing, f"layers {missing} were not tapped; Objective.prepare checks this before training"
    return recorder
