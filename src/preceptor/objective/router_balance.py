"""Load balancing of a sparse student's experts: the one term that is not a sum over target positions."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from preceptor.errors import InputError
from preceptor.models.calls import RouterCall
from preceptor.models.router_taps import RouterShape
from preceptor.objective.terms import Term


@dataclass
class RouterBalance(Term):
    """E · Σ_e f_e · P_e over a micro-batch's tokens, padding left out (arXiv 2101.03961, equations 4 to 6).

    P_e is the mean router probability of expert e and f_e the mean number of times it is chosen, both over all tokens
    of all sparse layers together, so that Σ_e f_e = k. That is what transformers adds to the loss of Mixtral,
    Qwen2-MoE and Qwen3-MoE times `router_aux_loss_coef`, and `weight` means the same. It is k when the load is even and
    E when the same k experts take all. f has no gradient.

    Its value in a step is the mean over micro-batches and ranks, each weighted with its target positions. It therefore
    depends on how a step is cut into micro-batches, which no other term does.

    Args:
        weight: multiplies the value; finite and not negative.
        routes: must be None: a router is balanced over all rows.

    Raises:
        InputError: for routes, or a weight out of range.
    """

    name: ClassVar[str] = "router_balance"

    weight: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.routes is not None:
            raise InputError(
                f"router_balance: routes {', '.join(self.routes)} given, but a router is balanced over the rows of all "
                "datasets; leave `routes` out"
            )


class Balance:
    """What the routers of one forward did, its value, and the gradient of the value on their logits.

    Args:
        real_n: bool, False for padding, one per token as routers see them (row-major).
        shape: of all routers.
    """

    def __init__(self, real_n: Tensor, shape: RouterShape) -> None:
        self._real_n1 = real_n[:, None]
        self._shape = shape
        self._order: dict[Hashable, int] = {}
        zeros = torch.zeros(shape.layers, shape.experts, dtype=torch.float64, device=real_n.device)
        self.load_LE, self._probs_LE = zeros, zeros.clone()
        """Choices of each expert by real tokens, layers in the order in which they ran."""
        self._rows = real_n.sum().clamp_min(1).double() * shape.layers

    @torch.no_grad()
    def see(self, call: RouterCall) -> None:
        """Count one router's call; a second one is gradient checkpointing's recomputation."""
        if call.router in self._order:
            return
        layer = self._order[call.router] = len(self._order)
        chosen_nk = call.chosen_nk.long()
        real_nk = self._real_n1.expand_as(chosen_nk).double()
        self.load_LE[layer].scatter_add_(0, chosen_nk.flatten(), real_nk.flatten())
        self._probs_LE[layer] = (_probs(call.logits_nE) * self._real_n1).sum(0, dtype=torch.float64)

    @property
    def unseen(self) -> int:
        """Layers whose router was not seen."""
        return self._shape.layers - len(self._order)

    def value(self) -> Tensor:
        """float64, 0-dim, detached: E · Σ_e f_e · P_e."""
        f_E, P_E = self.load_LE.sum(0) / self._rows, self._probs_LE.sum(0) / self._rows
        return self._shape.experts * (f_E * P_E).sum()

    def gradient(self, logits_nE: Tensor) -> Tensor:
        """[n, E], at least float32: E/rows · p ∘ (f − ⟨f, p⟩), the value's gradient on one router's logits.

        To be asked for when all routers were seen.
        """
        probs_nE = _probs(logits_nE)
        f_E = (self.load_LE.sum(0) / self._rows).to(probs_nE.dtype)
        grad_nE = probs_nE * (f_E - (probs_nE @ f_E)[:, None])
        return grad_nE * (self._real_n1 * (self._shape.experts / self._rows)).to(grad_nE.dtype)


def _probs(logits_nE: Tensor) -> Tensor:
    logits_nE = logits_nE.detach()
    return logits_nE.softmax(-1, dtype=torch.promote_types(logits_nE.dtype, torch.float32))


class RouterGradient(Protocol):
    """Knows the loss's gradient on router logits by the time a backward reaches them."""

    def router_gradient(self, logits_nE: Tensor) -> Tensor | None:
        """[n, E], of the loss that is run back; None where there is none."""


def with_router_gradient(call: RouterCall, source: RouterGradient) -> Tensor:
    """The call's weights; the backward through them adds `source`'s gradient to the router's logits.

    The weights multiply the experts' outputs, so every backward through the layer passes them. The model throws its
    routers' logits away: an identity on those would never be run back.
    """
    injected: Tensor = _InjectGradient.apply(call.weights, call.logits_nE, source)
    return injected


class _InjectGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, logits_nE: Tensor, source: RouterGradient) -> Tensor:
        ctx.source = source
        ctx.save_for_backward(logits_nE)
        return weights.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (logits_nE,) = ctx.saved_tensors
        gradient_nE = ctx.source.router_gradient(logits_nE)
        return grads[0], None if gradient_nE is None else gradient_nE.to(logits_nE.dtype), None
