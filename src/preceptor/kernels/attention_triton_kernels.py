"""Three Triton kernels for the KL between attention rows: its value, dq and dk (`attention_kl_triton` launches them).

No map, no atomics: each program owns the rows or the keys it writes, so two runs agree bit for bit. Scores, sums and
probabilities are float32; only operands of matrix products have the inputs' type. Scores are in units of log 2, since
`exp2` is what the hardware has. The target rows of a batch row ascend, so a block of rows sees the keys from its first
row's first to its last row's last, and other key blocks are never read.

Suffixes _S and _T are student and teacher; M rows of a block, N keys of a block. Constants of each model: D head size,
PAD the power of two it is padded to, GROUP query heads per key head, CAP soft-cap or None, TYPE of the products.
"""
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

LOG_2: tl.constexpr = tl.constexpr(0.6931471805599453)
HIDDEN: tl.constexpr = tl.constexpr(-1e30)  # score of a key that may not be seen: finite, so differences are not NaN

# They differ from batch to batch: one program for all of them.
SIZES = ("R", "S", "window")


@triton.jit
def _tile(base, row, stride_row, stride_d, D: tl.constexpr, PAD: tl.constexpr):
    """[rows, PAD], with zeros past the head size."""
    d = tl.arange(0, PAD)[None, :]
    at = base + row.to(tl.int64)[:, None] * stride_row + d * stride_d
    if D == PAD:
        return tl.load(at)
    return tl.load(at, mask=d < D, other=0.0)


@triton.jit
def _tanh(x):
    """Also right to float32's precision near 0, where 1 - 2/(1 + exp 2x) cancels."""
    far = 1.0 - 2.0 / (1.0 + tl.exp2(tl.abs(x) * 2.8853900817779268))
    xx = x * x
    near = x * (1.0 + xx * (-0.33333333 + xx * (0.13333333 + xx * (-0.053968254 + xx * 0.021869488))))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit
def _scores(a, b, factor, CAP: tl.constexpr, TYPE: tl.constexpr):
    """factor·a bᵀ in units of log 2, soft-capped, and the slope of the cap (1 without one)."""
    s = tl.dot(a.to(TYPE), tl.trans(b.to(TYPE)), input_precision="ieee") * factor
    slope = 1.0
    if CAP is not None:
        s = _tanh(s)
        slope = 1.0 - s * s
        s = s * (CAP / LOG_2)
    return s, slope


@triton.jit
def _rows(position, start, b, row, R, window):
    """First and last key that each row of a block may see; rows past the end repeat the last one."""
    at = b.to(tl.int64) * R + row
    last = tl.load(position + at).to(tl.int32)
    return tl.maximum(tl.load(start + at).to(tl.int32), last - window + 1), last


@triton.jit
def _key_blocks(first, last, live, BLOCK_N: tl.constexpr):
    """Key blocks begin..end seen by some row, of which full..full_end are seen whole by every row."""
    begin = tl.min(first, 0) // BLOCK_N
    end = tl.where(tl.max(live.to(tl.int32), 0) > 0, tl.max(last, 0) // BLOCK_N + 1, begin)
    full = tl.minimum(tl.cdiv(tl.max(first, 0), BLOCK_N), end)
    full_end = tl.minimum(tl.maximum((tl.min(last, 0) + 1) // BLOCK_N, full), end)
    return begin, full, full_end, end


@triton.jit
def _add_block(s_S, s_T, m_S, l_S, m_T, l_T, gap):
    """Online softmax of both models: maxima m, sums l, and gap = Σ exp(s_T - m_T)·(s_T - s_S)."""
    new_S = tl.maximum(m_S, tl.max(s_S, 1))
    new_T = tl.maximum(m_T, tl.max(s_T, 1))
    shrink_T = tl.exp2(m_T - new_T)
    p_T = tl.exp2(s_T - new_T[:, None])
    l_S = l_S * tl.exp2(m_S - new_S) + tl.sum(tl.exp2(s_S - new_S[:, None]), 1)
    l_T = l_T * shrink_T + tl.sum(p_T, 1)
    gap = gap * shrink_T + tl.sum(p_T * (s_T - s_S), 1)
    return new_S, l_S, new_T, l_T, gap


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q_S, k_S, q_T, k_T, heads, position, start, valid, value, lse_S, lse_T,
    qb_S, qh_S, qr_S, qd_S, kb_S, kg_S, ks_S, kd_S, qb_T, qh_T, qr_T, qd_T, kb_T, kg_T, ks_T, kd_T,
    factor_S, factor_T, H, R, S, window,
    D_S: tl.constexpr, PAD_S: tl.constexpr, GROUP_S: tl.constexpr, CAP_S: tl.constexpr, TYPE_S: tl.constexpr,
    D_T: tl.constexpr, PAD_T: tl.constexpr, GROUP_T: tl.constexpr, CAP_T: tl.constexpr, TYPE_T: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """`value` [B,H,R] and, where saved, both log-sum-exps; one block of rows of one head."""
    # The last rows see the most keys: they start first.
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M + tl.arange(0, BLOCK_M)
    h, b = tl.program_id(1), tl.program_id(2)
    h_T = h if heads is None else tl.load(heads + h).to(tl.int32)
    inner = tl.minimum(row, R - 1)
    first, last = _rows(position, start, b, inner, R, window)
    live = (row < R) & (tl.load(valid + b.to(tl.int64) * R + inner) != 0)
    begin, full, full_end, end = _key_blocks(first, last, live, BLOCK_N)

    rows_S = _tile(q_S + b.to(tl.int64) * qb_S + h.to(tl.int64) * qh_S, inner, qr_S, qd_S, D_S, PAD_S)
    rows_T = _tile(q_T + b.to(tl.int64) * qb_T + h_T.to(tl.int64) * qh_T, inner, qr_T, qd_T, D_T, PAD_T)
    k_S += b.to(tl.int64) * kb_S + (h // GROUP_S).to(tl.int64) * kg_S
    k_T += b.to(tl.int64) * kb_T + (h_T // GROUP_T).to(tl.int64) * kg_T
    m_S = tl.full([BLOCK_M], HIDDEN, tl.float32)
    m_T = tl.full([BLOCK_M], HIDDEN, tl.float32)
    l_S = tl.zeros([BLOCK_M], tl.float32)
    l_T = tl.zeros([BLOCK_M], tl.float32)
    gap = tl.zeros([BLOCK_M], tl.float32)
    for n in range(full, full_end):
        key = n * BLOCK_N + tl.arange(0, BLOCK_N)
        s_S, _ = _scores(rows_S, _tile(k_S, key, ks_S, kd_S, D_S, PAD_S), factor_S, CAP_S, TYPE_S)
        s_T, _ = _scores(rows_T, _tile(k_T, key, ks_T, kd_T, D_T, PAD_T), factor_T, CAP_T, TYPE_T)
        m_S, l_S, m_T, l_T, gap = _add_block(s_S, s_T, m_S, l_S, m_T, l_T, gap)
    for i in range(full - begin + end - full_end):
        n = tl.where(i < full - begin, begin + i, full_end + i - (full - begin))
        key = n * BLOCK_N + tl.arange(0, BLOCK_N)
        there = tl.minimum(key, S - 1)
        s_S, _ = _scores(rows_S, _tile(k_S, there, ks_S, kd_S, D_S, PAD_S), factor_S, CAP_S, TYPE_S)
        s_T, _ = _scores(rows_T, _tile(k_T, there, ks_T, kd_T, D_T, PAD_T), factor_T, CAP_T, TYPE_T)
        seen = (key[None, :] >= first[:, None]) & (key[None, :] <= last[:, None])
        s_S, s_T = tl.where(seen, s_S, HIDDEN), tl.where(seen, s_T, HIDDEN)
        m_S, l_S, m_T, l_T, gap = _add_block(s_S, s_T, m_S, l_S, m_T, l_T, gap)

    l_S, l_T = tl.where(live, l_S, 1.0), tl.where(live, l_T, 1.0)  # nothing was summed where no row is live
    sum_S, sum_T = m_S + tl.log2(l_S), m_T + tl.log2(l_T)
    kl = tl.where(live, (gap / l_T - sum_T + sum_S) * LOG_2, 0.0)
    at = (b.to(tl.int64) * H + h) * R + row
    tl.store(value + at, kl, mask=row < R)
    if SAVE:
        # Without a target, all probabilities are 0: such a row may lie in a block of the backward that others fill.
        tl.store(lse_S + at, tl.where(live, sum_S, -HIDDEN), mask=row < R)
        tl.store(lse_T + at, tl.where(live, sum_T, -HIDDEN), mask=row < R)


@triton.jit
def _score_gradient(a_S, b_S, a_T, b_T, lse_S, lse_T, factor_S, factor_T,
                    CAP_S: tl.constexpr, CAP_T: tl.constexpr, TYPE_S: tl.constexpr, TYPE_T: tl.constexpr):  # fmt: skip
    """(p_S - p_T)·slope of the cap: the KL's gradient on the student's q kᵀ·scale."""
    s_S, slope = _scores(a_S, b_S, factor_S, CAP_S, TYPE_S)
    s_T, _ = _scores(a_T, b_T, factor_T, CAP_T, TYPE_T)
    return (tl.exp2(s_S - lse_S) - tl.exp2(s_T - lse_T)) * slope


@triton.jit(do_not_specialize=SIZES)
def dq_kernel(
    q_S, k_S, q_T, k_T, heads, position, start, weight, lse_S, lse_T, dq,
    qb_S, qh_S, qr_S, qd_S, kb_S, kg_S, ks_S, kd_S, qb_T, qh_T, qr_T, qd_T, kb_T, kg_T, ks_T, kd_T,
    factor_S, factor_T, scale, H, R, S, window,
    D_S: tl.constexpr, PAD_S: tl.constexpr, GROUP_S: tl.constexpr, CAP_S: tl.constexpr, TYPE_S: tl.constexpr,
    D_T: tl.constexpr, PAD_T: tl.constexpr, GROUP_T: tl.constexpr, CAP_T: tl.constexpr, TYPE_T: tl.constexpr,
    GRAD: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`dq` [B,H,R,D], contiguous; one block of rows of one head."""
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M + tl.arange(0, BLOCK_M)
    h, b = tl.program_id(1), tl.program_id(2)
    h_T = h if heads is None else tl.load(heads + h).to(tl.int32)
    inner = tl.minimum(row, R - 1)
    first, last = _rows(position, start, b, inner, R, window)
    w_M = tl.load(weight + b.to(tl.int64) * R + inner)
    begin, full, full_end, end = _key_blocks(first, last, w_M != 0, BLOCK_N)

    at = (b.to(tl.int64) * H + h) * R + inner
    sum_S, sum_T = tl.load(lse_S + at)[:, None], tl.load(lse_T + at)[:, None]
    rows_S = _tile(q_S + b.to(tl.int64) * qb_S + h.to(tl.int64) * qh_S, inner, qr_S, qd_S, D_S, PAD_S)
    rows_T = _tile(q_T + b.to(tl.int64) * qb_T + h_T.to(tl.int64) * qh_T, inner, qr_T, qd_T, D_T, PAD_T)
    k_S += b.to(tl.int64) * kb_S + (h // GROUP_S).to(tl.int64) * kg_S
    k_T += b.to(tl.int64) * kb_T + (h_T // GROUP_T).to(tl.int64) * kg_T
    sum_MD = tl.zeros([BLOCK_M, PAD_S], tl.float32)
    for n in range(full, full_end):
        key = n * BLOCK_N + tl.arange(0, BLOCK_N)
        keys_S = _tile(k_S, key, ks_S, kd_S, D_S, PAD_S)
        keys_T = _tile(k_T, key, ks_T, kd_T, D_T, PAD_T)
        ds = _score_gradient(
            rows_S, keys_S, rows_T, keys_T, sum_S, sum_T, factor_S, factor_T, CAP_S, CAP_T, TYPE_S, TYPE_T
        )
        sum_MD = tl.dot(ds.to(GRAD), keys_S.to(GRAD), sum_MD, input_precision=PRECISION)
    for i in range(full - begin + end - full_end):
        n = tl.where(i < full - begin, begin + i, full_end + i - (full - begin))
        key = n * BLOCK_N + tl.arange(0, BLOCK_N)
        there = tl.minimum(key, S - 1)
        keys_S = _tile(k_S, there, ks_S, kd_S, D_S, PAD_S)
        keys_T = _tile(k_T, there, ks_T, kd_T, D_T, PAD_T)
        ds = _score_gradient(
            rows_S, keys_S, rows_T, keys_T, sum_S, sum_T, factor_S, factor_T, CAP_S, CAP_T, TYPE_S, TYPE_T
        )
        seen = (key[None, :] >= first[:, None]) & (key[None, :] <= last[:, None])
        sum_MD = tl.dot(tl.where(seen, ds, 0.0).to(GRAD), keys_S.to(GRAD), sum_MD, input_precision=PRECISION)

    d = tl.arange(0, PAD_S)[None, :]
    out = dq + ((b.to(tl.int64) * H + h) * R + row)[:, None] * D_S + d
    dq_MD = sum_MD * (w_M * scale)[:, None]
    tl.store(out, dq_MD.to(dq.dtype.element_ty), mask=(row < R)[:, None] & (d < D_S))


@triton.jit
def _row_blocks(position, start, weight, b, j0, R, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row blocks begin..end that see a key of the block from `j0`, of which full..full_end see all of it in every row.

    Weightless rows (padding, other routes) count for nothing at either end.
    """
    i = tl.arange(0, 1024)
    begins, ends = tl.full([1024], 2147483647, tl.int32), tl.zeros([1024], tl.int32)
    before, starts = tl.zeros([1024], tl.int32), tl.zeros([1024], tl.int32)
    for r in range(0, R, 1024):
        row = r + i
        first, last = _rows(position, start, b, tl.minimum(row, R - 1), R, window)
        inside = row < R
        live = inside & (tl.load(weight + b.to(tl.int64) * R + row, mask=inside, other=0.0) != 0)
        begins = tl.minimum(begins, tl.where(live & (last >= j0), row, 2147483647))
        ends = tl.maximum(ends, tl.where(live & (first < j0 + BLOCK_N), row + 1, 0))
        before += (inside & (last < j0 + BLOCK_N - 1)).to(tl.int32)
        starts += (inside & (first <= j0)).to(tl.int32)
    begin = tl.min(begins, 0) // BLOCK_M
    end = tl.maximum(tl.cdiv(tl.max(ends, 0), BLOCK_M), begin)
    full = tl.minimum(tl.maximum(tl.cdiv(tl.sum(before, 0), BLOCK_M), begin), end)
    full_end = tl.minimum(tl.maximum(tl.sum(starts, 0) // BLOCK_M, full), end)
    return begin, full, full_end, end


@triton.jit(do_not_specialize=SIZES)
def dk_kernel(
    q_S, k_S, q_T, k_T, heads, position, start, weight, lse_S, lse_T, dk,
    qb_S, qh_S, qr_S, qd_S, kb_S, kg_S, ks_S, kd_S, qb_T, qh_T, qr_T, qd_T, kb_T, kg_T, ks_T, kd_T,
    factor_S, factor_T, scale, H, R, S, window,
    D_S: tl.constexpr, PAD_S: tl.constexpr, GROUP_S: tl.constexpr, CAP_S: tl.constexpr, TYPE_S: tl.constexpr,
    D_T: tl.constexpr, PAD_T: tl.constexpr, GROUP_T: tl.constexpr, CAP_T: tl.constexpr, TYPE_T: tl.constexpr,
    GRAD: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`dk` [B,G,S,D], contiguous; one block of keys of one key head, over all its query heads and rows."""
    j0 = tl.program_id(0) * BLOCK_N
    g, b = tl.program_id(1), tl.program_id(2)
    key = j0 + tl.arange(0, BLOCK_N)
    there = tl.minimum(key, S - 1)
    begin, full, full_end, end = _row_blocks(position, start, weight, b, j0, R, window, BLOCK_M, BLOCK_N)
    keys_S = _tile(k_S + b.to(tl.int64) * kb_S + g.to(tl.int64) * kg_S, there, ks_S, kd_S, D_S, PAD_S)
    sum_ND = tl.zeros([BLOCK_N, PAD_S], tl.float32)
    for i in range(GROUP_S):
        h = g * GROUP_S + i
        h_T = h if heads is None else tl.load(heads + h).to(tl.int32)
        base_T = k_T + b.to(tl.int64) * kb_T + (h_T // GROUP_T).to(tl.int64) * kg_T
        keys_T = _tile(base_T, there, ks_T, kd_T, D_T, PAD_T)
        base_S = q_S + b.to(tl.int64) * qb_S + h.to(tl.int64) * qh_S
        base_T = q_T + b.to(tl.int64) * qb_T + h_T.to(tl.int64) * qh_T
        lse = (b.to(tl.int64) * H + h) * R
        for m in range(full, full_end):
            row = m * BLOCK_M + tl.arange(0, BLOCK_M)
            rows_S = _tile(base_S, row, qr_S, qd_S, D_S, PAD_S)
            rows_T = _tile(base_T, row, qr_T, qd_T, D_T, PAD_T)
            w_M = tl.load(weight + b.to(tl.int64) * R + row)
            sum_S, sum_T = tl.load(lse_S + lse + row)[None, :], tl.load(lse_T + lse + row)[None, :]
            ds = _score_gradient(
                keys_S, rows_S, keys_T, rows_T, sum_S, sum_T, factor_S, factor_T, CAP_S, CAP_T, TYPE_S, TYPE_T
            )
            ds = (ds * w_M[None, :]).to(GRAD)
            sum_ND = tl.dot(ds, rows_S.to(GRAD), sum_ND, input_precision=PRECISION)
        for i in range(full - begin + end - full_end):
            m = tl.where(i < full - begin, begin + i, full_end + i - (full - begin))
            row = m * BLOCK_M + tl.arange(0, BLOCK_M)
            inner = tl.minimum(row, R - 1)
            rows_S = _tile(base_S, inner, qr_S, qd_S, D_S, PAD_S)
            rows_T = _tile(base_T, inner, qr_T, qd_T, D_T, PAD_T)
            w_M = tl.where(row < R, tl.load(weight + b.to(tl.int64) * R + inner), 0.0)
            first, last = _rows(position, start, b, inner, R, window)
            sum_S, sum_T = tl.load(lse_S + lse + inner)[None, :], tl.load(lse_T + lse + inner)[None, :]
            ds = _score_gradient(
                keys_S, rows_S, keys_T, rows_T, sum_S, sum_T, factor_S, factor_T, CAP_S, CAP_T, TYPE_S, TYPE_T
            )
            seen = (key[:, None] >= first[None, :]) & (key[:, None] <= last[None, :])
            ds = tl.where(seen, ds * w_M[None, :], 0.0).to(GRAD)
            sum_ND = tl.dot(ds, rows_S.to(GRAD), sum_ND, input_precision=PRECISION)

    d = tl.arange(0, PAD_S)[None, :]
    out = dk + ((b.to(tl.int64) * tl.num_programs(1) + g) * S + key)[:, None] * D_S + d
    tl.store(out, (sum_ND * scale).to(dk.dtype.element_ty), mask=(key < S)[:, None] & (d < D_S))
