"""What happens inside the student's forward: every term at the place where its gradient starts.

Head terms run in the output head's forward. The attention term runs where attention is computed, and its gradient
has to survive gradient checkpointing, whose first pass builds no graph: an identity on the attention output adds dq
and dk in its backward, and an identity on the head's input records the loss's scale before any gradient reaches the
layers. (Returning queries and keys, or one scalar per layer, silently loses the gradient under reentrant
checkpointing, with the right loss value.) The router_balance term adds its gradient in the same way to router logits;
it needs all routers' load, which is known by then.

In compiled layers the operators of `models/opaque.py` stand in for both identities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from preceptor.kernels.attention_kl import attention_kl
from preceptor.kernels.linear_loss import linear_loss
from preceptor.models.calls import AttentionCall, RouterCall
from preceptor.models.opaque import CompiledObserver
from preceptor.models.recorder import scores_of
from preceptor.models.router_taps import RouterObserver, RouterShape
from preceptor.models.taps import taps_active
from preceptor.objective.chunks import HeadLosses, TermWeights, in_parts
from preceptor.objective.fused_chunks import FusedLosses
from preceptor.objective.maps import LayerLink
from preceptor.objective.router_balance import Balance, with_router_gradient
from preceptor.objective.terms import HeadTerm
from preceptor.signals import AttentionScores, Head, Signal, TokenBatch


class StudentObserver(RouterObserver, CompiledObserver):
    """Computes all terms of one forward; one instance per forward, so several forwards may be in flight."""

    def __init__(
        self,
        batch: TokenBatch,
        signal: Signal,
        *,
        head_terms: Sequence[HeadTerm],
        links: Mapping[str, Mapping[int, LayerLink]],
        covers_TK: Tensor,
        weight_T: Tensor,
        vocabulary: int | None,
        routers: RouterShape | None,
        wants_grad: bool,
    ) -> None:
        device = batch.input_ids.device
        self.batch = batch
        self.signal = signal
        self.taught = bool(signal.parts)
        self.head_terms = head_terms
        self.links = links
        self.layers = {layer for each in links.values() for layer in each}
        self.vocabulary = vocabulary
        self.weights = TermWeights.of(covers_TK, weight_T, wants_grad=wants_grad, device=device)
        # Each part with its own rows of the batch: all layers look at the same ones.
        self.taught_rows = [(p, batch if p.rows is None else batch.select(p.rows)) for p in signal.parts]
        self.attends = bool(self.links) and self.weights.minimised[-1]
        # Rows of the tables: head terms, then router_balance where routers are given, then attention.
        self.balance = None if routers is None else Balance((batch.segment_ids >= 0).flatten(), routers)
        self.balances = self.balance is not None and self.weights.minimised[len(head_terms)]
        self.sees_attention, self.sees_routers = bool(self.links), self.balance is not None
        self.sums_TK = torch.zeros(self.weights.weight_TK.shape, dtype=torch.float64, device=device)
        # The loss's scale, once the backward has reached the head's input; see _RecordScale.
        self.scale: Tensor | None = None
        self._gradients: dict[int, tuple[Tensor, Tensor]] = {}
        self._seen: set[int] = set()

    # --- attention layers -------------------------------------------------------------------------------------

    def at_attention(self, call: AttentionCall, output: Tensor) -> Tensor:
        self.see_attention(call)
        if not self._attends_at(call.layer):
            return output
        injected: Tensor = _InjectGradient.apply(output, call.q_BHSD, call.k_BGSD, self, call.layer)
        return injected

    def see_attention(self, call: AttentionCall) -> None:
        # A second call is gradient checkpointing's recomputation: value and gradients are already there.
        if call.layer in self.layers and self.taught and call.layer not in self._seen:
            self._seen.add(call.layer)
            self._attention_value(call)

    def _attends_at(self, layer: int) -> bool:
        return self.attends and self.taught and layer in self.layers

    @torch.no_grad()
    def _attention_value(self, call: AttentionCall) -> None:
        scores = scores_of(call, self.batch.targets)
        grads = []
        for part, here in self.taught_rows:
            links = self.links.get(part.teacher, {})
            link = links.get(call.layer)
            if link is None or not part.attention:  # rows whose route the term leaves out
                continue
            share = part.weight / (call.q_BHSD.shape[1] * len(links))
            weight_B = self.weights.weight_TK[-1][self.batch.routes] * share
            ours = scores.of_rows(part.rows, here.targets.position_BR.shape[1])
            weight_BR = here.targets.valid_BR * (weight_B if part.rows is None else weight_B[part.rows])[:, None]
            teacher = part.attention[link.teacher_layer]
            result = attention_kl(ours, teacher, here.targets, weight_BR, heads=link.heads, needs_grad=self.attends)
            value_B = result.value_BHR.double().sum((1, 2)) * share
            self.sums_TK[-1].index_add_(0, here.routes, value_B)
            grads.append((part.rows, result.dq_BHRD, result.dk_BGSD))
        if self.attends:
            self._gradients[call.layer] = _merge(grads, scores)

    def attention_gradient(self, layer: int, positions: int) -> tuple[Tensor, Tensor] | None:
        """dq [B,H,S,D] and dk [B,G,S,D] of the loss at one layer; given away once, then freed."""
        if not self._attends_at(layer):
            return None
        if self.scale is None:
            raise RuntimeError(
                "the attention term's gradient was asked for before the loss's backward reached the head"
            )
        dq_BHRD, dk_BGSD = self._gradients.pop(layer)
        B, H, _, D = dq_BHRD.shape
        index = self.batch.targets.position_BR[:, None, :, None].expand(B, H, -1, D)
        dq_BHSD = dq_BHRD.new_zeros(B, H, positions, D).scatter_add_(2, index, dq_BHRD.mul_(self.scale))
        return dq_BHSD, dk_BGSD.mul_(self.scale)

    # --- routers ----------------------------------------------------------------------------------------------

    def at_router(self, call: RouterCall) -> Tensor:
        self.see_router(call)
        return with_router_gradient(call, self) if self.balances else call.weights

    def see_router(self, call: RouterCall) -> None:
        if self.balance is not None:
            self.balance.see(call)

    def router_gradient(self, logits_nE: Tensor) -> Tensor | None:
        """[n, E] of the loss on one router's logits."""
        if self.balance is None or not self.balances:
            return None
        if self.scale is None:
            raise RuntimeError(
                "the router_balance term's gradient was asked for before the loss's backward reached the head"
            )
        # The weight is one for all routes; with the number of targets, as in the loss.
        factor = self.weights.weight_TK[len(self.head_terms), 0] * self.batch.targets.count * self.scale
        gradient_nE = self.balance.gradient(logits_nE)
        return gradient_nE.mul_(factor.to(gradient_nE.dtype))

    @property
    def expert_load_LE(self) -> Tensor | None:
        """float64 [sparse layers, experts], how often real tokens chose each expert."""
        return None if self.balance is None else self.balance.load_LE

    # --- output head ------------------------------------------------------------------------------------------

    def at_head(self, head: Head, hidden_BSD: Tensor) -> Tensor:
        targets = self.batch.targets
        before = self._before_head()
        if self.layers or self.balance is not None:
            hidden_BSD, before = _RecordScale.apply(hidden_BSD, before, self)
        order_N = in_parts(self.signal.parts, targets.count, targets.flat_N.device)
        hidden_ND = hidden_BSD.flatten(0, 1)[targets.flat_N[order_N]]
        route_N = self.batch.routes[targets.row_N[order_N]]
        chunks = HeadLosses(
            self.head_terms,
            self.signal.parts,
            targets.label_N[order_N],
            route_N,
            weights=self.weights,
            vocabulary=self.vocabulary,
        )
        # Without head terms no position is multiplied by the head, but it still gets a (zero) gradient: an unused
        # parameter would leave the other ranks waiting.
        used_ND = hidden_ND if self.head_terms else hidden_ND[:0]
        anchor, values_TN = linear_loss(used_ND, head, chunks, len(self.head_terms), fused=FusedLosses.of(chunks))
        T = len(self.head_terms)
        if self.head_terms:
            self.sums_TK[:T].index_add_(1, route_N, values_TN.double()).mul_(self.weights.covers_TK[:T])
        weighted = (self.sums_TK[:T] * self.weights.weight_TK[:T]).sum()
        # Three dimensions, as the model expects of logits; not a view, which FSDP2's hooks would not follow.
        loss = (anchor + weighted + before).to(anchor.dtype).repeat(1, 1, 1)
        # Everything a teacher said has been used: its hidden states, queries and keys need not outlive the forward.
        self.signal, self.taught_rows = Signal(), []
        return loss

    def _before_head(self) -> Tensor:
        """The weighted sum of the terms that worked in the layers."""
        total = torch.zeros((), dtype=torch.float64, device=self.sums_TK.device)
        missing = sorted(self.layers - self._seen) if self.taught else []
        untapped = f"attention layers {missing}" if missing else ""
        if self.balance is not None and self.balance.unseen:
            untapped = f"{self.balance.unseen} routers"
        if untapped:
            raise RuntimeError(f"{untapped} were not tapped; call the objective inside `with objective.listening():`")
        if self.layers and self.taught:
            self.sums_TK[-1] *= self.weights.covers_TK[-1]
            total = total + (self.sums_TK[-1] * self.weights.weight_TK[-1]).sum()
        if self.balance is not None:
            t, route_N = len(self.head_terms), self.batch.routes[self.batch.targets.row_N]
            # Not a sum over targets, but weighted like one: divided by N it is a mean over micro-batches.
            self.sums_TK[t] = self.balance.value() * torch.bincount(route_N, minlength=self.sums_TK.shape[1])
            total = total + (self.sums_TK[t] * self.weights.weight_TK[t]).sum()
        return total

    def result(self, output: Tensor) -> dict[str, Tensor]:
        # The graph holds this observer, so this observer must not hold the graph: no collector sees such a cycle.
        return {"loss": output.sum()}


def _merge(grads: Sequence[tuple[Tensor | None, Any, Any]], scores: AttentionScores) -> tuple[Tensor, Tensor]:
    """The parts' gradients put back at their batch rows."""
    if len(grads) == 1 and grads[0][0] is None:
        return grads[0][1], grads[0][2]
    dq_BHRD, dk_BGSD = torch.zeros_like(scores.q_BHRD), torch.zeros_like(scores.k_BGSD)
    for rows, dq, dk in grads:  # rows that several teachers cover add up
        mine = slice(None) if rows is None else rows
        dq_BHRD[mine, :, : dq.shape[2]] += dq
        dk_BGSD[mine] += dk
    return dq_BHRD, dk_BGSD


class _InjectGradient(torch.autograd.Function):
    """Identity on the attention output whose backward adds the attention term's gradient to queries and keys."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, q_BHSD: Tensor, k_BGSD: Tensor, observer: StudentObserver, layer: int
    ) -> Tensor:
        ctx.observer, ctx.layer = observer, layer
        ctx.positions = q_BHSD.shape[2]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk = ctx.observer.attention_gradient(ctx.layer, ctx.positions)
        return grads[0], dq, dk, None, None


class _RecordScale(torch.autograd.Function):
    """Identity on the head's input and on the layers' sum; its backward runs before any layer's.

    The graph holds the observer here, and compiled layers count on it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, before: Tensor, observer: StudentObserver) -> tuple[Tensor, Tensor]:
        ctx.observer = observer
        return hidden.view_as(hidden), before.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        observer = ctx.observer
        if not taps_active() and ((observer.attends and observer.taught) or observer.balances):
            raise RuntimeError(
                "the backward runs outside `with objective.listening():`; gradient checkpointing would recompute the "
                "layers without the attention and router_balance terms"
            )
        observer.scale = grads[1]
        return grads[0], None, None
