"""NTK-Attention, forward: exact attention to the own tokens, and a prefix of any length as one matrix, in a single pass.

What moves: each program does what a program of the flash kernel does, tile body and all; before it writes, it reads the
summary of the prefix once, a (D, Dv) matrix and a vector, and merges what its queries find there. The prefix costs one
[BLOCK_M, D] x [D, Dv] product per query block, whether it was 10 rows or 10 million. Written apart, the prefix would need
its own outputs and log-sum-exps in memory, and a third pass to merge them.

            keys ->   0      1      2          prefix       per program: q (BLOCK_M, D) stays
        queries  0 [ diag ]                 + [ Z | z ]     loops 1 and 2: tiles of keys, as in the flash kernel
          |      1 [ full ][ diag ]         + [ Z | z ]     then, SLICE features at a time: phi(q) Z and phi(q)·z,
          v      2 [ full ][ full ][ diag ] + [ Z | z ]     merged by log-sum-exp; nothing is divided by e^max
                                                            out: o (BLOCK_M, Dv), lse (BLOCK_M,)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.dense import check_qkv
from tutor.attention.methods.ntk import Summary, _root
from tutor.attention.partial import Partial
from tutor.kernels import flash
from tutor.kernels.flash import _padded, _sweep, _write, check_kernel
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

SLICE = 64                                   # features of the product with Z that are on the chip at once


def prefix_attention(q: Tensor, k: Tensor, v: Tensor, summary: Summary, *, causal: bool = True, scale: float | None = None,
                     block_m: int | None = None, block_n: int | None = None, check: bool = False) -> Partial:
    """The same as `tutor.attention.methods.ntk.ntk_attend` with features elu + 1, with float32 sums. No gradients.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)` of the own tokens; D and Dv up to 256; any strides.
        summary: of the prefix, z `(B, H, D, Dv)`, k `(B, H, D)`, shift `(B, H)`; H divides Hq; in any floating dtype.
        causal: among the own tokens, bottom-right aligned. Every row sees the whole prefix.
        block_m, block_n: queries and keys of a tile, powers of two >= 16; chosen by measuring on a GPU unless given.
        check: refuse NaN and infinities in q, k and v (one more pass over them).

    Returns:
        `Partial` with o in the dtype of q and lse in float32.
    """
    check_qkv(q, k, v, check=check)
    check_kernel(q, k, v, block_m=block_m, block_n=block_n)
    (b, hq, t, d), (hkv, s), dv = q.shape, k.shape[1:3], v.shape[3]
    heads = summary.k.shape[1]
    if summary.z.shape != (b, heads, d, dv):
        raise ValueError(f"summary.z must be (B, H, D, Dv) = ({b}, H, {d}, {dv}), as elu + 1 of these heads makes it; got "
                         f"{tuple(summary.z.shape)}. Other features: tutor.attention.methods.ntk.ntk_attend")
    if heads < 1 or hq % heads:
        raise ValueError(f"a summary of {heads} heads does not fit {hq} query heads; summarise per KV or query head")
    if summary.z.device != q.device:
        raise ValueError(f"summary and q must be on one device; got {summary.z.device}, {q.device}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, summary.z, summary.k, summary.shift)):
        raise ValueError("prefix_attention computes no gradients; train with tutor.attention.methods.ntk.ntk_attend, or call it "
                         "under torch.no_grad()")
    root = _root(q, scale)
    o, lse = torch.empty(b, hq, t, dv, dtype=q.dtype, device=q.device), torch.empty(b, hq, t, device=q.device)
    if o.numel() == 0:
        return Partial(o, lse)

    # Sums over a long prefix pass the largest float16; divided by a power of two they are exact and near the values.
    power = torch.frexp(summary.k.detach().float().amax(-1))[1]                                     # (B, H)
    z = torch.ldexp(summary.z.detach().float(), -power[..., None, None]).to(q.dtype).contiguous()
    weights = torch.ldexp(summary.k.detach().float(), -power[..., None]).contiguous()
    shift = summary.shift.detach().float() * math.log2(math.e) + power                              # (B, H), in powers of two

    emulated = kernels.interpreted()
    options = {"G": hq // hkv, "GS": hq // heads, "D": d, "DV": dv, "BLOCK_D": _padded(d), "BLOCK_DV": _padded(dv),
               "SLICE": min(SLICE, _padded(d)), "CAUSAL": causal, "DOT_F32": emulated}
    strides = (stride for x in (q, k, v, o, lse) for stride in x.stride())
    arguments = (q, k, v, o, lse, z, weights, shift.contiguous(), *strides, hq, t, s, root * root * math.log2(math.e), root)
    if block_m is None and block_n is None and not emulated:
        options["SIZE"] = min(triton.next_power_of_2(t), 4096)
        _tuned()[lambda chosen: (triton.cdiv(t, chosen["BLOCK_M"]), b * hq)](*arguments, **options)
    else:
        options |= {"BLOCK_M": block_m or 32, "BLOCK_N": block_n or 32, "SIZE": 0}
        options["num_stages"] = 2 if options["BLOCK_D"] * q.element_size() <= 512 else 1     # shared memory is small
        _prefix_kernel[(triton.cdiv(t, options["BLOCK_M"]), b * hq)](*arguments, **options)
    return Partial(o, lse)


_TUNED: list = []


def _tuned():
    """The kernel with tiles chosen by measuring, once for each width, dtype, mask and class of lengths; GPU only."""
    if not _TUNED:
        shapes = ((128, 128, 8, 3), (128, 64, 8, 3), (128, 32, 4, 4), (64, 64, 4, 3), (64, 32, 4, 2), (16, 64, 4, 3),
                  (32, 32, 4, 1))
        configs = [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
                   for m, n, warps, stages in shapes]
        _TUNED.append(triton.autotune(configs, key=["D", "DV", "CAUSAL", "SIZE"])(_prefix_kernel))
    return _TUNED[0]


def roofline(b: int, hq: int, hkv: int, t: int, s: int, d: int, dv: int | None = None, *, heads: int | None = None,
             causal: bool = True, dtype: str = "bfloat16", on: str = "H100 SXM") -> Roofline:
    """The floor of the flash kernel over the own tokens, and for the prefix: the summary read once, two products a query.

    `heads` of the summary: Hkv unless given. To compare: `flash.roofline` with S + M keys reads the prefix row by row.
    """
    dv, own = dv or d, flash.roofline(b, hq, hkv, t, s, d, dv, causal=causal, dtype=dtype, on=on)
    summary = b * (heads or hkv) * (d * dv * BYTES[dtype] + 4 * d + 4)                      # z, and k and shift in float32
    return Roofline(own.bytes + summary, own.flops + 2 * b * hq * t * d * (dv + 1), hardware(on), dtype)


@triton.jit
def _log2_features(x, inside):
    """log2(elu(x) + 1), and nothing where a column is only padding."""
    logs = tl.where(x > 0, tl.log2(1.0 + tl.maximum(x, 0.0)), x * 1.4426950408889634)               # log2 e
    return tl.where(inside[None, :], logs, float("-inf"))


@triton.jit
def _join_prefix(acc, m, l, q, q_ptr, z_ptr, k_ptr, shift, stride_qt, stride_qd, first_row, T, root,
                 D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
                 SLICE: tl.constexpr, DOT_F32: tl.constexpr):
    """Merge what the summary says with the state of the own tokens; m and shift are in powers of two."""
    dims, dims_v, local = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_M)
    logs = _log2_features(q.to(tl.float32) * root, dims < D)                                        # (BLOCK_M, BLOCK_D)
    peak = tl.max(logs, 1)                                                                          # (BLOCK_M,)
    k = tl.load(k_ptr + dims, mask=dims < D, other=0.0)                                             # (BLOCK_D,) float32
    weight = tl.sum(tl.exp2(logs - peak[:, None]) * k[None, :], 1)                                  # (BLOCK_M,) >= 0
    top = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for start in range(0, BLOCK_D, SLICE):                         # q again, a slice of its columns: Z may be 256 x 256
        some = start + tl.arange(0, SLICE)
        x = tl.load(q_ptr + local[:, None] * stride_qt + some[None, :] * stride_qd,
                    mask=((first_row + local)[:, None] < T) & (some[None, :] < D), other=0.0)
        z = tl.load(z_ptr + some[:, None] * DV + dims_v[None, :], mask=(some[:, None] < D) & (dims_v[None, :] < DV), other=0.0)
        features = tl.exp2(_log2_features(x.to(tl.float32) * root, some < D) - peak[:, None]).to(z.dtype)
        if DOT_F32:
            top += tl.dot(features.to(tl.float32), z.to(tl.float32), input_precision="ieee")
        else:
            top += tl.dot(features, z, input_precision="ieee")
    some_weight = weight > 0
    safe = tl.where(some_weight, weight, 1.0)
    m_prefix = tl.where(some_weight, peak + shift + tl.log2(safe), float("-inf"))
    m_new = tl.maximum(m, m_prefix)
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    shrink, share = tl.exp2(m - m_safe), tl.exp2(m_prefix - m_safe)
    return acc * shrink[:, None] + top * (share / safe)[:, None], m_new, l * shrink + share


@triton.jit
def _prefix_kernel(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, z_ptr, weights_ptr, shift_ptr,
                   stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
                   stride_vb, stride_vh, stride_vs, stride_vd, stride_ob, stride_oh, stride_ot, stride_od,
                   stride_lb, stride_lh, stride_lt, Hq, T, S, scale_log2, root,
                   G: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr,
                   BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, SLICE: tl.constexpr,
                   CAUSAL: tl.constexpr, DOT_F32: tl.constexpr, SIZE: tl.constexpr):
    """One program: BLOCK_M query rows of one head, all their keys, and the prefix. SIZE only tells the tuner what is alike."""
    first_row = tl.program_id(0) * BLOCK_M
    batch, head = (tl.program_id(1) // Hq).to(tl.int64), (tl.program_id(1) % Hq).to(tl.int64)
    q_ptr += batch * stride_qb + head * stride_qh + tl.cast(first_row, tl.int64) * stride_qt
    k_ptr += batch * stride_kb + (head // G) * stride_kh
    v_ptr += batch * stride_vb + (head // G) * stride_vh
    rows = first_row + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    pos = S - T + rows                                                    # (BLOCK_M,) may be negative
    q = tl.load(q_ptr + tl.arange(0, BLOCK_M)[:, None] * stride_qt + dims[None, :] * stride_qd,
                mask=(rows[:, None] < T) & (dims[None, :] < D), other=0.0)                          # (BLOCK_M, BLOCK_D)
    acc, m, l = _sweep(q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, first_row, pos, T, S, scale_log2,
                       D, DV, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, CAUSAL, DOT_F32)
    mine = batch * (Hq // GS) + head // GS                                # the summary of this head
    acc, m, l = _join_prefix(acc, m, l, q, q_ptr, z_ptr + mine * D * DV, weights_ptr + mine * D, tl.load(shift_ptr + mine),
                             stride_qt, stride_qd, first_row, T, root, D, DV, BLOCK_M, BLOCK_D, BLOCK_DV, SLICE, DOT_F32)

    o_ptr += batch * stride_ob + head * stride_oh + tl.cast(first_row, tl.int64) * stride_ot
    lse_ptr += batch * stride_lb + head * stride_lh
    _write(acc, m, l, o_ptr, lse_ptr, stride_ot, stride_od, stride_lt, first_row, T, DV, BLOCK_DV, BLOCK_M)
