"""A loss on logits that never holds the logits: the output head and the loss in one chunked pass.

Hidden states and a head go in, per-position values and the gradients of their weighted sum come out. A chunk of
positions is multiplied by the head, turned into a value and a gradient on its logits, and folded into dh and dW at
once, so nothing of size N x V outlives its chunk. dW is summed over chunks in float32; under autocast each chunk's own
product is in autocast's dtype, as it would be in a plain backward.

Where Triton runs, a loss that has a fused kernel gets the scores h Wᵀ as the matmul left them, and overwrites them with
their gradient; otherwise logits are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from preceptor.kernels.choice import use_triton
from preceptor.kernels.chunk_rows import chunk_rows
from preceptor.kernels.fused import FusedLoss
from preceptor.signals import Head

ChunkLoss = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]
"""(logits [n, V] float32/64, slice of positions, gradient wanted) -> (values [T, n], gradient [n, V] or None).

T are the terms; the gradient is of the weighted sum that is to be minimised. The logits may be overwritten."""


def linear_loss(
    hidden_ND: Tensor,
    head: Head,
    chunk_loss: ChunkLoss,
    terms: int,
    *,
    fused: FusedLoss | None = None,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `chunk_loss` over the logits of `hidden_ND`.

    Args:
        hidden_ND: hidden states at the N target positions; N may be 0 (the head then gets a zero gradient, which is
            what keeps ranks in step when one of them has no target).
        head: the student's output head; its weight must be whole here, that is inside its module's forward.
        chunk_loss: values and gradient of one chunk.
        terms: T, the number of values per position.
        fused: the same loss in fused kernels, used where Triton runs and the matmul is not in float64.
        chunk_elements: logits held at once; None for what `chunk_rows` finds.

    Returns:
        A 0-dim tensor to call backward on (its value is 0: values are reported, not recomputed), and [T, N] values
        per position, detached, in float32 (float64 for float64 inputs).

    Raises:
        RuntimeError: on a second backward through the same result; the saved gradients are scaled in place.
    """
    anchor, values_TN = _LinearLoss.apply(
        hidden_ND,
        head.weight_VD,
        head.bias_V,
        head,
        chunk_loss,
        fused,
        terms,
        chunk_elements,
        torch.is_grad_enabled(),
    )
    return anchor, values_TN


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        chunk_loss: ChunkLoss,
        fused: FusedLoss | None,
        terms: int,
        chunk_elements: int | None,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        wants_h, wants_w, wants_b = ctx.needs_input_grad[:3]
        wants_any = grad_enabled and (wants_h or wants_w or wants_b)
        (N, _), (V, D), device = hidden_ND.shape, weight_VD.shape, hidden_ND.device
        compute = _matmul_dtype(hidden_ND, weight_VD)
        precise = torch.promote_types(compute, torch.float32)
        if fused is not None and (precise != torch.float32 or not use_triton(device)):
            fused = None
        if chunk_elements is None:
            # The student's and the teacher's scores, or about seven float32 tensors of both.
            chunk = chunk_rows(V, device, 2 * compute.itemsize if fused is not None else 28)
        else:
            chunk = max(1, chunk_elements // V)
        w_VD = weight_VD.detach().to(compute)
        values_TN = torch.zeros(terms, N, dtype=precise, device=device)
        dh_ND = torch.zeros_like(hidden_ND) if wants_any and wants_h else None
        db_V = torch.zeros(V, dtype=precise, device=device) if wants_any and wants_b else None
        dw_VD: Tensor | None = None
        # One product is all there is to sum, and becomes a gradient in its own dtype.
        summed = compute if chunk >= N and weight_VD.dtype == compute else precise
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for start in range(0, N, chunk):
                rows = slice(start, min(start + chunk, N))
                h_nD = hidden_ND[rows].to(compute)
                scores_nV = torch.nn.functional.linear(h_nD, w_VD)
                if fused is None:
                    values_TN[:, rows], grad_nV = _through_logits(
                        chunk_loss, scores_nV.to(precise), head, rows, wants_any
                    )
                else:
                    values_TN[:, rows], grad_nV = fused(scores_nV, head, rows, wants_any)
                del scores_nV
                if grad_nV is None:
                    continue
                if db_V is not None:
                    db_V += grad_nV.sum(0, dtype=precise)
                grad_nV = grad_nV.to(compute)
                if dh_ND is not None:
                    dh_ND[rows] = grad_nV @ w_VD
                if wants_any and wants_w:
                    if dw_VD is None:
                        dw_VD = (grad_nV.mT @ h_nD).to(summed)
                    elif compute == precise:
                        dw_VD.addmm_(grad_nV.mT, h_nD)
                    else:
                        dw_VD += grad_nV.mT @ h_nD
                # The next chunk's scores are made in this one's memory, and not beside it.
                del grad_nV
        if dw_VD is None and wants_any and wants_w:
            dw_VD = torch.zeros(V, D, dtype=summed, device=device)
        ctx.grads = (dh_ND, dw_VD, db_V)
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(values_TN)
        return torch.zeros((), dtype=precise, device=device), values_TN

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("backward was called twice through one loss; its gradients were already given away")
        saved, ctx.grads = ctx.grads, None
        # Scaled in place: a second copy of dW would be the largest tensor of the step.
        scaled = [
            None if each is None else each.mul_(grads[0]).to(dtype)
            for each, dtype in zip(saved, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None, None, None)


def _through_logits(
    chunk_loss: ChunkLoss, scores_nV: Tensor, head: Head, rows: slice, wants_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Values, and the gradient on the scores, of a loss on logits."""
    if head.bias_V is not None:
        scores_nV += head.bias_V
    logits_nV = head.shape_logits(scores_nV)
    # With a soft-cap the gradient needs the logits after the loss, which may overwrite them.
    kept = logits_nV.clone() if head.softcap is not None and wants_grad else logits_nV
    values_Tn, grad_nV = chunk_loss(logits_nV, rows, wants_grad)
    return values_Tn, None if grad_nV is None else head.pull_back(kept, grad_nV)


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype the head would have multiplied in: autocast's when it is on, else the weight's."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return weight.dtype
