"""Flash attention, backward: gradients from the output and one log-sum-exp per row; weights are made again, tile by tile.

What moves: `delta` reads o and do once and writes one number per row. `dkdv` keeps one block of keys and values and streams
the queries, do, log-sum-exp and delta of every row that sees it, for each query head of the group; `dq` keeps one block of
queries and do and streams keys and values, as forward does. Each sum has one owner, so there are no atomic additions, the
same inputs give the same bits, and the T x S matrix is never written; scores and dP are computed twice for it.

            keys ->   0      1      2                   dkdv: one program per key block, down its column
        queries  0 [ diag ]                             rows cut by the diagonal first: masked; then all others
          |      1 [ full ][ diag ]                     dq:   one program per query block, along its row
          v      2 [ full ][ full ][ diag ]             tiles beyond the diagonal are never visited
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.dense import causal_pairs, check_qkv
from tutor.attention.methods.flash import Grads
from tutor.kernels.flash import _padded, check_kernel
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402


def flash_backward(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None = None, *,
                   causal: bool = True, scale: float | None = None, block_m: int | None = None,
                   block_n: int | None = None) -> Grads:
    """Gradients of q, k and v; the same as `tutor.attention.methods.flash.flash_backward`, with float32 sums.

    Args:
        q, k, v, causal, scale: what `flash_attention` was given; any strides.
        o, lse: its result; do, dlse: gradients of both, dlse None where the log-sum-exp was not used.
        block_m, block_n: queries and keys of a tile, powers of two >= 16; chosen by measuring on a GPU unless given.
    """
    check_qkv(q, k, v)
    check_kernel(q, k, v, block_m=block_m, block_n=block_n)
    (b, hq, t, d), (hkv, s), dv = q.shape, k.shape[1:3], v.shape[3]
    for name, x, want in (("o", o, (b, hq, t, dv)), ("lse", lse, (b, hq, t)), ("do", do, (b, hq, t, dv)),
                          ("dlse", dlse, (b, hq, t))):
        if x is not None and tuple(x.shape) != want:
            raise ValueError(f"{name} must have shape {want}, as the result of flash_attention; got {tuple(x.shape)}")
    dq, dk, dv_ = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if t == 0 or s == 0:
        return Grads(dq.zero_(), dk.zero_(), dv_.zero_())

    do, lse = do.to(q.dtype), lse.contiguous()
    delta = torch.empty(b, hq, t, device=q.device)
    emulated, scale = kernels.interpreted(), 1 / math.sqrt(d) if scale is None else scale
    widths = {"D": d, "DV": dv, "BLOCK_D": _padded(d), "BLOCK_DV": _padded(dv)}
    _delta_kernel[(triton.cdiv(t, 64), b * hq)](
        o, do, lse if dlse is None else dlse.contiguous(), delta, *o.stride(), *do.stride(), hq, t, DV=dv,
        BLOCK_DV=widths["BLOCK_DV"], BLOCK_M=64, WITH_LSE=dlse is not None)
    shared = (*q.stride(), *k.stride(), *v.stride(), *do.stride())
    numbers = (hq, hkv, t, s, scale * math.log2(math.e), scale)
    options = widths | {"CAUSAL": causal, "DOT_F32": emulated}
    by_keys = lambda chosen: (triton.cdiv(s, chosen["BLOCK_N"]), b * hkv)
    by_queries = lambda chosen: (triton.cdiv(t, chosen["BLOCK_M"]), b * hq)
    if block_m is None and block_n is None and not emulated:
        options["SIZE"] = min(triton.next_power_of_2(max(t, s)), 4096)
        dkdv, to_dq = _tuned()
    else:
        options |= {"BLOCK_M": block_m or 32, "BLOCK_N": block_n or 32, "SIZE": 0, "num_stages": 1}
        dkdv, to_dq = _dkdv_kernel, _dq_kernel
        by_keys, by_queries = by_keys(options), by_queries(options)
    dkdv[by_keys](q, k, v, do, lse, delta, dk, dv_, *shared, *dk.stride(), *dv_.stride(), *numbers, **options)
    to_dq[by_queries](q, k, v, do, lse, delta, dq, *shared, *dq.stride(), *numbers, **options)
    return Grads(dq, dk, dv_)


_TUNED: list = []


def _tuned():
    """Both kernels with tiles chosen by measuring, once for each width, dtype, mask and class of lengths; GPU only."""
    if not _TUNED:
        shapes = ((64, 128, 8, 2), (64, 128, 4, 2), (128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (32, 64, 4, 2),
                  (32, 128, 4, 2), (64, 32, 4, 2), (128, 32, 4, 2), (32, 32, 4, 1), (16, 32, 4, 1))
        configs = [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
                   for m, n, warps, stages in shapes]
        _TUNED.extend(triton.autotune(configs, key=["D", "DV", "CAUSAL", "SIZE"])(kernel)
                      for kernel in (_dkdv_kernel, _dq_kernel))
    return _TUNED


def roofline(b: int, hq: int, hkv: int, t: int, s: int, d: int, dv: int | None = None, *, causal: bool = True,
             dtype: str = "bfloat16", on: str = "H100 SXM") -> Roofline:
    """Bytes that must move (each tensor once) and operations that must be done: five products over allowed pairs.

    These kernels do seven (scores and dP twice), so they cannot reach more than 5/7 of a floor set by arithmetic.
    """
    dv = dv or d
    pairs = b * hq * (causal_pairs(torch.arange(s - t, s), s) if causal else t * s)
    rows, keys = b * hq * t, b * hkv * s
    tensors = (rows * (2 * d + 2 * dv) + keys * 2 * (d + dv)) * BYTES[dtype] + rows * 4    # q, dq, o, do; k, dk, v, dv; lse
    return Roofline(tensors, 2 * pairs * (3 * d + 2 * dv), hardware(on), dtype)


@triton.jit
def _dot(a, b, DOT_F32: tl.constexpr):
    if DOT_F32:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _delta_kernel(o_ptr, do_ptr, dlse_ptr, delta_ptr, stride_ob, stride_oh, stride_ot, stride_od,
                  stride_gb, stride_gh, stride_gt, stride_gd, Hq, T, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
                  BLOCK_M: tl.constexpr, WITH_LSE: tl.constexpr):
    """D = sum(do * o) - dlse of BLOCK_M rows of one head; lse, dlse and delta are contiguous (B, Hq, T)."""
    rows, dims = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64), tl.arange(0, BLOCK_DV)
    batch, head = (tl.program_id(1) // Hq).to(tl.int64), (tl.program_id(1) % Hq).to(tl.int64)
    o_ptr += batch * stride_ob + head * stride_oh
    do_ptr += batch * stride_gb + head * stride_gh
    flat = (batch * Hq + head) * T + rows
    inside = (rows[:, None] < T) & (dims[None, :] < DV)
    o = tl.load(o_ptr + rows[:, None] * stride_ot + dims[None, :] * stride_od, mask=inside, other=0.0).to(tl.float32)
    do = tl.load(do_ptr + rows[:, None] * stride_gt + dims[None, :] * stride_gd, mask=inside, other=0.0).to(tl.float32)
    delta = tl.sum(o * do, 1)
    if WITH_LSE:
        delta -= tl.load(dlse_ptr + flat, mask=rows < T, other=0.0).to(tl.float32)
    tl.store(delta_ptr + flat, delta, mask=rows < T)


@triton.jit
def _dkdv_tile(dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, stride_qt, stride_qd, stride_gt, stride_gd, start, keys,
               T, S, scale_log2, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
               BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, DOT_F32: tl.constexpr, MASKED: tl.constexpr):
    """Add what BLOCK_M query rows send to a key block; everything transposed: tiles are (BLOCK_N, BLOCK_M)."""
    local, dims, dims_v = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    rows = start + local
    inside = rows < T                                                     # rows beyond: q, do, delta are 0 and add nothing
    q_ptr += tl.cast(start, tl.int64) * stride_qt
    do_ptr += tl.cast(start, tl.int64) * stride_gt
    q = tl.load(q_ptr + local[None, :] * stride_qt + dims[:, None] * stride_qd,
                mask=inside[None, :] & (dims[:, None] < D), other=0.0)                              # (BLOCK_D, BLOCK_M)
    do = tl.load(do_ptr + local[:, None] * stride_gt + dims_v[None, :] * stride_gd,
                 mask=inside[:, None] & (dims_v[None, :] < DV), other=0.0)                          # (BLOCK_M, BLOCK_DV)
    lse = tl.load(lse_ptr + rows, mask=inside, other=0.0) * 1.4426950408889634                      # log2(e)
    lse = tl.where(lse == float("-inf"), 0.0, lse)                        # a row that saw nothing is masked everywhere
    delta = tl.load(delta_ptr + rows, mask=inside, other=0.0)
    s = _dot(k, q, DOT_F32) * scale_log2                                                            # (BLOCK_N, BLOCK_M)
    if MASKED:
        allowed = keys[:, None] < S
        if CAUSAL:
            allowed = allowed & (keys[:, None] <= (S - T + rows)[None, :])
        s = tl.where(allowed, s, float("-inf"))
    p = tl.exp2(s - lse[None, :])
    dv += _dot(p.to(do.dtype), do, DOT_F32)
    dp = _dot(v, tl.trans(do), DOT_F32)
    ds = p * (dp - delta[None, :])
    dk += _dot(ds.to(q.dtype), tl.trans(q), DOT_F32)
    return dk, dv


@triton.jit
def _dkdv_kernel(q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
                 stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
                 stride_vb, stride_vh, stride_vs, stride_vd, stride_gb, stride_gh, stride_gt, stride_gd,
                 stride_dkb, stride_dkh, stride_dks, stride_dkd, stride_dvb, stride_dvh, stride_dvs, stride_dvd,
                 Hq, Hkv, T, S, scale_log2, scale,
                 D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                 BLOCK_DV: tl.constexpr, CAUSAL: tl.constexpr, DOT_F32: tl.constexpr, SIZE: tl.constexpr):
    """One program: BLOCK_N keys of one KV head, over all rows of all its query heads."""
    first_key = tl.program_id(0) * BLOCK_N
    batch, kv_head = (tl.program_id(1) // Hkv).to(tl.int64), (tl.program_id(1) % Hkv).to(tl.int64)
    first64, group = tl.cast(first_key, tl.int64), Hq // Hkv
    local, dims, dims_v = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    keys = first_key + local
    in_k = (keys[:, None] < S) & (dims[None, :] < D)
    in_v = (keys[:, None] < S) & (dims_v[None, :] < DV)
    k_ptr += batch * stride_kb + kv_head * stride_kh + first64 * stride_ks
    v_ptr += batch * stride_vb + kv_head * stride_vh + first64 * stride_vs
    k = tl.load(k_ptr + local[:, None] * stride_ks + dims[None, :] * stride_kd, mask=in_k, other=0.0)
    v = tl.load(v_ptr + local[:, None] * stride_vs + dims_v[None, :] * stride_vd, mask=in_v, other=0.0)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)

    some_see, all_see = 0, 0                                              # rows from here on see some key, every key
    if CAUSAL:
        some_see = tl.maximum(first_key - (S - T), 0) // BLOCK_M * BLOCK_M
        all_see = tl.cdiv(tl.maximum(first_key + BLOCK_N - 1 - (S - T), 0), BLOCK_M) * BLOCK_M
    all_see = tl.where(first_key + BLOCK_N > S, tl.cdiv(T, BLOCK_M) * BLOCK_M, all_see)              # some keys are missing
    q_ptr += batch * stride_qb + kv_head * group * stride_qh
    do_ptr += batch * stride_gb + kv_head * group * stride_gh
    lse_ptr += (batch * Hq + kv_head * group) * T
    delta_ptr += (batch * Hq + kv_head * group) * T
    for _ in range(group):                                                # the gradients of a group are summed here
        for start in range(some_see, tl.minimum(all_see, T), BLOCK_M):
            dk, dv = _dkdv_tile(dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, stride_qt, stride_qd, stride_gt, stride_gd,
                                start, keys, T, S, scale_log2, D, DV, BLOCK_D, BLOCK_DV, BLOCK_M, CAUSAL, DOT_F32, True)
        for start in range(all_see, T, BLOCK_M):
            dk, dv = _dkdv_tile(dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, stride_qt, stride_qd, stride_gt, stride_gd,
                                start, keys, T, S, scale_log2, D, DV, BLOCK_D, BLOCK_DV, BLOCK_M, CAUSAL, DOT_F32, False)
        q_ptr += stride_qh
        do_ptr += stride_gh
        lse_ptr += T
        delta_ptr += T
    dk_ptr += batch * stride_dkb + kv_head * stride_dkh + first64 * stride_dks
    dv_ptr += batch * stride_dvb + kv_head * stride_dvh + first64 * stride_dvs
    dk = (dk * scale).to(dk_ptr.dtype.element_ty)
    tl.store(dk_ptr + local[:, None] * stride_dks + dims[None, :] * stride_dkd, dk, mask=in_k)
    tl.store(dv_ptr + local[:, None] * stride_dvs + dims_v[None, :] * stride_dvd, dv.to(dv_ptr.dtype.element_ty), mask=in_v)


@triton.jit
def _dq_tile(dq, q, do, lse, delta, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, start, pos, S, scale_log2,
             D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_N: tl.constexpr,
             CAUSAL: tl.constexpr, DOT_F32: tl.constexpr, MASKED: tl.constexpr):
    """Add what BLOCK_N keys send to a query block."""
    local, dims, dims_v = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    keys = start + local
    inside = keys < S                                                     # always true where MASKED is false
    k_ptr += tl.cast(start, tl.int64) * stride_ks
    v_ptr += tl.cast(start, tl.int64) * stride_vs
    k = tl.load(k_ptr + local[None, :] * stride_ks + dims[:, None] * stride_kd,
                mask=(inside[None, :] | (not MASKED)) & (dims[:, None] < D), other=0.0)             # (BLOCK_D, BLOCK_N)
    v = tl.load(v_ptr + local[None, :] * stride_vs + dims_v[:, None] * stride_vd,
                mask=(inside[None, :] | (not MASKED)) & (dims_v[:, None] < DV), other=0.0)         # (BLOCK_DV, BLOCK_N)
    s = _dot(q, k, DOT_F32) * scale_log2                                                            # (BLOCK_M, BLOCK_N)
    if MASKED:
        allowed = inside[None, :]
        if CAUSAL:
            allowed = allowed & (keys[None, :] <= pos[:, None])
        s = tl.where(allowed, s, float("-inf"))
    p = tl.exp2(s - lse[:, None])
    ds = p * (_dot(do, v, DOT_F32) - delta[:, None])
    return dq + _dot(ds.to(k.dtype), tl.trans(k), DOT_F32)


@triton.jit
def _dq_kernel(q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr,
               stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
               stride_vb, stride_vh, stride_vs, stride_vd, stride_gb, stride_gh, stride_gt, stride_gd,
               stride_dqb, stride_dqh, stride_dqt, stride_dqd, Hq, Hkv, T, S, scale_log2, scale,
               D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
               BLOCK_DV: tl.constexpr, CAUSAL: tl.constexpr, DOT_F32: tl.constexpr, SIZE: tl.constexpr):
    """One program: BLOCK_M query rows of one head, over the keys that they see; the loops are those of forward."""
    first_row = tl.program_id(0) * BLOCK_M
    batch, head = (tl.program_id(1) // Hq).to(tl.int64), (tl.program_id(1) % Hq).to(tl.int64)
    first64, kv_head = tl.cast(first_row, tl.int64), head // (Hq // Hkv)
    local, dims, dims_v = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    rows = first_row + local
    pos = S - T + rows                                                    # (BLOCK_M,) may be negative
    in_q = (rows[:, None] < T) & (dims[None, :] < D)
    q_ptr += batch * stride_qb + head * stride_qh + first64 * stride_qt
    do_ptr += batch * stride_gb + head * stride_gh + first64 * stride_gt
    k_ptr += batch * stride_kb + kv_head * stride_kh
    v_ptr += batch * stride_vb + kv_head * stride_vh
    flat = (batch * Hq + head) * T + rows
    q = tl.load(q_ptr + local[:, None] * stride_qt + dims[None, :] * stride_qd, mask=in_q, other=0.0)
    do = tl.load(do_ptr + local[:, None] * stride_gt + dims_v[None, :] * stride_gd,
                 mask=(rows[:, None] < T) & (dims_v[None, :] < DV), other=0.0)
    lse = tl.load(lse_ptr + flat, mask=rows < T, other=0.0) * 1.4426950408889634                    # log2(e)
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    delta = tl.load(delta_ptr + flat, mask=rows < T, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    seen_by_all, seen_by_some = S, S                                      # keys [0, x) seen by every, by some row
    if CAUSAL:
        seen_by_all = tl.maximum(tl.minimum(S - T + first_row + 1, S), 0)
        seen_by_some = tl.maximum(tl.minimum(S - T + first_row + BLOCK_M, S), 0)
    unmasked = seen_by_all // BLOCK_N * BLOCK_N
    for start in range(0, unmasked, BLOCK_N):
        dq = _dq_tile(dq, q, do, lse, delta, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, start, pos, S,
                      scale_log2, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, CAUSAL, DOT_F32, False)
    for start in range(unmasked, seen_by_some, BLOCK_N):
        dq = _dq_tile(dq, q, do, lse, delta, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, start, pos, S,
                      scale_log2, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, CAUSAL, DOT_F32, True)
    dq_ptr += batch * stride_dqb + head * stride_dqh + first64 * stride_dqt
    dq = (dq * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + local[:, None] * stride_dqt + dims[None, :] * stride_dqd, dq, mask=in_q)
