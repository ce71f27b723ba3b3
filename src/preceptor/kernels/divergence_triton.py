"""Divergence and cross-entropy of a chunk of logits, values and gradient, in one Triton kernel: a program per row.

A program walks its row two or three times: for the softmaxes' normalisers, for sums that the gradient needs, and to
write the gradient over the scores.
"""
# ruff: noqa: ANN001, ANN201
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from preceptor.kernels.ahead import AheadSpec
from preceptor.kernels.fused import KINDS, FusedRows
from preceptor.kernels.triton_rows import (
    FORWARD,
    LOWEST,
    NONE,
    add_exp,
    divergence,
    log_sum,
    pulled_back,
    student_logits,
    teacher_logits,
)
from preceptor.signals import Head

BLOCK = 2048
"""Columns a program looks at together: 8 of each thread, which is one load of 16 bytes in bfloat16."""
WARPS = 8


# What is read once per row may be at any address, and its stride changes with the batch: no kernel of its own for each.
@triton.jit(
    do_not_specialize=["weight_stride", "value_stride"], do_not_specialize_on_alignment=["label", "weight", "value"]
)
def fused_rows_kernel(
    scores, teacher, bias, label, weight, value, weight_stride, value_stride, scores_stride, teacher_stride,
    width, tokens, share, temperature, sharpness_S, sharpness_T, mixture, scale, softcap, teacher_scale,
    teacher_softcap,
    KIND: tl.constexpr, CROSS_ENTROPY: tl.constexpr, ONE_SOFTMAX: tl.constexpr, BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr, TEACHER_SOFTCAP: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row `program_id(0)`. ONE_SOFTMAX: cross-entropy and divergence share temperature 1 and all columns."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * scores_stride
    teacher += row * teacher_stride
    lane = tl.arange(0, BLOCK)
    nothing = tl.zeros([BLOCK], dtype=tl.float32)

    # Where the cross-entropy looks at no column beyond them, only the shared ones are read.
    reach = width if CROSS_ENTROPY else tokens
    top_S, sum_S = nothing + LOWEST, nothing
    top_T, sum_T = nothing + LOWEST, nothing
    top_C, sum_C = nothing + LOWEST, nothing
    for first in range(0, reach, BLOCK):
        columns = first + lane
        z = student_logits(scores, bias, columns, columns < width, scale, softcap, BIAS, SOFTCAP)
        if KIND != NONE:
            shared = columns < tokens
            top_S, sum_S = add_exp(top_S, sum_S, z * sharpness_S, shared)
            t = teacher_logits(teacher, columns, shared, teacher_scale, teacher_softcap, sharpness_T, TEACHER_SOFTCAP)
            top_T, sum_T = add_exp(top_T, sum_T, t, shared)
        if CROSS_ENTROPY and not ONE_SOFTMAX:
            top_C, sum_C = add_exp(top_C, sum_C, z, columns < width)
    lse_S, lse_T = log_sum(top_S, sum_S), log_sum(top_T, sum_T)
    lse_C = lse_S if ONE_SOFTMAX else log_sum(top_C, sum_C)

    target = tl.load(label + row) if CROSS_ENTROPY else 0
    if CROSS_ENTROPY:
        z_target = student_logits(scores, bias, target, target < width, scale, softcap, BIAS, SOFTCAP)
        tl.store(value + value_stride + row, share * (lse_C - z_target))

    # Of the forward KL Σ p_S u is −1, so that its value can wait for the last pass.
    found, mean = nothing, nothing
    if KIND != NONE and not (KIND == FORWARD and GRADIENT):
        for first in range(0, tokens, BLOCK):
            columns = first + lane
            shared = columns < tokens
            z = student_logits(scores, bias, columns, shared, scale, softcap, BIAS, SOFTCAP)
            t = teacher_logits(teacher, columns, shared, teacher_scale, teacher_softcap, sharpness_T, TEACHER_SOFTCAP)
            v, _p, a = divergence(z * sharpness_S - lse_S, t - lse_T, mixture, KIND)
            found += tl.where(shared, v, 0.0)
            mean += tl.where(shared, a, 0.0)
    total = -1.0 if KIND == FORWARD else tl.sum(mean, 0)

    if GRADIENT:
        by_divergence = tl.load(weight + row) * share * temperature if KIND != NONE else 0.0
        by_entropy = tl.load(weight + weight_stride + row) * share if CROSS_ENTROPY else 0.0
        # All threads have read the label's score when the first of them writes its gradient.
        tl.debug_barrier()
        for first in range(0, width, BLOCK):
            columns = first + lane
            there = columns < width
            z = student_logits(scores, bias, columns, there, scale, softcap, BIAS, SOFTCAP)
            grad = nothing
            if KIND != NONE:
                shared = columns < tokens
                t = teacher_logits(
                    teacher, columns, shared, teacher_scale, teacher_softcap, sharpness_T, TEACHER_SOFTCAP
                )
                v, p_S, a = divergence(z * sharpness_S - lse_S, t - lse_T, mixture, KIND)
                if KIND == FORWARD:
                    found += tl.where(shared, v, 0.0)
                grad = tl.where(shared, by_divergence * (a - p_S * total), 0.0)
            if CROSS_ENTROPY:
                p_C = p_S if ONE_SOFTMAX else tl.exp(z - lse_C)
                grad += by_entropy * (p_C - (columns == target).to(tl.float32))
            tl.store(scores + columns, pulled_back(grad, z, scale, softcap, SOFTCAP), mask=there)
    if KIND != NONE:
        tl.store(value + row, share * temperature * temperature * tl.sum(found, 0))


def fused_rows(rows: FusedRows, teacher_nT: Tensor | None, teacher_head: Head | None) -> Tensor:
    """Values float32 [2, n] of `rows`: of the divergence and of the cross-entropy, 0 for the one that is not computed.

    Args:
        rows: the student's scores, overwritten, and what is computed.
        teacher_nT: scores h Wᵀ + b of the T ≤ V first tokens, for the divergence; float32, bfloat16 or float16.
        teacher_head: what shapes them; None for log-probabilities at the divergence's temperature.
    """
    scores_nV, head, asked = rows.scores_nV, rows.head, rows.divergence if teacher_nT is not None else None
    n, V = scores_nV.shape
    value_2n = torch.zeros(2, n, dtype=torch.float32, device=scores_nV.device)
    if asked is None and not rows.cross_entropy:
        if rows.wants_grad:
            scores_nV.zero_()
        return value_2n
    teacher = scores_nV if teacher_nT is None else teacher_nT
    # Whole numbers would be told apart from others, and 1 from whole numbers, by a kernel of its own.
    temperature = 1.0 if asked is None else float(asked.temperature)
    tokens = 0 if teacher_nT is None else teacher_nT.shape[1]
    block = min(BLOCK, triton.next_power_of_2(V))
    fused_rows_kernel[(n,)](
        scores_nV,
        teacher,
        scores_nV if head.bias_V is None else head.bias_V,
        rows.label_n,
        rows.weight_2n,
        value_2n,
        rows.weight_2n.stride(0),
        value_2n.stride(0),
        scores_nV.stride(0),
        teacher.stride(0),
        V,
        tokens,
        rows.share,
        temperature,
        1.0 / temperature,
        1.0 if teacher_head is None else 1.0 / temperature,
        0.5 if asked is None else asked.mixture,
        head.scale,
        float(head.softcap or 1),
        1.0 if teacher_head is None else teacher_head.scale,
        1.0 if teacher_head is None else float(teacher_head.softcap or 1),
        KIND=0 if asked is None else KINDS[asked.kind],
        CROSS_ENTROPY=rows.cross_entropy,
        ONE_SOFTMAX=rows.cross_entropy and asked is not None and temperature == 1.0 and tokens == V,
        BIAS=head.bias_V is not None,
        SOFTCAP=head.softcap is not None,
        TEACHER_SOFTCAP=teacher_head is not None and teacher_head.softcap is not None,
        GRADIENT=rows.wants_grad,
        BLOCK=block,
        num_warps=warps(block),
    )
    return value_2n


def warps(lanes: int) -> int:
    """Of a program that looks at `lanes` scores together.

    With more threads than scores, threads of several warps would hold the same one, and some would read it when another
    has already overwritten it.
    """
    return max(1, min(WARPS, lanes // 32))


def ahead() -> Iterable[AheadSpec]:
    """Each divergence with cross-entropy beside, as it costs least and most."""
    least = {"CROSS_ENTROPY": True, "ONE_SOFTMAX": True, "BIAS": False, "SOFTCAP": False, "TEACHER_SOFTCAP": False}
    most = {"CROSS_ENTROPY": True, "ONE_SOFTMAX": False, "BIAS": True, "SOFTCAP": True, "TEACHER_SOFTCAP": True}
    for options, dtype in ((least, "bf16"), (least, "fp32"), (most, "bf16")):
        for kind in KINDS:
            constexprs = {"KIND": KINDS[kind], "GRADIENT": True, "BLOCK": BLOCK, **options}
            yield ahead_spec(
                f"linear {kind}", fused_rows_kernel, constexprs, dtype, "least" if options is least else "most"
            )


def ahead_spec(name: str, kernel: Any, constexprs: dict[str, Any], dtype: str, asked: str) -> AheadSpec:
    """A kernel on rows of `dtype`, whose widths and strides are multiples of 16."""
    kinds = dict.fromkeys(("scores", "teacher", "bias"), f"*{dtype}")
    kinds |= dict.fromkeys(("label", "token", "start"), "*i64")
    kinds |= dict.fromkeys(("weight", "value", "said", "rest_said", "kept"), "*fp32")
    sizes = ("scores_stride", "teacher_stride", "width", "tokens")
    kinds |= dict.fromkeys((*sizes, "weight_stride", "value_stride"), "i32")
    return AheadSpec(
        name=name,
        kernel=kernel,
        signature={each: "constexpr" if each in constexprs else kinds.get(each, "fp32") for each in kernel.arg_names},
        constexprs=constexprs,
        num_warps=WARPS,
        num_stages=3,
        multiples_of_16=tuple(each for each in sizes if each in kernel.arg_names),
        note={"dtype": dtype, "asked": asked},
    )
