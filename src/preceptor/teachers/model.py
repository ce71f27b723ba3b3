"""A live model as the teacher: local, possibly quantised, possibly a PEFT adapter on base weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from preceptor.errors import InputError
from preceptor.models.offload import comes_back, working_device
from preceptor.models.probe import tapped_layers
from preceptor.models.recorder import record
from preceptor.models.sharding import is_sharded
from preceptor.signals import AttentionScores, Head, LayerShape, Needs, Part, Signal, TokenBatch, Wanted
from preceptor.teachers.routing import Source, teach


class ModelTeacher:
    """Teaches with the last hidden states, head, queries and keys of one frozen model.

    The model is put into evaluation mode and its parameters are frozen; it is called without labels, cache or logits,
    and only on rows that have a target and are on a route which some term teaches.

    Args:
        model: a transformers causal language model, or a PEFT model around one, on any device and in any dtype.
        name: how messages call it.

    Raises:
        InputError: when weights are on no device and nothing fetches them.
    """

    _head: tuple[Tensor, Head] | None = None
    """Where the model is on another device than the batches: its head's weight, and a copy of the head with these."""

    def __init__(self, model: nn.Module, *, name: str = "teacher") -> None:
        if not comes_back(model):
            raise InputError(
                f"{name}: some of its weights are on no device, and nothing fetches them; load it with a `device_map` "
                "(`cpu` and `disk` are devices there), quantise it, or use a smaller teacher"
            )
        self.model = model.eval().requires_grad_(False)
        self.name = name

    def __call__(self, batch: TokenBatch, needs: Needs) -> Signal:
        """What the model says about the rows of `batch`, as far as `needs` goes."""
        sources = [Source(self.name, self, 1.0)]
        return teach(batch, needs, lambda route: sources)

    @torch.no_grad()
    def observe(self, batch: TokenBatch, wanted: Wanted) -> Part:
        """One forward on all of `batch`: a part that covers all its rows."""
        device = working_device(self.model)
        with torch.autocast(device.type, enabled=False):
            return self._observe(batch, wanted, device)

    def _observe(self, batch: TokenBatch, wanted: Wanted, device: torch.device) -> Part:
        recorded = record(self.model, batch.to(device), wanted, copy_head=self.sharded)
        home = batch.input_ids.device
        attention = {
            layer: AttentionScores(each.q_BHRD.to(home), each.k_BGSD.to(home), each.scale, each.window, each.softcap)
            for layer, each in recorded.attention.items()
        }
        hidden_ND = None if recorded.hidden_ND is None else recorded.hidden_ND.to(home)
        head = None if recorded.head is None else self._head_on(home, recorded.head)
        return Part(None, None, hidden_ND, head, attention=attention, teacher=self.name)

    def _head_on(self, home: torch.device, head: Head) -> Head:
        """The head on the student's device: copied there once, so that no logits travel at every step."""
        if head.weight_VD.device == home:
            return head
        if self._head is None or self._head[0] is not head.weight_VD or self._head[1].weight_VD.device != home:
            self._head = head.weight_VD, head.to(home)
        return self._head[1]

    @property
    def sharded(self) -> bool:
        """Whether several processes hold it together and must all call it: FSDP2, or DeepSpeed's ZeRO-3."""
        return is_sharded(self.model)

    def layer_shapes(self) -> list[LayerShape]:
        """The layers whose attention it can give; raises InputError when it can give none."""
        return tapped_layers(self.model, name=self.name)

    def attention_shapes(self, routes: frozenset[int]) -> dict[str, list[LayerShape]]:
        return {self.name: self.layer_shapes()}

    def check_routes(self, route_names: Sequence[str], followed: frozenset[int]) -> None:
        """It teaches any route."""
