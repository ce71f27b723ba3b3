"""Divergence from a stored teacher, and cross-entropy, in one Triton kernel: a program per row of a chunk of logits.

A row's entries are the tokens that the store knows: those drawn, each with its share, or the K most probable, each with
its log-probability, while all other tokens are one bucket (see `objective.stored`). Entries cost what they are; over
the vocabulary go the student's own softmax and gradient alone. A program sets its entries' scores aside, puts −inf in
their place, so that walks over the row meet the other tokens, and at last writes the entries' gradients one by one.
"""
# ruff: noqa: ANN001, ANN201
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from preceptor.kernels.ahead import AheadSpec
from preceptor.kernels.divergence_triton import ahead_spec, warps
from preceptor.kernels.fused import KINDS, FusedRows
from preceptor.kernels.triton_rows import (
    EXCLUDED,
    LOWEST,
    add_exp,
    divergence,
    log_add,
    log_sum,
    pulled_back,
    student_logits,
)
from preceptor.stored_signals import SampledTokens, TopTokens

BLOCK = 2048
ENTRIES = 256
"""Entries looked at together."""


_ANYWHERE = ["label", "weight", "value", "token", "said", "rest_said", "start", "kept"]


@triton.jit(do_not_specialize=["weight_stride", "value_stride"], do_not_specialize_on_alignment=_ANYWHERE)
def stored_rows_kernel(
    scores, bias, label, weight, value, token, said, rest_said, start, kept, weight_stride, value_stride,
    scores_stride, width, tokens, share, temperature, sharpness, mixture, scale, softcap,
    SAMPLED: tl.constexpr, KIND: tl.constexpr, CROSS_ENTROPY: tl.constexpr, BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Row `program_id(0)`; its entries are those from start[row] to start[row + 1].

    `said` are shares (SAMPLED) or log-probabilities, `rest_said` the teacher's entropy or the log of its other mass.
    """
    row = tl.program_id(0).to(tl.int64)
    scores += row * scores_stride
    begin, end = tl.load(start + row), tl.load(start + row + 1)
    lane = tl.arange(0, BLOCK)
    few = tl.arange(0, ENTRIES)
    nothing, none = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([ENTRIES], dtype=tl.float32)

    target = tl.load(label + row) if CROSS_ENTROPY else 0
    if CROSS_ENTROPY:
        z_target = student_logits(scores, bias, target, target < width, scale, softcap, BIAS, SOFTCAP)
        # Before the label's score may make way for −inf.
        tl.debug_barrier()

    # The entries: set aside, with the student's mass on them and what the teacher says of them.
    top_S, sum_S = none + LOWEST, none
    top_T, sum_T = none + LOWEST, none
    top_C, sum_C = none + LOWEST, none
    cross = none
    for first in range(begin, end, ENTRIES):
        entry = first + few
        there = entry < end
        at = tl.load(token + entry, mask=there, other=0)
        z = student_logits(scores, bias, at, there, scale, softcap, BIAS, SOFTCAP)
        tl.store(kept + entry, z, mask=there)
        top_S, sum_S = add_exp(top_S, sum_S, z * sharpness, there)
        if CROSS_ENTROPY:
            top_C, sum_C = add_exp(top_C, sum_C, z, there)
        y = tl.load(said + entry, mask=there, other=0.0).to(tl.float32)
        if SAMPLED:
            cross += tl.where(there, y * (z * sharpness), 0.0)
        else:
            top_T, sum_T = add_exp(top_T, sum_T, tl.maximum(y, EXCLUDED), there)
        tl.store(scores + at, none - float("inf"), mask=there)
    tl.debug_barrier()
    entries_S, entries_C = log_sum(top_S, sum_S), log_sum(top_C, sum_C)

    # All other tokens.
    top_R, sum_R = nothing + LOWEST, nothing
    top_O, sum_O = nothing + LOWEST, nothing
    reach = width if CROSS_ENTROPY else tokens
    for first in range(0, reach, BLOCK):
        columns = first + lane
        z = student_logits(scores, bias, columns, columns < width, scale, softcap, BIAS, SOFTCAP)
        other = z != -float("inf")
        top_R, sum_R = add_exp(top_R, sum_R, z * sharpness, (columns < tokens) & other)
        if CROSS_ENTROPY:
            top_O, sum_O = add_exp(top_O, sum_O, z, (columns < width) & other)
    rest_S = log_sum(top_R, sum_R)
    lse_S = log_add(rest_S, entries_S)
    lse_C = log_add(log_sum(top_O, sum_O), entries_C)
    if CROSS_ENTROPY:
        tl.store(value + value_stride + row, share * (lse_C - z_target))

    rest = tl.load(rest_said + row).to(tl.float32)
    if SAMPLED:
        found = lse_S - tl.sum(cross, 0) - rest
        # The other tokens' gradient is p_S.
        rest_share, rest_lse = 1.0, lse_S
        lse_T, total = 0.0, -1.0
    else:
        rest = tl.maximum(rest, EXCLUDED)
        lse_T = log_add(log_sum(top_T, sum_T), rest)
        found, rest_p, total = divergence(rest_S - lse_S, rest - lse_T, mixture, KIND)
        rest_a = total
        more, mean = none, none
        for first in range(begin, end, ENTRIES):
            entry = first + few
            there = entry < end
            z = tl.load(kept + entry, mask=there, other=0.0)
            y = tl.maximum(tl.load(said + entry, mask=there, other=0.0).to(tl.float32), EXCLUDED)
            v, _p, a = divergence(z * sharpness - lse_S, y - lse_T, mixture, KIND)
            more += tl.where(there, v, 0.0)
            mean += tl.where(there, a, 0.0)
        found += tl.sum(more, 0)
        total += tl.sum(mean, 0)
        # The bucket's gradient goes to its tokens by their share of it.
        rest_share, rest_lse = rest_a - rest_p * total, rest_S
    tl.store(value + row, share * temperature * temperature * found)

    if GRADIENT:
        by_divergence = tl.load(weight + row) * share * temperature
        by_entropy = tl.load(weight + weight_stride + row) * share if CROSS_ENTROPY else 0.0
        for first in range(0, width, BLOCK):
            columns = first + lane
            there = columns < width
            z = student_logits(scores, bias, columns, there, scale, softcap, BIAS, SOFTCAP)
            p_R = tl.exp(z * sharpness - rest_lse)
            grad = tl.where(columns < tokens, by_divergence * rest_share * p_R, 0.0)
            if CROSS_ENTROPY:
                grad += by_entropy * (tl.exp(z - lse_C) - (columns == target).to(tl.float32))
            grad = pulled_back(grad, z, scale, softcap, SOFTCAP)
            tl.store(scores + columns, grad, mask=there)
        tl.debug_barrier()
        for first in range(begin, end, ENTRIES):
            entry = first + few
            there = entry < end
            at = tl.load(token + entry, mask=there, other=0)
            z = tl.load(kept + entry, mask=there, other=0.0)
            y = tl.load(said + entry, mask=there, other=0.0).to(tl.float32)
            if SAMPLED:
                grad = by_divergence * (tl.exp(z * sharpness - lse_S) - y)
            else:
                _v, p_S, a = divergence(z * sharpness - lse_S, tl.maximum(y, EXCLUDED) - lse_T, mixture, KIND)
                grad = by_divergence * (a - p_S * total)
            if CROSS_ENTROPY:
                grad += by_entropy * (tl.exp(z - lse_C) - (at == target).to(tl.float32))
            tl.store(scores + at, pulled_back(grad, z, scale, softcap, SOFTCAP), mask=there)


def fused_stored_rows(rows: FusedRows, stored: SampledTokens | TopTokens) -> Tensor:
    """Values float32 [2, n] of `rows`: of the divergence from `stored`, and of the cross-entropy (0 if not asked for).

    Args:
        rows: the student's scores, overwritten, and what is computed; with a divergence.
        stored: of the same n positions; tokens of a position are distinct.
    """
    scores_nV, head, asked, device = rows.scores_nV, rows.head, rows.divergence, rows.scores_nV.device
    assert asked is not None
    n, V = scores_nV.shape
    value_2n = torch.zeros(2, n, dtype=torch.float32, device=device)
    if isinstance(stored, SampledTokens):
        # Where each position's begin: `first_N` is on the CPU, and a copy would wait for it.
        start_n = torch.searchsorted(stored.index_U, torch.arange(n + 1, device=device))
        token, said, rest_said = stored.token_U, stored.share_U, stored.entropy_N
    else:
        start_n = torch.arange(n + 1, device=device) * stored.token_NK.shape[1]
        token, said, rest_said = stored.token_NK.contiguous(), stored.log_prob_NK.contiguous(), stored.log_tail_N
    block = min(BLOCK, triton.next_power_of_2(V))
    stored_rows_kernel[(n,)](
        scores_nV,
        scores_nV if head.bias_V is None else head.bias_V,
        rows.label_n,
        rows.weight_2n,
        value_2n,
        token,
        said,
        rest_said,
        start_n,
        torch.empty(said.numel(), dtype=torch.float32, device=device),
        rows.weight_2n.stride(0),
        value_2n.stride(0),
        scores_nV.stride(0),
        V,
        stored.vocabulary,
        rows.share,
        float(asked.temperature),
        1.0 / asked.temperature,
        asked.mixture,
        head.scale,
        float(head.softcap or 1),
        SAMPLED=isinstance(stored, SampledTokens),
        KIND=KINDS[asked.kind],
        CROSS_ENTROPY=rows.cross_entropy,
        BIAS=head.bias_V is not None,
        SOFTCAP=head.softcap is not None,
        GRADIENT=rows.wants_grad,
        BLOCK=block,
        ENTRIES=ENTRIES,
        num_warps=warps(min(block, ENTRIES)),
    )
    return value_2n


def ahead() -> Iterable[AheadSpec]:
    """Both kinds of store with cross-entropy beside, as they cost least and most."""
    for asked, kind, extra in (("least", "forward_kl", False), ("most", "jsd", True)):
        for name, sampled in (("draws", True), ("top tokens", False)):
            constexprs = {"SAMPLED": sampled, "KIND": KINDS[kind], "CROSS_ENTROPY": True, "GRADIENT": True}
            constexprs |= {"BIAS": extra, "SOFTCAP": extra, "BLOCK": BLOCK, "ENTRIES": ENTRIES}
            yield ahead_spec(f"linear, stored {name}", stored_rows_kernel, constexprs, "bf16", asked)
