"""Flash-Decoding: one query row a head, its keys cut in splits that run side by side, joined by a second kernel.

What moves: each program reads one split of one KV head's keys and values once, for all query heads of the group together,
and writes a partial (o, log-sum-exp) to scratch. The second kernel reads the partials of an output and writes its rows.
Keys and values are nearly all of the traffic, and they are read once: decoding is as fast as memory is.

        keys of one KV head ->  |  split 0  |  split 1  |  split 2  |       program (split, request and KV head):
        query heads 0 .. G-1    |  o, lse   |  o, lse   |  o, lse   |       q (G T, D) stays, tiles of keys pass by
                                      \\          |          /              then one program an output:
                                       merge by log-sum-exp -> o, lse       o = sum 2^(lse_i - lse) o_i

The rows of a program are the G query heads of one KV head times the T query rows, padded to the 16 that tl.dot wants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.dense import check_qkv
from tutor.attention.methods.lean import check_lengths
from tutor.attention.methods.split_k import best_splits
from tutor.attention.partial import Partial
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST, MOST_ROWS = 256, 128


def split_decode(q: Tensor, k: Tensor, v: Tensor, *, lengths: Sequence[int] | Tensor | None = None, causal: bool = True,
                 scale: float | None = None, splits: int = 0, tile: int | None = None, workers: int | None = None,
                 check: bool = False) -> Partial:
    """Exact attention of a few query rows; the same as `tutor.attention.methods.split_k.SplitK.attend`.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; (Hq / Hkv) T up to 128 rows; any strides.
        lengths: keys of each request; what lies behind is never read. A CUDA tensor is not checked (that would wait).
        splits: of every context; 0: chosen by `best_splits` for `workers` workers.
        tile: keys of a tile, a power of two >= 16.
        workers: programs that run at the same time; the multiprocessors of the GPU unless given.

    Returns:
        `Partial` with o in the dtype of q and lse in float32.
    """
    check_decode(q, k, v, tile, check)
    (b, hq, t, d), (hkv, s), dv = q.shape, k.shape[1:3], v.shape[3]
    lengths, tile = lengths_of(k, lengths), tile or default_tile(q, v)
    o, lse = torch.empty(b, hq, t, dv, dtype=q.dtype, device=q.device), torch.empty(b, hq, t, device=q.device)
    if o.numel() == 0:
        return Partial(o, lse)
    rows, outputs = hq // hkv * t, b * hkv
    if splits < 0:
        raise ValueError(f"splits must be >= 0 (0: chosen for the device); got {splits}")
    splits = splits or best_splits(outputs, math.ceil(s / tile), workers or workers_of(q))
    part_o = torch.empty(outputs, splits, rows, dv, device=q.device)                   # float32
    part_lse = torch.empty(outputs, splits, rows, device=q.device)
    sizes = {"R": rows, "T": t, "G": hq // hkv, "DV": dv, "BLOCK_M": padded(rows), "BLOCK_DV": padded(dv)}
    launch = {"num_warps": 4, "num_stages": 2 if padded(d) * q.element_size() <= 256 else 1}
    _split_kernel[(splits, outputs)](
        q, k, v, part_o, part_lse, lengths, *q.stride(), *k.stride(), *v.stride(), hkv, splits, scale_log2(scale, d),
        D=d, BLOCK_D=padded(d), BLOCK_N=tile, CAUSAL=causal, DOT_F32=kernels.interpreted(), **sizes, **launch)
    _join_kernel[(outputs,)](part_o, part_lse, o, lse, *o.stride(), *lse.stride(), hkv, splits, **sizes)
    return Partial(o, lse)


def roofline(b: int, hq: int, hkv: int, s: int, d: int, dv: int | None = None, *, t: int = 1,
             lengths: Sequence[int] | None = None, partials: int = 0, dtype: str = "bfloat16",
             on: str = "H100 SXM") -> Roofline:
    """Keys and values once, queries and outputs once, `partials` stored partials (all rows of an output) out and in again."""
    dv, rows = dv or d, hq // hkv * t
    keys = hkv * (b * s if lengths is None else sum(lengths))
    moved = (keys * (d + dv) + b * hq * t * (d + dv)) * BYTES[dtype] + b * hq * t * 4 + 2 * partials * rows * (dv + 1) * 4
    return Roofline(moved, 2 * rows * keys * (d + dv), hardware(on), dtype)


# ------------------------------------------------------------------------------------- what both decode kernels share
def check_decode(q: Tensor, k: Tensor, v: Tensor, tile: int | None, check: bool) -> None:
    check_qkv(q, k, v, check=check)
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        raise ValueError(f"q, k and v must share one dtype of float32, float16, bfloat16; got {q.dtype}, {k.dtype}, "
                         f"{v.dtype}. The float64 truth is tutor.attention.dense.attend")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device; got {q.device}, {k.device}, {v.device}")
    if max(q.shape[3], v.shape[3]) > WIDEST:
        raise ValueError(f"head widths up to {WIDEST} fit a tile; got D={q.shape[3]}, Dv={v.shape[3]}")
    rows = q.shape[1] // k.shape[1] * q.shape[2]
    if rows > MOST_ROWS:
        raise ValueError(f"(Hq / Hkv) T must be at most {MOST_ROWS} rows; got {rows}. For many query rows take "
                         "tutor.kernels.flash.flash_attention")
    if tile is not None and (tile < 16 or tile & (tile - 1)):
        raise ValueError(f"tile must be a power of two >= 16 (tl.dot's smallest side); got {tile}")


def lengths_of(k: Tensor, lengths: Sequence[int] | Tensor | None) -> Tensor:
    """`(B,)` int32 on the device of `k`."""
    if lengths is None:
        return torch.full((k.shape[0],), k.shape[2], dtype=torch.int32, device=k.device)
    if isinstance(lengths, Tensor) and lengths.is_cuda:
        return lengths.to(torch.int32)
    return torch.tensor(check_lengths(k, lengths), dtype=torch.int32, device=k.device)


def padded(width: int) -> int:
    """Rounded up to what `tl.arange` and `tl.dot` accept."""
    return max(16, triton.next_power_of_2(width))


def default_tile(q: Tensor, v: Tensor) -> int:
    """Keys of a tile: 128, fewer where rows of keys are wide, since a tile of keys and one of values share fast memory."""
    row = padded(max(q.shape[3], v.shape[3])) * q.element_size()
    return 32 if kernels.interpreted() or row > 512 else 64 if row > 256 else 128


def workers_of(q: Tensor) -> int:
    """Multiprocessors of the device; 8 where there is none."""
    return torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 8


def scale_log2(scale: float | None, d: int) -> float:
    """exp(x) = exp2(x log2 e): the scale of the logits takes the factor."""
    return (1 / math.sqrt(d) if scale is None else scale) * math.log2(math.e)


@triton.jit
def _load_rows(q_ptr, stride_qh, stride_qt, stride_qd, R: tl.constexpr, T: tl.constexpr, D: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """The rows of one output, (BLOCK_M, BLOCK_D): row r is query head r // T of the group, query row r % T."""
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    return tl.load(q_ptr + (rows // T)[:, None] * stride_qh + (rows % T)[:, None] * stride_qt + dims[None, :] * stride_qd,
                   mask=(rows[:, None] < R) & (dims[None, :] < D), other=0.0)


@triton.jit
def _fold(q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, first, last, length, scale_log2,
          T: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
          BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, CAUSAL: tl.constexpr, DOT_F32: tl.constexpr):
    """Tiles [first, last) of one output: o (BLOCK_M, BLOCK_DV), normalised, and lse (BLOCK_M,) in powers of two."""
    rows, dims, dims_v = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    pos = length - T + rows % T
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    for j in range(first, last):
        keys = j * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = keys < length
        far = keys.to(tl.int64)
        k = tl.load(k_ptr + far[None, :] * stride_ks + dims[:, None] * stride_kd,
                    mask=inside[None, :] & (dims[:, None] < D), other=0.0)                          # (BLOCK_D, BLOCK_N)
        v = tl.load(v_ptr + far[:, None] * stride_vs + dims_v[None, :] * stride_vd,
                    mask=inside[:, None] & (dims_v[None, :] < DV), other=0.0)                      # (BLOCK_N, BLOCK_DV)
        if DOT_F32:
            s = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee") * scale_log2     # (BLOCK_M, BLOCK_N)
        else:
            s = tl.dot(q, k, input_precision="ieee") * scale_log2
        allowed = inside[None, :]
        if CAUSAL:
            allowed = allowed & (keys[None, :] <= pos[:, None])
        s = tl.where(allowed, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)             # a row that has seen nothing yet
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
    return o, tl.where(empty, float("-inf"), m + tl.log2(tl.where(empty, 1.0, l)))


@triton.jit
def _take(acc, m, l, o, lse):
    """Join a partial (o, lse) with the running sum acc, l of weights 2^(lse - m)."""
    m_new = tl.maximum(m, lse)
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    old, new = tl.exp2(m - m_safe), tl.exp2(lse - m_safe)
    return acc * old[:, None] + o * new[:, None], m_new, l * old + new


@triton.jit
def _write_rows(o_ptr, lse_ptr, stride_oh, stride_ot, stride_od, stride_lh, stride_lt, acc, m, l,
                R: tl.constexpr, T: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr):
    """Divide and write the rows of one output; rows that saw nothing give 0 and -inf."""
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DV)
    empty = l == 0.0
    o = acc / tl.where(empty, 1.0, l)[:, None]
    lse = tl.where(empty, float("-inf"), (m + tl.log2(tl.where(empty, 1.0, l))) * 0.6931471805599453)       # ln 2
    tl.store(o_ptr + (rows // T)[:, None] * stride_oh + (rows % T)[:, None] * stride_ot + dims[None, :] * stride_od,
             o.to(o_ptr.dtype.element_ty), mask=(rows[:, None] < R) & (dims[None, :] < DV))
    tl.store(lse_ptr + (rows // T) * stride_lh + (rows % T) * stride_lt, lse, mask=rows < R)


# --------------------------------------------------------------------------------------------------------- the kernels
@triton.jit
def _split_kernel(q_ptr, k_ptr, v_ptr, part_o_ptr, part_lse_ptr, lengths_ptr,
                  stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
                  stride_vb, stride_vh, stride_vs, stride_vd, Hkv, splits, scale_log2,
                  D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, DOT_F32: tl.constexpr,
                  R: tl.constexpr, T: tl.constexpr, G: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr,
                  BLOCK_DV: tl.constexpr):
    """One program: one split of one (request, KV head)."""
    split, output = tl.program_id(0), tl.program_id(1)
    batch, head = (output // Hkv).to(tl.int64), (output % Hkv).to(tl.int64)
    length = tl.load(lengths_ptr + batch)
    tiles = (length + BLOCK_N - 1) // BLOCK_N
    size = (tiles + splits - 1) // splits
    first = split * size
    last = tl.minimum(first + size, tiles)
    q = _load_rows(q_ptr + batch * stride_qb + head * G * stride_qh, stride_qh, stride_qt, stride_qd, R, T, D, BLOCK_M, BLOCK_D)
    o, lse = _fold(q, k_ptr + batch * stride_kb + head * stride_kh, v_ptr + batch * stride_vb + head * stride_vh,
                   stride_ks, stride_kd, stride_vs, stride_vd, first, last, length, scale_log2,
                   T, D, DV, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, CAUSAL, DOT_F32)
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DV)
    slot = (output.to(tl.int64) * splits + split) * R
    tl.store(part_o_ptr + (slot + rows)[:, None] * DV + dims[None, :], o, mask=(rows[:, None] < R) & (dims[None, :] < DV))
    tl.store(part_lse_ptr + slot + rows, lse, mask=rows < R)


@triton.jit
def _join_kernel(part_o_ptr, part_lse_ptr, o_ptr, lse_ptr, stride_ob, stride_oh, stride_ot, stride_od,
                 stride_lb, stride_lh, stride_lt, Hkv, splits,
                 R: tl.constexpr, T: tl.constexpr, G: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr,
                 BLOCK_DV: tl.constexpr):
    """One program: the partials of one (request, KV head), in order of the splits."""
    output = tl.program_id(0)
    batch, head = (output // Hkv).to(tl.int64), (output % Hkv).to(tl.int64)
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DV)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    for split in range(0, splits):
        slot = (output.to(tl.int64) * splits + split) * R
        o = tl.load(part_o_ptr + (slot + rows)[:, None] * DV + dims[None, :],
                    mask=(rows[:, None] < R) & (dims[None, :] < DV), other=0.0)
        lse = tl.load(part_lse_ptr + slot + rows, mask=rows < R, other=float("-inf"))
        acc, m, l = _take(acc, m, l, o, lse)
    _write_rows(o_ptr + batch * stride_ob + head * G * stride_oh, lse_ptr + batch * stride_lb + head * G * stride_lh,
                stride_oh, stride_ot, stride_od, stride_lh, stride_lt, acc, m, l, R, T, DV, BLOCK_M, BLOCK_DV)
