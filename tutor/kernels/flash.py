"""Flash attention, forward: exact attention in tiles, with the T x S matrix never written.

What moves: each program loads one block of queries once, streams every block of keys and values that it may see, and
writes its outputs and log-sum-exps once. Keys and values of a KV head are re-read by each query block and by each query
head of the group; the caches of a GPU catch most of that. The scores of a tile live and die in registers.

            keys ->   0      1      2      3          per program: q (BLOCK_M, D) stays
        queries  0 [ diag ]                           loop 1, tiles wholly before the diagonal: no mask at all
          |      1 [ full ][ diag ]                   loop 2, tiles cut by the diagonal or the end of the keys: masked
          v      2 [ full ][ full ][ diag ]           tiles beyond the diagonal are never visited
                 3 [ full ][ full ][ full ][ diag ]   out: o (BLOCK_M, Dv), lse (BLOCK_M,)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.dense import causal_pairs, check_qkv
from tutor.attention.partial import Partial
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 256


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None,
                    block_m: int | None = None, block_n: int | None = None, check: bool = False) -> Partial:
    """Exact attention; the same as `tutor.attention.dense.attend`, in the dtype of the inputs with float32 sums.

    Both results can be differentiated; gradients are computed by `tutor.kernels.flash_backward`, tile by tile again.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; D and Dv up to 256; any strides.
        causal: bottom-right aligned, query row t stands at S - T + t; rows before the first key give 0 and `-inf`.
        block_m, block_n: queries and keys of a tile, powers of two >= 16; chosen by measuring on a GPU unless given.
        check: refuse NaN and infinities (one more pass over the inputs).

    Returns:
        `Partial` with o in the dtype of q and lse in float32.
    """
    check_qkv(q, k, v, check=check)
    check_kernel(q, k, v, block_m=block_m, block_n=block_n)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return Partial(*_Differentiable.apply(q, k, v, causal, scale, block_m, block_n))
    return _forward(q, k, v, causal, scale, block_m, block_n)


def check_kernel(q: Tensor, k: Tensor, v: Tensor, **blocks: int | None) -> None:
    """Raise `ValueError` for tensors or tiles that no attention kernel takes."""
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        raise ValueError(f"q, k and v must share one dtype of float32, float16, bfloat16; got {q.dtype}, {k.dtype}, "
                         f"{v.dtype}. The float64 truth is tutor.attention.dense.attend")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device; got {q.device}, {k.device}, {v.device}")
    if max(q.shape[3], v.shape[3]) > WIDEST:
        raise ValueError(f"head widths up to {WIDEST} fit a tile; got D={q.shape[3]}, Dv={v.shape[3]}")
    for name, block in blocks.items():
        if block is not None and (block < 16 or block & (block - 1)):
            raise ValueError(f"{name} must be a power of two >= 16 (tl.dot's smallest side); got {block}")


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale, block_m, block_n):
        part = _forward(q, k, v, causal, scale, block_m, block_n)
        ctx.save_for_backward(q, k, v, part.o, part.lse)
        ctx.options = {"causal": causal, "scale": scale, "block_m": block_m, "block_n": block_n}
        return part.o, part.lse

    @staticmethod
    def backward(ctx, do, dlse):
        from tutor.kernels.flash_backward import flash_backward

        return *flash_backward(*ctx.saved_tensors, do, dlse, **ctx.options), None, None, None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None, block_m: int | None,
             block_n: int | None) -> Partial:
    (b, hq, t, d), (hkv, s), dv = q.shape, k.shape[1:3], v.shape[3]
    o, lse = torch.empty(b, hq, t, dv, dtype=q.dtype, device=q.device), torch.empty(b, hq, t, device=q.device)
    if o.numel() == 0:
        return Partial(o, lse)

    scale_log2 = (1 / math.sqrt(d) if scale is None else scale) * math.log2(math.e)     # exp(x) = exp2(x log2 e)
    emulated = kernels.interpreted()
    options = {"G": hq // hkv, "D": d, "DV": dv, "BLOCK_D": _padded(d), "BLOCK_DV": _padded(dv), "CAUSAL": causal,
               "DOT_F32": emulated}
    strides = (stride for x in (q, k, v, o, lse) for stride in x.stride())
    arguments = (q, k, v, o, lse, *strides, hq, t, s, scale_log2)
    if block_m is None and block_n is None and not emulated:
        options["SIZE"] = min(triton.next_power_of_2(t), 4096)
        _tuned()[lambda chosen: (triton.cdiv(t, chosen["BLOCK_M"]), b * hq)](*arguments, **options)
    else:
        options |= {"BLOCK_M": block_m or 32, "BLOCK_N": block_n or 32, "SIZE": 0}
        options["num_stages"] = 2 if options["BLOCK_D"] * q.element_size() <= 512 else 1     # shared memory is small
        _flash_kernel[(triton.cdiv(t, options["BLOCK_M"]), b * hq)](*arguments, **options)
    return Partial(o, lse)


def _padded(width: int) -> int:
    """Head width rounded up to what `tl.arange` and `tl.dot` accept."""
    return max(16, triton.next_power_of_2(width))


_TUNED: list = []


def _tuned():
    """The kernel with tiles chosen by measuring, once for each width, dtype, mask and class of lengths; GPU only."""
    if not _TUNED:
        shapes = ((128, 128, 8, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 32, 4, 4), (64, 64, 4, 3), (64, 32, 4, 2),
                  (16, 64, 4, 3), (32, 32, 4, 1))
        configs = [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
                   for m, n, warps, stages in shapes]
        _TUNED.append(triton.autotune(configs, key=["D", "DV", "CAUSAL", "SIZE"])(_flash_kernel))
    return _TUNED[0]


def roofline(b: int, hq: int, hkv: int, t: int, s: int, d: int, dv: int | None = None, *, causal: bool = True,
             dtype: str = "bfloat16", on: str = "H100 SXM") -> Roofline:
    """Bytes that must move (each tensor once) and operations that must be done (two products over allowed pairs)."""
    dv = dv or d
    pairs = b * hq * (causal_pairs(torch.arange(s - t, s), s) if causal else t * s)
    tensors = b * (hq * t * (d + dv) + hkv * s * (d + dv)) * BYTES[dtype] + b * hq * t * 4           # lse is float32
    return Roofline(tensors, 2 * pairs * (d + dv), hardware(on), dtype)


@triton.jit
def _tile(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, start, pos, S, scale_log2,
          D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_N: tl.constexpr,
          CAUSAL: tl.constexpr, DOT_F32: tl.constexpr, MASKED: tl.constexpr):
    """Join one tile of keys with the running state: acc (BLOCK_M, BLOCK_DV), m and l (BLOCK_M,), in powers of two."""
    keys = start + tl.arange(0, BLOCK_N)
    dims, dims_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    inside = keys < S                                                     # always true where MASKED is false
    k_ptr += tl.cast(start, tl.int64) * stride_ks                         # 64 bits where a product may pass 2^31
    v_ptr += tl.cast(start, tl.int64) * stride_vs
    local = tl.arange(0, BLOCK_N)
    k = tl.load(k_ptr + local[None, :] * stride_ks + dims[:, None] * stride_kd,
                mask=(inside[None, :] | (not MASKED)) & (dims[:, None] < D), other=0.0)             # (BLOCK_D, BLOCK_N)
    v = tl.load(v_ptr + local[:, None] * stride_vs + dims_v[None, :] * stride_vd,
                mask=(inside[:, None] | (not MASKED)) & (dims_v[None, :] < DV), other=0.0)         # (BLOCK_N, BLOCK_DV)
    if DOT_F32:
        s = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee") * scale_log2         # (BLOCK_M, BLOCK_N)
    else:
        s = tl.dot(q, k, input_precision="ieee") * scale_log2
    if MASKED:
        allowed = inside[None, :]
        if CAUSAL:
            allowed = allowed & (keys[None, :] <= pos[:, None])
        s = tl.where(allowed, s, float("-inf"))
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
def _write(acc, m, l, o_ptr, lse_ptr, stride_ot, stride_od, stride_lt, first_row, T,
           DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr):
    """Normalise a finished state and store it; a row that saw nothing is 0 and -inf. o_ptr points at the first row."""
    local, dims_v = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DV)
    rows = first_row + local
    empty = l == 0.0
    o = acc / tl.where(empty, 1.0, l)[:, None]
    lse = tl.where(empty, float("-inf"), (m + tl.log2(tl.where(empty, 1.0, l))) * 0.6931471805599453)   # ln 2
    tl.store(o_ptr + local[:, None] * stride_ot + dims_v[None, :] * stride_od, o.to(o_ptr.dtype.element_ty),
             mask=(rows[:, None] < T) & (dims_v[None, :] < DV))
    tl.store(lse_ptr + rows * stride_lt, lse, mask=rows < T)


@triton.jit
def _sweep(q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, first_row, pos, T, S, scale_log2,
           D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
           BLOCK_DV: tl.constexpr, CAUSAL: tl.constexpr, DOT_F32: tl.constexpr):
    """All tiles of keys that a block of queries sees: first those without a mask, then the ones the diagonal cuts."""
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)

    seen_by_all, seen_by_some = S, S                                      # keys [0, x) seen by every, by some row
    if CAUSAL:
        seen_by_all = tl.maximum(tl.minimum(S - T + first_row + 1, S), 0)
        seen_by_some = tl.maximum(tl.minimum(S - T + first_row + BLOCK_M, S), 0)
    unmasked = seen_by_all // BLOCK_N * BLOCK_N
    for start in range(0, unmasked, BLOCK_N):
        acc, m, l = _tile(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, start, pos, S,
                          scale_log2, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, CAUSAL, DOT_F32, False)
    for start in range(unmasked, seen_by_some, BLOCK_N):
        acc, m, l = _tile(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, start, pos, S,
                          scale_log2, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, CAUSAL, DOT_F32, True)
    return acc, m, l


@triton.jit
def _flash_kernel(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr,
                  stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
                  stride_vb, stride_vh, stride_vs, stride_vd, stride_ob, stride_oh, stride_ot, stride_od,
                  stride_lb, stride_lh, stride_lt, Hq, T, S, scale_log2,
                  G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                  BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, CAUSAL: tl.constexpr, DOT_F32: tl.constexpr,
                  SIZE: tl.constexpr):
    """One program: BLOCK_M query rows of one head. SIZE only tells the tuner which lengths are alike."""
    first_row = tl.program_id(0) * BLOCK_M
    batch, head = (tl.program_id(1) // Hq).to(tl.int64), (tl.program_id(1) % Hq).to(tl.int64)
    q_ptr += batch * stride_qb + head * stride_qh + tl.cast(first_row, tl.int64) * stride_qt
    k_ptr += batch * stride_kb + (head // G) * stride_kh              # grouped queries: by index, keys are never copied
    v_ptr += batch * stride_vb + (head // G) * stride_vh
    rows = first_row + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    pos = S - T + rows                                                    # (BLOCK_M,) may be negative
    q = tl.load(q_ptr + tl.arange(0, BLOCK_M)[:, None] * stride_qt + dims[None, :] * stride_qd,
                mask=(rows[:, None] < T) & (dims[None, :] < D), other=0.0)                          # (BLOCK_M, BLOCK_D)
    acc, m, l = _sweep(q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, first_row, pos, T, S, scale_log2,
                       D, DV, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, CAUSAL, DOT_F32)

    o_ptr += batch * stride_ob + head * stride_oh + tl.cast(first_row, tl.int64) * stride_ot
    lse_ptr += batch * stride_lb + head * stride_lh
    _write(acc, m, l, o_ptr, lse_ptr, stride_ot, stride_od, stride_lt, first_row, T, DV, BLOCK_DV, BLOCK_M)
