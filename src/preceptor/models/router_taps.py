"""Where losses look into the routers of a sparse mixture of experts.

A router is called with hidden states alone, so it cannot be handed an observer as attention is. It runs behind the
attention of its layer, in the first pass and in every recomputation under gradient checkpointing, whoever implements
that: the observer of that attention call is its observer. Hooks stay on the routers for as long as backwards may
recompute them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from preceptor.errors import InputError
from preceptor.models.calls import AttentionCall, RouterCall
from preceptor.models.opaque import router_seen, traced
from preceptor.models.probe import Probe, run_probe
from preceptor.models.taps import layer_observer


class RouterObserver(ABC):
    """An observer that also sees routers."""

    @abstractmethod
    def at_router(self, call: RouterCall) -> Tensor:
        """Take what is wanted from `call`; return its `weights`, or an identity on them with another backward."""


@dataclass(frozen=True)
class RouterShape:
    """L sparse layers of E experts each, k of them per token."""

    layers: int
    experts: int
    per_token: int


class RouterTaps:
    """Hooks on the routers of models, put there by `cover` and taken away at the end of `with taps.open():`."""

    def __init__(self) -> None:
        self._depth = 0
        self._covered: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for handle in self._handles:
                    handle.remove()
                self._covered, self._handles = [], []

    def cover(self, model: nn.Module) -> None:
        """Hook the routers of `model`, an unwrapped transformers or PEFT model, until the block ends."""
        if self._depth == 0 or any(model is each for each in self._covered):
            return
        self._covered.append(model)
        # A second hook on one router would count and inject twice.
        routers = [each for each in routers_of(model) if _tapped not in each._forward_hooks.values()]
        self._handles += [router.register_forward_hook(_tapped) for router in routers]


def _tapped(router: nn.Module, _: Any, output: Any) -> Any:
    if torch.compiler.is_dynamo_compiling():
        seat = traced.seat
        if seat is None or not seat.routers or not isinstance(output, tuple) or len(output) != 3:
            return output
        return output[0], router_seen(router, seat, *output), output[2]
    observer = layer_observer()
    if not isinstance(observer, RouterObserver) or not isinstance(output, tuple) or len(output) != 3:
        return output
    logits, weights, chosen = output
    return logits, observer.at_router(RouterCall(router, logits, weights, chosen)), chosen


def hook_for_good(router: nn.Module) -> None:
    """The hook of a compiled router stays: graphs are not made anew for hooks that come and go."""
    router.register_forward_hook(_tapped)


def routers_of(model: nn.Module) -> list[nn.Module]:
    """The modules whose first output are router logits, as the architecture declares; none in a dense model."""
    declared = [
        getattr((module._can_record_outputs or {}).get("router_logits"), "target_class", None)
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
    ]
    kinds = tuple({kind for kind in declared if kind is not None})
    return [module for module in model.modules() if isinstance(module, kinds)]


class _RouterProbe(Probe, RouterObserver):
    """Checks that each router is a softmax over its logits cut to k, behind its layer's attention."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.fits = True
        self._attended = False

    def at_attention(self, call: AttentionCall, output: Tensor) -> Tensor:
        self._attended = True
        return output

    def at_router(self, call: RouterCall) -> Tensor:
        k = call.chosen_nk.shape[1]
        logits = call.logits_nE.float()
        # Values, not places: experts of equal logit (a router of zeros) may be chosen in any order.
        best, taken = logits.topk(k).values, logits.gather(1, call.chosen_nk.long())
        self.fits &= self._attended and torch.allclose(best, taken.sort(descending=True).values, rtol=1e-3, atol=1e-5)
        weights = call.weights.float()
        # Models differ in whether the weights of the chosen sum to 1.
        self.fits &= weights.shape == taken.shape and torch.allclose(
            weights / weights.sum(1, keepdim=True), taken.softmax(1), rtol=1e-2, atol=1e-3
        )
        self._attended = False
        self.shapes.append((logits.shape[1], k))
        return call.weights


def tapped_routers(model: nn.Module) -> RouterShape:
    """The routers of `model` as the balance of their load is computed from them, checked by running it.

    Raises:
        InputError: for a dense model, and for routers that do not choose and weigh experts by the softmax of their
            logits.
    """
    kind = type(getattr(model, "get_base_model", lambda: model)()).__name__
    routers = routers_of(model)
    if not routers:
        raise InputError(
            f"router_balance: the student ({kind}) is dense and has no router; take a sparse student, such as a "
            "`compose` stage makes, or leave `{kind: router_balance}` out of the objective"
        )
    probe, taps, ran = _RouterProbe(), RouterTaps(), []
    counting = [router.register_forward_hook(lambda router, *_: ran.append(router)) for router in routers]
    try:
        with taps.open():
            taps.cover(model)
            run_probe(model, probe)
    finally:
        for handle in counting:
            handle.remove()
    if not probe.fits or len(probe.shapes) != len(ran) or len(set(probe.shapes)) != 1:
        raise InputError(
            f"router_balance: the routers of {kind} do not choose and weigh experts by the softmax of their logits; "
            "accepted are routers like those of Mixtral, Qwen2-MoE and Qwen3-MoE; leave `{kind: router_balance}` out "
            "of the objective"
        )
    ((experts, per_token),) = set(probe.shapes)
    return RouterShape(len(probe.shapes), experts, per_token)
