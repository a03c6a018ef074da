"""Centroid look-up of Squeezed Attention: score all centroids, norm the scores, keep those above a threshold.

What moves: each program loads one block of queries once and streams the centroids and cluster sizes of its KV head
twice: first for the log-sum-exp of each row, in which a cluster of N keys weighs N times, then for the decision. The
scores themselves are never written: out goes one bit a centroid and query (a byte, in torch), or, where the tokens of a
question ask together, one sum a centroid and block of queries. Centroids are few, and stay in the cache for the second
pass; computing a score again is cheaper than writing and reading it.

        centroids ->  0      1      2          per program: q (BLOCK_M, D) stays
        queries  0 [ s·N ][ s·N ][ s·N ]       pass 1: m, l online over tiles of s + log N
                 0 [ bit ][ bit ][ bit ]       pass 2: s - lse > log T; or the column sums of exp(s - lse)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.dense import check_qkv
from tutor.attention.selection import need
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 256


@dataclass(frozen=True, eq=False)
class Kept:
    """What the kernel answers.

    Attributes:
        kept: bool `(B, Hq, T, C)`, clusters to read; `(B, Hq, 1, C)` when the rows asked together.
        lse: float32 `(B, Hq, T)`, log of each row's denominator; `-inf` when all clusters are empty.
        share: float32 `(B, Hq, 1, C)`, mean e of each cluster when the rows asked together; else None.
    """

    kept: Tensor
    lse: Tensor
    share: Tensor | None = None


def centroid_select(q: Tensor, centroids: Tensor, counts: Tensor, threshold: float, *, together: bool = False,
                    scale: float | None = None, block_m: int | None = None, block_n: int | None = None) -> Kept:
    """The same as `tutor.attention.methods.squeezed.lookup` on one level, for queries that follow the prefix.

    Args:
        q, centroids: `(B, Hq, T, D)`, `(B, Hkv, C, D)`; D up to 256; any strides; one dtype.
        counts: whole numbers `(B, Hkv, C)`, keys of each cluster; an empty one is never kept.
        threshold: a cluster is kept when e > threshold; at 0, every cluster that has a key.
        together: average e over the T rows first, and decide once for all of them.
        block_m, block_n: queries and centroids of a tile, powers of two >= 16.
    """
    check_qkv(q, centroids)
    if q.dtype != centroids.dtype or q.dtype not in DTYPES:
        raise ValueError(f"q and centroids must share one dtype of float32, float16, bfloat16; got {q.dtype}, {centroids.dtype}")
    if counts.shape != centroids.shape[:3] or counts.is_floating_point() or counts.dtype == torch.bool:
        raise ValueError(f"counts must be whole numbers of shape (B, Hkv, C) = {tuple(centroids.shape[:3])}; "
                         f"got {counts.dtype} of shape {tuple(counts.shape)}")
    if not q.device == centroids.device == counts.device:
        raise ValueError(f"q, centroids and counts must be on one device; got {q.device}, {centroids.device}, {counts.device}")
    if q.shape[3] > WIDEST:
        raise ValueError(f"head widths up to {WIDEST} fit a tile; got D={q.shape[3]}")
    need(threshold, 0, "threshold")
    emulated = kernels.interpreted()
    block_m, block_n = block_m or (16 if emulated or q.shape[2] <= 16 else 64), block_n or (32 if emulated else 64)
    for name, block in (("block_m", block_m), ("block_n", block_n)):
        if block < 16 or block & (block - 1):
            raise ValueError(f"{name} must be a power of two >= 16 (tl.dot's smallest side); got {block}")

    (b, hq, t, d), (hkv, c) = q.shape, centroids.shape[1:3]
    blocks = triton.cdiv(t, block_m)
    lse = torch.empty(b, hq, t, device=q.device)
    if together:
        out = torch.empty(b, hq, blocks, c, device=q.device)              # sums over the rows of each block
    else:
        out = torch.empty(b, hq, t, c, dtype=torch.int8, device=q.device)
    if q.shape[2] and b * hq:
        scale_log2 = (1 / math.sqrt(d) if scale is None else scale) * math.log2(math.e)
        log2_t = math.log2(threshold) if threshold > 0 else float("-inf")
        _centroid_kernel[(blocks, b * hq)](
            q, centroids, counts, out, lse, *q.stride(), *centroids.stride(), *counts.stride(), *out.stride(), *lse.stride(),
            hq, t, c, scale_log2, log2_t, G=hq // hkv, D=d, BLOCK_M=block_m, BLOCK_N=block_n,
            BLOCK_D=max(16, triton.next_power_of_2(d)), TOGETHER=together, DOT_F32=emulated, num_stages=2)
    if not together:
        return Kept(out.bool(), lse)
    share = out.sum(2, keepdim=True) / max(t, 1)                          # in a fixed order: no atomics, no surprises
    some = (counts > 0).repeat_interleave(hq // hkv, 1)[:, :, None]
    return Kept(some if threshold <= 0 else share > threshold, lse, share)


def roofline(b: int, hq: int, hkv: int, t: int, c: int, d: int, *, together: bool = False, dtype: str = "bfloat16",
             on: str = "H100 SXM") -> Roofline:
    """Bytes that must move (each tensor once; a byte per decision or 4 per mean share) and the products, once."""
    read = b * (hq * t * d + hkv * c * d) * BYTES[dtype] + b * hkv * c * 8                # counts are int64
    written = b * hq * ((4 * c if together else t * c) + 4 * t)
    return Roofline(read + written, 2 * b * hq * t * c * d, hardware(on), dtype)


@triton.jit
def _tile(q, c_ptr, n_ptr, stride_cs, stride_cd, stride_ns, start, C, scale_log2, D: tl.constexpr, BLOCK_D: tl.constexpr,
          BLOCK_N: tl.constexpr, DOT_F32: tl.constexpr):
    """Scores (BLOCK_M, BLOCK_N) of one tile of centroids in powers of two, and the sizes (BLOCK_N,) of their clusters."""
    dims, at = tl.arange(0, BLOCK_D), start + tl.arange(0, BLOCK_N)
    inside = at < C
    c = tl.load(c_ptr + at.to(tl.int64)[None, :] * stride_cs + dims[:, None] * stride_cd,
                mask=inside[None, :] & (dims[:, None] < D), other=0.0)                              # (BLOCK_D, BLOCK_N)
    n = tl.load(n_ptr + at * stride_ns, mask=inside, other=0).to(tl.float32)
    if DOT_F32:
        s = tl.dot(q.to(tl.float32), c.to(tl.float32), input_precision="ieee") * scale_log2
    else:
        s = tl.dot(q, c, input_precision="ieee") * scale_log2
    return s, n


@triton.jit
def _centroid_kernel(q_ptr, c_ptr, n_ptr, out_ptr, lse_ptr, stride_qb, stride_qh, stride_qt, stride_qd,
                     stride_cb, stride_ch, stride_cs, stride_cd, stride_nb, stride_nh, stride_ns,
                     stride_ob, stride_oh, stride_ot, stride_oc, stride_lb, stride_lh, stride_lt, Hq, T, C, scale_log2, log2_t,
                     G: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                     TOGETHER: tl.constexpr, DOT_F32: tl.constexpr):
    """One program: BLOCK_M query rows of one head against all centroids of its KV head, twice."""
    block = tl.program_id(0)
    batch, head = (tl.program_id(1) // Hq).to(tl.int64), (tl.program_id(1) % Hq).to(tl.int64)
    q_ptr += batch * stride_qb + head * stride_qh
    c_ptr += batch * stride_cb + (head // G) * stride_ch
    n_ptr += batch * stride_nb + (head // G) * stride_nh
    out_ptr += batch * stride_ob + head * stride_oh
    lse_ptr += batch * stride_lb + head * stride_lh
    rows, dims = block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    q = tl.load(q_ptr + rows.to(tl.int64)[:, None] * stride_qt + dims[None, :] * stride_qd,
                mask=(rows[:, None] < T) & (dims[None, :] < D), other=0.0)                          # (BLOCK_M, BLOCK_D)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, C, BLOCK_N):
        s, n = _tile(q, c_ptr, n_ptr, stride_cs, stride_cd, stride_ns, start, C, scale_log2, D, BLOCK_D, BLOCK_N, DOT_F32)
        s = tl.where(n[None, :] > 0, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)             # all clusters so far are empty
        l = l * tl.exp2(m - m_safe) + tl.sum(tl.exp2(s - m_safe[:, None]) * n[None, :], 1)
        m = m_new
    empty = l == 0.0
    lse = tl.where(empty, float("-inf"), m + tl.log2(tl.where(empty, 1.0, l)))                      # in powers of two
    tl.store(lse_ptr + rows * stride_lt, lse * 0.6931471805599453, mask=rows < T)                   # ln 2

    for start in range(0, C, BLOCK_N):
        s, n = _tile(q, c_ptr, n_ptr, stride_cs, stride_cd, stride_ns, start, C, scale_log2, D, BLOCK_D, BLOCK_N, DOT_F32)
        s = s - tl.where(empty, 0.0, lse)[:, None]                        # log2 e
        at = start + tl.arange(0, BLOCK_N)
        if TOGETHER:
            e = tl.where((n[None, :] > 0) & (rows[:, None] < T), tl.exp2(s), 0.0)
            tl.store(out_ptr + block.to(tl.int64) * stride_ot + at * stride_oc, tl.sum(e, 0), mask=at < C)
        else:
            keep = (n[None, :] > 0) & (s > log2_t)
            tl.store(out_ptr + rows.to(tl.int64)[:, None] * stride_ot + at[None, :] * stride_oc, keep.to(tl.int8),
                     mask=(rows[:, None] < T) & (at[None, :] < C))
