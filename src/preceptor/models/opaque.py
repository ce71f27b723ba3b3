"""What an observer sees and changes in a compiled forward: operators that the compiler calls and does not look into.

A compiled graph holds tensors, and no Python object of one forward may become a constant of it. So an observer is
known to a graph by the number of its seat, a layer by its own, and the operators find the observer when they run:

    see_attention   takes q and k and gives k back; its backward adds the observer's dk, and gives dq
    see_router      takes logits and gives the weights back; its backward adds the observer's gradient to the logits

An operator's result may not be its argument's memory: k is the smallest tensor that every gradient of attention passes,
and since attention keeps the copy instead of the original, the copy costs no memory until the backward.
"""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from preceptor.models.calls import AttentionCall, RouterCall

NUMBER = "preceptor_number"
"""Attribute of compiled attention modules and routers: int64 tensor, 0-dim, the layer or the router's place."""


class CompiledObserver:
    """An observer as the operators know it; this one sees nothing."""

    sees_attention: bool = False
    """Whether `see_attention` is called; graphs are made for one answer."""
    sees_routers: bool = False
    """Whether `see_router` is called."""

    def see_attention(self, call: AttentionCall) -> None:
        """Take what is wanted from `call`; a second one of the same layer is a recomputation."""

    def attention_gradient(self, layer: int, positions: int) -> tuple[Tensor, Tensor] | None:
        """dq [B,H,S,D] and dk [B,G,S,D] of the loss that is run back, given away; None where the layer has none."""
        return None

    def see_router(self, call: RouterCall) -> None:
        """Take what is wanted from `call`; a second one of the same router is a recomputation."""

    def router_gradient(self, logits_nE: Tensor) -> Tensor | None:
        """[n, E] of the loss that is run back; None where there is none."""
        return None


class Seat:
    """An observer's place in one forward."""

    def __init__(self, observer: Any) -> None:
        self.observer = observer
        known = isinstance(observer, CompiledObserver)
        self.attention: bool = known and observer.sees_attention
        self.routers: bool = known and observer.sees_routers
        number = next(_numbers)
        # On the CPU whatever the default is: to read it there takes no synchronisation.
        self.number = torch.tensor(number, device="cpu")
        if known:
            _observers[number] = observer


_numbers = count()
# Weakly: nothing of a step may outlive it.
_observers: WeakValueDictionary[int, CompiledObserver] = WeakValueDictionary()


def _observer(seat: Tensor) -> CompiledObserver:
    observer = _observers.get(int(seat))
    if observer is None:
        raise RuntimeError("a compiled layer was run back after the forward it belongs to was given up")
    return observer


class _Traced:
    """While a layer is traced: the seat of its forward, for what runs behind attention."""

    seat: Seat | None = None


traced = _Traced()


# --- attention --------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "preceptor::see_attention",
    mutates_args=(),
    schema=(
        "(Tensor k, Tensor q, Tensor v, Tensor seat, Tensor layer, float scale, int? window, float? softcap, "
        "str? unreadable) -> Tensor"
    ),
)
def see_attention(
    k: Tensor,
    q: Tensor,
    v: Tensor,
    seat: Tensor,
    layer: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    unreadable: str | None,
) -> Tensor:
    """`k` [B,G,S,D], copied; the observer sees the call of attention on `q` [B,H,S,D], `k` and `v`."""
    call = AttentionCall(int(layer), q, k, v, scale, window, softcap, unreadable, lent=True)
    _observer(seat).see_attention(call)
    return k.clone()


@see_attention.register_fake
def _(k: Tensor, *_: Any) -> Tensor:
    return k.clone()


@torch.library.custom_op(
    "preceptor::attention_gradient",
    mutates_args=(),
    schema="(Tensor like_k, int heads, Tensor seat, Tensor layer) -> (Tensor, Tensor)",
)
def attention_gradient(like_k: Tensor, heads: int, seat: Tensor, layer: Tensor) -> tuple[Tensor, Tensor]:
    """dq [B,H,S,D] and dk [B,G,S,D] of one layer, in the dtype of `like_k` [B,G,S,D], the gradient of the keys."""
    given = _observer(seat).attention_gradient(int(layer), like_k.shape[2])
    if given is None:
        return _like_q(like_k, heads).zero_(), _like_q(like_k, like_k.shape[1]).zero_()
    dq, dk = (each.to(like_k.dtype).contiguous() for each in given)
    return dq, dk


def _like_q(k: Tensor, heads: int) -> Tensor:
    B, _, S, D = k.shape
    return k.new_empty(B, heads, S, D)


@attention_gradient.register_fake
def _(like_k: Tensor, heads: int, seat: Tensor, layer: Tensor) -> tuple[Tensor, Tensor]:
    return _like_q(like_k, heads), _like_q(like_k, like_k.shape[1])


def _remember_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, q, _, seat, layer, *_ = inputs
    ctx.save_for_backward(seat, layer)
    ctx.heads = q.shape[1]


def _attention_backward(ctx: Any, grad_k: Tensor) -> tuple[Tensor | None, ...]:
    seat, layer = ctx.saved_tensors
    dq, dk = torch.ops.preceptor.attention_gradient(grad_k, ctx.heads, seat, layer)
    return grad_k + dk, dq, None, None, None, None, None, None, None


see_attention.register_autograd(_attention_backward, setup_context=_remember_attention)


def attention_seen(
    module: nn.Module,
    seat: Seat,
    q_BHSD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    unreadable: str | None,
) -> Tensor:
    """The keys for attention to go on with; the arguments are those of an `AttentionCall`."""
    number: Tensor = module.preceptor_number  # type: ignore[assignment]
    k: Tensor = torch.ops.preceptor.see_attention(
        k_BGSD, q_BHSD, v_BGSD.detach(), seat.number, number, scale, window, softcap, unreadable
    )
    return k


# --- routers ----------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "preceptor::see_router",
    mutates_args=(),
    schema="(Tensor weights, Tensor logits, Tensor chosen, Tensor seat, Tensor router) -> Tensor",
)
def see_router(weights: Tensor, logits: Tensor, chosen: Tensor, seat: Tensor, router: Tensor) -> Tensor:
    """`weights`, copied; the observer sees the router's call."""
    _observer(seat).see_router(RouterCall(int(router), logits, weights, chosen))
    return weights.clone()


@see_router.register_fake
def _(weights: Tensor, *_: Any) -> Tensor:
    return weights.clone()


@torch.library.custom_op(
    "preceptor::router_gradient", mutates_args=(), schema="(Tensor grad, Tensor logits, Tensor seat) -> Tensor"
)
def router_gradient(grad: Tensor, logits: Tensor, seat: Tensor) -> Tensor:
    """[n, E] of the loss on `logits`, in their dtype.

    `grad` only keeps it in the backward: what needs no gradient is taken into the forward's graph, before the loss.
    """
    given = _observer(seat).router_gradient(logits)
    if given is None:
        return logits.new_zeros(logits.shape)
    return given.to(logits.dtype).contiguous()


@router_gradient.register_fake
def _(grad: Tensor, logits: Tensor, seat: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _remember_router(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, logits, _, seat, _ = inputs
    ctx.save_for_backward(logits, seat)


def _router_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    logits, seat = ctx.saved_tensors
    return grad, torch.ops.preceptor.router_gradient(grad, logits, seat), None, None, None


see_router.register_autograd(_router_backward, setup_context=_remember_router)


def router_seen(router: nn.Module, seat: Seat, logits: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """The call's weights, for the experts to go on with."""
    number: Tensor = router.preceptor_number  # type: ignore[assignment]
    seen: Tensor = torch.ops.preceptor.see_router(weights, logits, chosen, seat.number, number)
    return seen
