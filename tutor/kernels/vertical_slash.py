"""Vertical-slash attention: the tiles along a head's diagonals, then its columns gathered one key at a time.

What moves: each program loads one block of queries once, then the key and value tiles that its list names, which begin
anywhere and not on a grid; then single keys by their numbers, a tile's worth at a time. Lists come from
`tutor.attention.methods.vertical_slash.plan`; no key is in both, so one running softmax joins them. Work follows the lists'
lengths: a head with few lines ends early.

            keys ->  c  c       [tile]   [tile][diag]      phase 1: starts[0 .. count): whole tiles, contiguous rows
        query block  .  .       [tile]   [tile][diag]      phase 2: columns[0 .. more): rows c gathered, outside the tiles
                     both masked by key <= position        out: o (tile, Dv), lse (tile,)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.dense import check_qkv
from tutor.attention.methods.vertical_slash import Plan, VerticalSlash
from tutor.attention.partial import Partial
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from tutor.kernels.flash import DTYPES, WIDEST, _padded, _tile  # noqa: E402


def vertical_slash_attention(q: Tensor, k: Tensor, v: Tensor, *, k_v: int = 64, k_s: int = 128, tile: int = 64,
                             last_q: int = 64, sinks: int = 4, near: int = 32, todo: Plan | None = None,
                             scale: float | None = None, check: bool = False) -> Partial:
    """Causal attention over the keys that `VerticalSlash` reads.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; D and Dv up to 256; any strides.
        k_v, k_s, tile, last_q, sinks, near: as `VerticalSlash` has them; tile is a power of two >= 16.
        todo: a plan made before; the budgets above are then not used.
        check: refuse NaN and infinities (one more pass over the inputs).

    Returns:
        `Partial` with o in the dtype of q and lse in float32.
    """
    check_qkv(q, k, v, check=check)
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        raise ValueError(f"q, k and v must share one dtype of float32, float16, bfloat16; got {q.dtype}, {k.dtype}, {v.dtype}")
    if max(q.shape[3], v.shape[3]) > WIDEST:
        raise ValueError(f"head widths up to {WIDEST} fit a tile; got D={q.shape[3]}, Dv={v.shape[3]}")
    tile = tile if todo is None else todo.tile
    if tile < 16 or tile & (tile - 1):
        raise ValueError(f"tile must be a power of two >= 16 (tl.dot's smallest side); got {tile}")
    (b, hq, t, d), (hkv, s), dv = q.shape, k.shape[1:3], v.shape[3]
    o, lse = torch.empty(b, hq, t, dv, dtype=q.dtype, device=q.device), torch.empty(b, hq, t, device=q.device)
    if o.numel() == 0:
        return Partial(o, lse)
    if s == 0:
        return Partial(o.zero_(), lse.fill_(float("-inf")))
    if todo is None:
        todo = VerticalSlash(k_v, k_s, tile, last_q, sinks, near).plan(q.cpu(), k.cpu())       # the index is built in torch
    if todo.starts.shape[:3] != (b, hq, triton.cdiv(t, tile)):
        raise ValueError(f"the plan was made for {tuple(todo.starts.shape[:3])} (B, Hq, query blocks); "
                         f"q has {(b, hq, triton.cdiv(t, tile))}")
    lists = [x.to(q.device).contiguous() for x in (todo.starts, todo.columns)]
    counts = [(x >= 0).sum(-1, dtype=torch.int32) for x in lists]                               # (B, Hq, nQ) contiguous
    strides = (stride for x in (q, k, v, o, lse) for stride in x.stride())
    _vertical_slash_kernel[(triton.cdiv(t, tile), b * hq)](
        q, k, v, o, lse, *lists, *counts, *strides, *(x.shape[3] for x in lists), hq, t, s,
        (1 / math.sqrt(d) if scale is None else scale) * math.log2(math.e), G=hq // hkv, D=d, DV=dv, BLOCK_D=_padded(d),
        BLOCK_DV=_padded(dv), BLOCK=tile, DOT_F32=kernels.interpreted())
    return Partial(o, lse)


def roofline(todo: Plan, hkv: int, t: int, s: int, d: int, dv: int | None = None, *, dtype: str = "bfloat16",
             on: str = "H100 SXM", cached: bool = True) -> Roofline:
    """Two products for every tile and every chunk of columns; q, o and the lists once, k and v once.

    `cached=False` counts each gathered key and value row as often as a program asks for it: what moves when no cache helps.
    """
    b, hq = todo.starts.shape[:2]
    dv, rows = dv or d, todo.tile * int((todo.starts >= 0).sum()) + int((todo.columns >= 0).sum())
    lists = 4 * (todo.starts.numel() + todo.columns.numel() + 2 * math.prod(todo.starts.shape[:3]))
    moved = (b * hq * t + (b * hkv * s if cached else rows)) * (d + dv) * BYTES[dtype] + b * hq * t * 4 + lists
    return Roofline(moved, 2 * int(todo.tiles().sum()) * todo.tile**2 * (d + dv), hardware(on), dtype)


@triton.jit
def _gathered(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, keys, there, pos, scale_log2,
              D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, DOT_F32: tl.constexpr):
    """Join single keys (BLOCK,), of which those `there` exist, with the running state."""
    dims, dims_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    k = tl.load(k_ptr + keys[None, :] * stride_ks + dims[:, None] * stride_kd,
                mask=there[None, :] & (dims[:, None] < D), other=0.0)                               # (BLOCK_D, BLOCK)
    v = tl.load(v_ptr + keys[:, None] * stride_vs + dims_v[None, :] * stride_vd,
                mask=there[:, None] & (dims_v[None, :] < DV), other=0.0)                            # (BLOCK, BLOCK_DV)
    if DOT_F32:
        s = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee") * scale_log2         # (BLOCK, BLOCK)
    else:
        s = tl.dot(q, k, input_precision="ieee") * scale_log2
    s = tl.where(there[None, :] & (keys[None, :] <= pos[:, None]), s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)                 # a row that has seen nothing yet
    p = tl.exp2(s - m_safe[:, None])
    shrink = tl.exp2(m - m_safe)
    l = l * shrink + tl.sum(p, 1)
    p = p.to(v.dtype)
    if DOT_F32:
        acc = acc * shrink[:, None] + tl.dot(p.to(tl.float32), v.to(tl.float32), input_precision="ieee")
    else:
        acc = acc * shrink[:, None] + tl.dot(p, v, input_precision="ieee")
    return acc, m_new, l


@triton.jit
def _vertical_slash_kernel(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, starts_ptr, columns_ptr, n_starts_ptr, n_columns_ptr,
                           stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
                           stride_vb, stride_vh, stride_vs, stride_vd, stride_ob, stride_oh, stride_ot, stride_od,
                           stride_lb, stride_lh, stride_lt, N_STARTS, N_COLUMNS, Hq, T, S, scale_log2,
                           G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr,
                           BLOCK_DV: tl.constexpr, BLOCK: tl.constexpr, DOT_F32: tl.constexpr):
    """One program: BLOCK query rows of one head and its two lists."""
    batch, head = (tl.program_id(1) // Hq).to(tl.int64), (tl.program_id(1) % Hq).to(tl.int64)
    q_ptr += batch * stride_qb + head * stride_qh
    k_ptr += batch * stride_kb + (head // G) * stride_kh
    v_ptr += batch * stride_vb + (head // G) * stride_vh
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dims, dims_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    pos = S - T + rows                                                    # (BLOCK,) may be negative
    q = tl.load(q_ptr + rows[:, None] * stride_qt + dims[None, :] * stride_qd,
                mask=(rows[:, None] < T) & (dims[None, :] < D), other=0.0)
    acc = tl.zeros([BLOCK, BLOCK_DV], tl.float32)
    m = tl.full([BLOCK], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK], tl.float32)

    block = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)                   # which pair of lists
    for i in range(0, tl.load(n_starts_ptr + block)):
        start = tl.load(starts_ptr + block * N_STARTS + i).to(tl.int64)
        acc, m, l = _tile(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, start, pos, S,
                          scale_log2, D, DV, BLOCK_D, BLOCK_DV, BLOCK, True, DOT_F32, True)
    more = tl.load(n_columns_ptr + block)
    for i in range(0, more, BLOCK):
        at = i + tl.arange(0, BLOCK)
        keys = tl.load(columns_ptr + block * N_COLUMNS + at, mask=at < more, other=0).to(tl.int64)
        acc, m, l = _gathered(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, keys, at < more, pos,
                              scale_log2, D, DV, BLOCK_D, BLOCK_DV, DOT_F32)

    empty = l == 0.0
    o = acc / tl.where(empty, 1.0, l)[:, None]
    lse = tl.where(empty, float("-inf"), (m + tl.log2(tl.where(empty, 1.0, l))) * 0.6931471805599453)   # ln 2
    o_ptr += batch * stride_ob + head * stride_oh
    lse_ptr += batch * stride_lb + head * stride_lh
    tl.store(o_ptr + rows[:, None] * stride_ot + dims_v[None, :] * stride_od, o.to(o_ptr.dtype.element_ty),
             mask=(rows[:, None] < T) & (dims_v[None, :] < DV))
    tl.store(lse_ptr + rows * stride_lt, lse, mask=rows < T)
