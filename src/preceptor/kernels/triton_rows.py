"""What Triton kernels on rows of logits share: logits of scores, sums of exponentials, and the divergences' terms.

For a divergence whose derivative with respect to p_S is u, the gradient on z/τ is p_S∘u − p_S·Σ p_S u (see
`objective.divergence`); kernels keep a = p_S∘u, which has no quotient to underflow.
"""
# ruff: noqa: ANN001, ANN201
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

# Numbers of `fused.KINDS`.
NONE, FORWARD, REVERSE, JSD, SKEW = (tl.constexpr(i) for i in range(5))
# Below any score; finite, so that differences are.
LOWEST = tl.constexpr(-3.0e38)
# A teacher's −inf, so that 0·log 0 is 0.
EXCLUDED = tl.constexpr(-1.0e30)


@triton.jit
def tanh(x):
    """Precise near 0 too, where 1 − 2/(e^{2x} + 1) is all rounding."""
    square = x * x
    near = x * (1.0 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315 - square * (62 / 2835)))))
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0.0, -far, far))


@triton.jit
def shaped(x, scale, softcap, SOFTCAP: tl.constexpr):
    """Logits of h Wᵀ + b."""
    x = x * scale
    if SOFTCAP:
        x = softcap * tanh(x / softcap)
    return x


@triton.jit
def pulled_back(grad, z, scale, softcap, SOFTCAP: tl.constexpr):
    """A gradient on logits z as one on h Wᵀ + b."""
    if SOFTCAP:
        grad = grad * (1.0 - (z / softcap) * (z / softcap))
    return grad * scale


@triton.jit
def student_logits(
    scores,
    bias,
    columns,
    there,
    scale,
    softcap,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """The student's logits of some columns, float32; −inf stays −inf."""
    x = tl.load(scores + columns, mask=there, other=0.0).to(tl.float32)
    taken = x == -float("inf")
    if BIAS:
        x += tl.load(bias + columns, mask=there, other=0.0).to(tl.float32)
    x = shaped(x, scale, softcap, SOFTCAP)
    return tl.where(taken, -float("inf"), x) if SOFTCAP else x


@triton.jit
def teacher_logits(teacher, columns, there, scale, softcap, sharpness, SOFTCAP: tl.constexpr):
    """The teacher's logits over its temperature, float32, excluded tokens finite."""
    x = shaped(tl.load(teacher + columns, mask=there, other=0.0).to(tl.float32), scale, softcap, SOFTCAP)
    return tl.maximum(x, EXCLUDED) * sharpness


@triton.jit
def add_exp(top, total, x, there):
    """Σ exp(x − top) with a running maximum, each lane for itself: one exponential per entry."""
    ratio = tl.exp(-tl.abs(x - top))
    total = tl.where(there, tl.where(x > top, total * ratio + 1.0, total + ratio), total)
    return tl.where(there, tl.maximum(x, top), top), total


@triton.jit
def log_sum(top, total):
    """log Σ exp over the lanes of `add_exp`."""
    highest = tl.max(top, 0)
    return highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))


@triton.jit
def log_add(x, y):
    """log(e^x + e^y), one of which may be −inf."""
    highest = tl.maximum(x, y)
    return highest + tl.log(tl.exp(x - highest) + tl.exp(y - highest))


@triton.jit
def divergence(log_S, log_T, mixture, KIND: tl.constexpr):
    """Of one entry of both distributions: its part of the value, p_S, and a = p_S·u."""
    p_S, p_T = tl.exp(log_S), tl.exp(log_T)
    d = log_T - log_S
    if KIND == FORWARD:
        a = -p_T
        value = p_T * d
    elif KIND == REVERSE:
        a = -p_S * d
        value = a
    else:
        # m/p_S = 1 − mixture + mixture·e^d, from e^{−|d|}, which does not overflow.
        e = tl.exp(-tl.abs(d))
        m = tl.where(d > 0.0, mixture + (1.0 - mixture) * e, (1.0 - mixture) + mixture * e)
        log_m = tl.maximum(d, 0.0) + tl.log(m)  # log m − log p_S
        if KIND == JSD:
            a = (mixture - 1.0) * p_S * log_m
            value = mixture * p_T * (d - log_m) + a
        else:
            a = (mixture - 1.0) * p_T * tl.where(d > 0.0, e, 1.0) / m
            value = p_T * (d - log_m)
    return value, p_S, a
