"""A decoding step over a paged cache, token by token: score every key, let the heads vote, attend to the elected keys.

What moves: the score kernel reads each key of a KV head once for all G query heads and writes one float a head and key;
torch votes on those. The attention kernel fetches the elected keys and values through the page table, wherever they lie, once
for all G heads, and no gathered copy is ever written. Scoring moves S keys, which is half of what dense attention would:
that is why a vote that is reused (tutor.attention.methods.token_select.SelectionCache) saves so much.

        table of a text   [ 7 | 2 | 9 ]        key 5 of PAGE = 4 is row 1 of page 2
        pool   page 2  [ key 4 | key 5 | key 6 | key 7 ]   each row: Hkv heads of D
        score   program (keys, text, KV head):  k (BLOCK_D, BLOCK_N) once  x  q (G, D)  ->  scores (G, BLOCK_N)
        attend  program (split, text, KV head): its share of the elected keys, o and lse; splits are merged afterwards
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.partial import Partial, merge
from tutor.attention.selection import need, top_k
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 256


def paged_decode(q: Tensor, k: Tensor, v: Tensor, table: Tensor, lengths: Tensor, *, k_top: int = 192, n_init: int = 4,
                 n_local: int = 60, scale: float | None = None, block_n: int | None = None,
                 splits: int | None = None) -> tuple[Partial, Tensor]:
    """TokenSelect for one query of each head over a paged cache.

    Args:
        q: `(B, Hq, 1, D)`; k, v: pools `(pages, PAGE, Hkv, D)`, `(pages, PAGE, Hkv, Dv)`.
        table: int32 `(B, most pages of a text)`, the pages of each text in order; entries past its length are not read.
        lengths: int32 `(B,)`, keys of each text, the query's own included.
        k_top, n_init, n_local, scale: as in TokenSelect.
        block_n, splits: keys of a tile (a power of two >= 16), programs that share one text and KV head.

    Returns:
        The `Partial`, o in the dtype of q, and the keys read `(B, K)`, ascending, -1 where a text has fewer.
    """
    scores = paged_scores(q, k, table, lengths, scale=scale, block_n=block_n)
    keys = elect(scores, lengths, k_top=k_top, n_init=n_init, n_local=n_local)
    return paged_attend(q, k, v, table, keys, scale=scale, block_n=block_n, splits=splits), keys


def paged_scores(q: Tensor, k: Tensor, table: Tensor, lengths: Tensor, *, scale: float | None = None,
                 block_n: int | None = None) -> Tensor:
    """Scaled dot products with every key of a text, float32 `(B, Hq, S)`, S the longest text; `-inf` past its end."""
    _check(q, k, None, table)
    (b, hq, _, d), (_, page, hkv, _) = q.shape, k.shape
    longest = int(lengths.max()) if len(lengths) else 0
    if lengths.shape != (b,) or longest > table.shape[1] * page or (b and int(lengths.min()) < 0):
        raise ValueError(f"lengths must hold {b} numbers in [0, {table.shape[1] * page}], the rows that table has pages for; "
                         f"got {lengths.tolist()}")
    out = torch.empty(b, hq, longest, device=q.device)
    if out.numel() == 0:
        return out
    block_n, emulated = _tile(block_n), kernels.interpreted()
    strides = (*(q.stride(i) for i in (0, 1, 3)), *k.stride(), *table.stride(), *out.stride())
    _score_kernel[(triton.cdiv(longest, block_n), b * hkv)](
        q, k, table, lengths, out, *strides, hkv, longest, 1 / math.sqrt(d) if scale is None else scale,
        G=hq // hkv, PAGE=page, D=d, BLOCK_G=_padded(hq // hkv), BLOCK_D=_padded(d), BLOCK_N=block_n, DOT_F32=emulated)
    return out


def elect(scores: Tensor, lengths: Tensor, *, k_top: int, n_init: int, n_local: int) -> Tensor:
    """The keys that soft votes give each text `(B, K)`, ascending, -1 for none; ties to the lower index."""
    need(k_top, 1, "k_top", "at least one token is elected")
    need(n_init, 0, "n_init")
    need(n_local, 0, "n_local")
    s, n = scores.shape[2], lengths.to(scores.device).long()[:, None]                     # (B, 1)
    key = torch.arange(s, device=scores.device)
    candidate = (key >= n_init) & (key < n - n_local)                                     # (B, S)
    shares = torch.softmax(scores.masked_fill(~candidate[:, None], float("-inf")), -1)    # NaN in a text without any
    votes = shares.nan_to_num(0.0).sum(1).masked_fill(~candidate, float("-inf"))
    kept = (top_k(votes, k_top) | (key < n_init) | (key >= n - n_local)) & (key < n)        # a short text: all of it
    most = min(n_init + k_top + n_local, s)
    order = torch.where(kept, key, s).sort(-1).values[:, :most]
    return torch.where(order < s, order, -1)


def paged_attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor, keys: Tensor, *, scale: float | None = None,
                 block_n: int | None = None, splits: int | None = None) -> Partial:
    """Attention of one query of each head over the keys `(B, K)` of its text; -1 is no key, and no key may come twice."""
    _check(q, k, v, table)
    (b, hq, _, d), (_, page, hkv, dv), count = q.shape, v.shape, keys.shape[-1]
    if keys.shape != (b, count) or keys.is_floating_point():
        raise ValueError(f"keys must be whole numbers of shape (B, K) = ({b}, K); got {keys.dtype} {tuple(keys.shape)}")
    if keys.numel() and (int(keys.min()) < -1 or int(keys.max()) >= table.shape[1] * page):
        raise ValueError(f"keys must be in [0, {table.shape[1] * page}), the rows that table has pages for, or -1; "
                         f"got {int(keys.min())} to {int(keys.max())}")
    block_n, emulated = _tile(block_n), kernels.interpreted()
    splits = max(1, min(triton.cdiv(count, block_n), 16)) if splits is None else splits
    need(splits, 1, "splits")
    share = triton.cdiv(triton.cdiv(max(count, 1), splits), block_n) * block_n            # keys of one program
    o = torch.empty(splits, b, hq, 1, dv, device=q.device)
    lse = torch.empty(splits, b, hq, 1, device=q.device)
    if o.numel():
        strides = (*(q.stride(i) for i in (0, 1, 3)), *k.stride(), *v.stride(), *table.stride(), *keys.stride(),
                   *(o.stride(i) for i in (0, 1, 2, 4)), *lse.stride()[:3])
        _attend_kernel[(splits, b * hkv)](
            q, k, v, table, keys, o, lse, *strides, hkv, count, share,
            (1 / math.sqrt(d) if scale is None else scale) * math.log2(math.e),
            G=hq // hkv, PAGE=page, D=d, DV=dv, BLOCK_G=_padded(hq // hkv), BLOCK_D=_padded(d), BLOCK_DV=_padded(dv),
            BLOCK_N=block_n, DOT_F32=emulated)
    whole = merge(*(Partial(*pair) for pair in zip(o, lse)))
    return Partial(whole.o.to(q.dtype), whole.lse)


def roofline(b: int, hq: int, hkv: int, s: int, keys: int, d: int, dv: int | None = None, *, vote: bool = True,
             dtype: str = "bfloat16", on: str = "H100 SXM") -> Roofline:
    """Bytes that must move for one step: the elected rows, and for the vote every key and the scores, once out, once in."""
    dv, size = dv or d, BYTES[dtype]
    moved = b * hkv * keys * (d + dv) * size + b * hq * (d + dv) * size
    flops = 2 * b * hq * keys * (d + dv)
    if vote:
        moved += b * hkv * s * d * size + 2 * b * hq * s * 4
        flops += 2 * b * hq * s * d
    return Roofline(moved, flops, hardware(on), dtype)


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _tile(block_n: int | None) -> int:
    block_n = block_n or (32 if kernels.interpreted() else 128)
    if block_n < 16 or block_n & (block_n - 1):
        raise ValueError(f"block_n must be a power of two >= 16 (tl.dot's smallest side); got {block_n}")
    return block_n


def _check(q: Tensor, k: Tensor, v: Tensor | None, table: Tensor) -> None:
    if q.ndim != 4 or q.shape[2] != 1:
        raise ValueError(f"q must be (B, Hq, 1, D), one query a head; got {tuple(q.shape)}")
    for name, pool in (("k", k), ("v", v)):
        if pool is None:
            continue
        if pool.ndim != 4 or pool.shape[:3] != k.shape[:3]:
            raise ValueError(f"{name} must be a pool (pages, PAGE, Hkv, width), k and v alike; got {tuple(pool.shape)}")
        if pool.dtype != q.dtype or q.dtype not in DTYPES:
            raise ValueError(f"q and {name} must share one dtype of float32, float16, bfloat16; got {q.dtype}, {pool.dtype}")
        if pool.shape[3] > WIDEST:
            raise ValueError(f"head widths up to {WIDEST} fit a tile; {name} has {pool.shape[3]}")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k differ in head width: {q.shape[3]} and {k.shape[3]}")
    if k.shape[2] == 0 or q.shape[1] % k.shape[2]:
        raise ValueError(f"Hq must be a multiple of Hkv; got {q.shape[1]} query heads and {k.shape[2]} KV heads")
    if table.ndim != 2 or table.shape[0] != q.shape[0] or table.is_floating_point():
        raise ValueError(f"table must be whole numbers (B, pages of a text) with B = {q.shape[0]}; "
                         f"got {table.dtype} {tuple(table.shape)}")


@triton.jit
def _rows(table_ptr, keys, inside, stride_tp, stride_kp, stride_kt, PAGE: tl.constexpr):
    """Where keys of one text lie in a pool, int64: a pool may hold more than 2^31 numbers."""
    page = tl.load(table_ptr + (keys // PAGE) * stride_tp, mask=inside, other=0).to(tl.int64)
    return page * stride_kp + (keys % PAGE).to(tl.int64) * stride_kt


@triton.jit
def _score_kernel(q_ptr, k_ptr, table_ptr, length_ptr, out_ptr, stride_qb, stride_qh, stride_qd,
                  stride_kp, stride_kt, stride_kh, stride_kd, stride_tb, stride_tp, stride_ob, stride_oh, stride_os,
                  Hkv, S, scale, G: tl.constexpr, PAGE: tl.constexpr, D: tl.constexpr, BLOCK_G: tl.constexpr,
                  BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, DOT_F32: tl.constexpr):
    """One program: BLOCK_N keys of one KV head of one text, for its G query heads."""
    batch, kv = (tl.program_id(1) // Hkv).to(tl.int64), (tl.program_id(1) % Hkv).to(tl.int64)
    keys = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims, group = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_G)
    inside = keys < tl.load(length_ptr + batch)
    row = _rows(table_ptr + batch * stride_tb, keys, inside, stride_tp, stride_kp, stride_kt, PAGE) + kv * stride_kh
    k = tl.load(k_ptr + row[None, :] + dims[:, None] * stride_kd, mask=inside[None, :] & (dims[:, None] < D), other=0.0)
    heads = kv * G + group                                                # grouped queries: consecutive heads share a key
    q = tl.load(q_ptr + batch * stride_qb + heads[:, None] * stride_qh + dims[None, :] * stride_qd,
                mask=(group[:, None] < G) & (dims[None, :] < D), other=0.0)                         # (BLOCK_G, BLOCK_D)
    if DOT_F32:
        s = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee") * scale
    else:
        s = tl.dot(q, k, input_precision="ieee") * scale
    s = tl.where(inside[None, :], s, float("-inf"))
    tl.store(out_ptr + batch * stride_ob + heads[:, None] * stride_oh + keys[None, :] * stride_os, s,
             mask=(group[:, None] < G) & (keys[None, :] < S))


@triton.jit
def _attend_kernel(q_ptr, k_ptr, v_ptr, table_ptr, keys_ptr, o_ptr, lse_ptr, stride_qb, stride_qh, stride_qd,
                   stride_kp, stride_kt, stride_kh, stride_kd, stride_vp, stride_vt, stride_vh, stride_vd,
                   stride_tb, stride_tp, stride_jb, stride_jk, stride_os, stride_ob, stride_oh, stride_od,
                   stride_ls, stride_lb, stride_lh, Hkv, K, SHARE, scale_log2,
                   G: tl.constexpr, PAGE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_G: tl.constexpr,
                   BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_N: tl.constexpr, DOT_F32: tl.constexpr):
    """One program: SHARE of the elected keys of one text, one KV head, its G query heads."""
    split = tl.program_id(0)
    batch, kv = (tl.program_id(1) // Hkv).to(tl.int64), (tl.program_id(1) % Hkv).to(tl.int64)
    dims, dims_v, group = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_G)
    heads = kv * G + group
    q = tl.load(q_ptr + batch * stride_qb + heads[:, None] * stride_qh + dims[None, :] * stride_qd,
                mask=(group[:, None] < G) & (dims[None, :] < D), other=0.0)                         # (BLOCK_G, BLOCK_D)
    acc = tl.zeros([BLOCK_G, BLOCK_DV], tl.float32)
    m = tl.full([BLOCK_G], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_G], tl.float32)
    for start in range(split * SHARE, tl.minimum((split + 1) * SHARE, K), BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        keys = tl.load(keys_ptr + batch * stride_jb + at * stride_jk, mask=at < K, other=-1)
        there = keys >= 0
        row_k = _rows(table_ptr + batch * stride_tb, keys, there, stride_tp, stride_kp, stride_kt, PAGE) + kv * stride_kh
        row_v = _rows(table_ptr + batch * stride_tb, keys, there, stride_tp, stride_vp, stride_vt, PAGE) + kv * stride_vh
        k = tl.load(k_ptr + row_k[None, :] + dims[:, None] * stride_kd,
                    mask=there[None, :] & (dims[:, None] < D), other=0.0)                           # (BLOCK_D, BLOCK_N)
        v = tl.load(v_ptr + row_v[:, None] + dims_v[None, :] * stride_vd,
                    mask=there[:, None] & (dims_v[None, :] < DV), other=0.0)                        # (BLOCK_N, BLOCK_DV)
        if DOT_F32:
            s = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee") * scale_log2
        else:
            s = tl.dot(q, k, input_precision="ieee") * scale_log2
        s = tl.where(there[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)             # nothing has been seen yet
        p = tl.exp2(s - m_safe[:, None])
        shrink = tl.exp2(m - m_safe)
        l = l * shrink + tl.sum(p, 1)
        p = p.to(v.dtype)
        if DOT_F32:
            acc = acc * shrink[:, None] + tl.dot(p.to(tl.float32), v.to(tl.float32), input_precision="ieee")
        else:
            acc = acc * shrink[:, None] + tl.dot(p, v, input_precision="ieee")
        m = m_new
    empty = l == 0.0
    o = acc / tl.where(empty, 1.0, l)[:, None]
    lse = tl.where(empty, float("-inf"), (m + tl.log2(tl.where(empty, 1.0, l))) * 0.6931471805599453)   # ln 2
    tl.store(o_ptr + split * stride_os + batch * stride_ob + heads[:, None] * stride_oh + dims_v[None, :] * stride_od, o,
             mask=(group[:, None] < G) & (dims_v[None, :] < DV))
    tl.store(lse_ptr + split * stride_ls + batch * stride_lb + heads * stride_lh, lse, mask=group < G)
