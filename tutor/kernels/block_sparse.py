"""Block-sparse flash attention, forward: each query block reads the key blocks on its list, and no other.

What moves: a program loads one block of queries and its list (one number per tile), streams the listed blocks of keys and
values, and writes its outputs and log-sum-exps once. Traffic and work follow the number of tiles listed; the tile body is
that of the flash kernel. The sides of a tile are those of the selection's blocks.

        key blocks ->  0  1  2  3  4        indptr   0        2           5        per head and query block
        query block 0  x  .  #              indices  0  2     0  3  4
                    1  x  .  .  x  #        cut         1           4
                       x seen whole: no mask; # cut by the diagonal or the end of the keys: masked, last in the list
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.dense import check_qkv
from tutor.attention.methods.block_sparse_flash import BlockSparseFlash, Lists, block_lists
from tutor.attention.partial import Partial
from tutor.attention.selection import Selection
from tutor.kernels.flash import _padded, _tile, _write, check_kernel
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, blocks: Selection, *, scale: float | None = None,
                           lists: Lists | None = None) -> Partial:
    """Exact attention over the listed tiles; the same as `BlockSparseFlash.attend`, with float32 sums.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; D and Dv up to 256; any strides.
        blocks: a selection of kind "block" whose sides are powers of two >= 16, with the usual positions S - T + t.
        lists: `block_lists(blocks)` on the device of q, where the same selection is used many times.
    """
    check_qkv(q, k, v)
    if blocks.kind == "block":
        check_kernel(q, k, v, bq=blocks.bq, bk=blocks.bk)
        BlockSparseFlash(blocks.bq, blocks.bk).selection(q, k, v, blocks)                   # made for these shapes
    (b, hq, t, d), (hkv, s), dv = q.shape, k.shape[1:3], v.shape[3]
    lists = block_lists(blocks) if lists is None else lists
    if not torch.equal(blocks.pos.cpu(), torch.arange(s - t, s)):
        raise ValueError("the kernel needs query rows at positions S - T + t; this selection has others. "
                         "Use tutor.attention.methods.block_sparse_flash")
    indptr, cut, indices = (x.to(q.device) for x in lists)
    o, lse = torch.empty(b, hq, t, dv, dtype=q.dtype, device=q.device), torch.empty(b, hq, t, device=q.device)
    if o.numel() == 0:
        return Partial(o, lse)
    scale_log2, emulated = (1 / math.sqrt(d) if scale is None else scale) * math.log2(math.e), kernels.interpreted()
    options = {"G": hq // hkv, "D": d, "DV": dv, "BLOCK_D": _padded(d), "BLOCK_DV": _padded(dv), "CAUSAL": blocks.causal,
               "DOT_F32": emulated, "BLOCK_M": blocks.bq, "BLOCK_N": blocks.bk}
    kernel, grid = _sparse_kernel, (triton.cdiv(t, blocks.bq), b * hq)
    if emulated:
        options |= {"SIZE": 0}
    else:
        kernel, options = _tuned(), options | {"SIZE": min(triton.next_power_of_2(t), 4096)}
    strides = (stride for x in (q, k, v, o, lse) for stride in x.stride())
    kernel[grid](q, k, v, o, lse, indptr, cut, indices, *strides, hq, t, s, scale_log2, **options)
    return Partial(o, lse)


_TUNED: list = []


def _tuned():
    """The kernel with warps and stages chosen by measuring: the tiles are given; GPU only."""
    if not _TUNED:
        configs = [triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in ((4, 3), (8, 3), (4, 2), (4, 1))]
        _TUNED.append(triton.autotune(configs, key=["D", "DV", "CAUSAL", "SIZE", "BLOCK_M", "BLOCK_N"])(_sparse_kernel))
    return _TUNED[0]


def roofline(sel: Selection, hkv: int, d: int, dv: int | None = None, *, dtype: str = "bfloat16",
             on: str = "H100 SXM") -> Roofline:
    """Bytes that must move (each tensor once, and the lists) and operations: two products over the listed, allowed pairs."""
    dv, (b, hq, t, s) = dv or d, sel.shape
    tensors = b * (hq * t + hkv * s) * (d + dv) * BYTES[dtype] + b * hq * t * 4                       # lse is float32
    lists = 4 * int(sel.blocks.sum()) + 16 * b * hq * sel.blocks.shape[2]
    return Roofline(tensors + lists, 2 * _allowed_pairs(sel) * (d + dv), hardware(on), dtype)


def _allowed_pairs(sel: Selection) -> int:
    """Pairs of the listed tiles that the causal mask allows, without building the mask."""
    t, s = sel.shape[2:]
    first = torch.arange(sel.blocks.shape[3]) * sel.bk
    ends = torch.minimum(sel.pos[:, None] + 1, torch.tensor(s)) if sel.causal else torch.full((t, 1), s)
    seen = (torch.minimum(ends, (first + sel.bk).clamp(max=s)) - first).clamp(min=0)                  # (T, Tc)
    per_tile = torch.zeros(sel.blocks.shape[2:], dtype=torch.long).index_add(0, torch.arange(t) // sel.bq, seen)
    return int((sel.blocks.cpu() * per_tile).sum())


@triton.jit
def _sparse_kernel(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, indptr_ptr, cut_ptr, indices_ptr,
                   stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
                   stride_vb, stride_vh, stride_vs, stride_vd, stride_ob, stride_oh, stride_ot, stride_od,
                   stride_lb, stride_lh, stride_lt, Hq, T, S, scale_log2,
                   G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, CAUSAL: tl.constexpr, DOT_F32: tl.constexpr,
                   SIZE: tl.constexpr):
    """One program: one query block of one head. SIZE only tells the tuner which lengths are alike."""
    first_row = tl.program_id(0) * BLOCK_M
    batch, head = (tl.program_id(1) // Hq).to(tl.int64), (tl.program_id(1) % Hq).to(tl.int64)
    q_ptr += batch * stride_qb + head * stride_qh + tl.cast(first_row, tl.int64) * stride_qt
    k_ptr += batch * stride_kb + (head // G) * stride_kh
    v_ptr += batch * stride_vb + (head // G) * stride_vh
    rows = first_row + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    pos = S - T + rows
    q = tl.load(q_ptr + tl.arange(0, BLOCK_M)[:, None] * stride_qt + dims[None, :] * stride_qd,
                mask=(rows[:, None] < T) & (dims[None, :] < D), other=0.0)                          # (BLOCK_M, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)

    mine = (batch * Hq + head) * tl.cdiv(T, BLOCK_M) + tl.program_id(0)
    begin, cut, end = tl.load(indptr_ptr + mine), tl.load(cut_ptr + mine), tl.load(indptr_ptr + mine + 1)
    for at in range(begin, cut):
        start = tl.load(indices_ptr + at) * BLOCK_N
        acc, m, l = _tile(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, start, pos, S,
                          scale_log2, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, CAUSAL, DOT_F32, False)
    for at in range(cut, end):
        start = tl.load(indices_ptr + at) * BLOCK_N
        acc, m, l = _tile(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, start, pos, S,
                          scale_log2, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, CAUSAL, DOT_F32, True)

    o_ptr += batch * stride_ob + head * stride_oh + tl.cast(first_row, tl.int64) * stride_ot
    lse_ptr += batch * stride_lb + head * stride_lh
    _write(acc, m, l, o_ptr, lse_ptr, stride_ot, stride_od, stride_lt, first_row, T, DV, BLOCK_DV, BLOCK_M)
