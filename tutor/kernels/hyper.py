"""HyperAttention: matched blocks gathered through a permutation, then the sampled keys with their weights.

What moves: each program loads the numbers of one tile of sorted queries and those rows of q, scattered as they lie; then
the keys and values of its own block and of the sample, row by row through the permutation of the keys, so that nothing is
ever copied into sorted order. One running softmax joins both; a sampled key carries the log of how many keys it stands for,
and one that lies in the own block is masked. Outputs and log-sum-exps go straight back to where the queries came from.

            sorted keys ->  [block 0][block 1][block 2]  |  sample      per program: one tile of one query block
        sorted    block 0   [  own  ]                    |  x  .  x     loop 1: own keys k_order[BK i .. BK (i + 1))
        queries   block 1            [  own  ]           |  x  x  .     loop 2: k_order[place], logit + weight
          |       block 2                     [  own  ]  |  .  x  x     (.) lies in the own block, counts nothing
          v                                                             out: rows q_order[..] of o and lse
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.dense import check_qkv
from tutor.attention.methods.hyper import Drawn, Hyper, Sorted, over_plan
from tutor.attention.partial import Partial
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from tutor.kernels.flash import _padded, check_kernel, flash_attention  # noqa: E402

PUBLISHED = Hyper()                        # blocks and samples of the paper's code


def hyper_attention(q: Tensor, k: Tensor, v: Tensor, *, method: Hyper = PUBLISHED, causal: bool = True,
                    scale: float | None = None, generator: torch.Generator | None = None, block_m: int | None = None,
                    block_n: int | None = None, check: bool = False) -> Partial:
    """`method.attend` by two kernels: `hyper_step` for the rectangles of its plan, flash attention for what is exact.

    Forward only: whoever needs gradients takes the reference.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; D and Dv up to 256; any strides.
        method: planes, blocks, samples and the smallest rectangle, as the reference has them.
        generator: of planes and samples; made from the method's seed unless given. The reference draws the same.
        block_m, block_n: queries and keys of a tile, powers of two >= 16.
        check: refuse NaN and infinities (one more pass over the inputs).

    Returns:
        `Partial` with o in the dtype of q and lse in float32.

    Raises:
        ValueError: a tensor requires gradients while they are recorded.
    """
    check_qkv(q, k, v, check=check)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise ValueError("the kernel has no backward, and the exact pieces alone would give wrong gradients: use "
                         "tutor.attention.methods.hyper.Hyper.attend, or torch.no_grad()")
    blocks = {"block_m": block_m, "block_n": block_n}
    check_kernel(q, k, v, **blocks)
    planes, generator = method.start(q, generator)

    def estimate(q: Tensor, k: Tensor, v: Tensor) -> Partial:
        order = method.sort(q, k, planes)
        return hyper_step(q, k, v, order, method.draw(v, order, generator), scale=scale, **blocks)

    part = over_plan(method.plan(q.shape[2], k.shape[2], causal=causal), q, k, v,
                     lambda q, k, v, causal: flash_attention(q, k, v, causal=causal, scale=scale, **blocks), estimate)
    return Partial(part.o.to(q.dtype), part.lse)


def hyper_step(q: Tensor, k: Tensor, v: Tensor, order: Sorted, drawn: Drawn | None, *, scale: float | None = None,
               block_m: int | None = None, block_n: int | None = None, check: bool = False) -> Partial:
    """One rectangle, in which every query sees every key: `Hyper.step`. Arguments as there and in `hyper_attention`.

    Raises:
        ValueError: `order` or `drawn` was made for other tensors.
    """
    check_qkv(q, k, v, check=check)
    check_kernel(q, k, v, block_m=block_m, block_n=block_n)
    (b, hq, t, d), (hkv, s), dv = q.shape, k.shape[1:3], v.shape[3]
    if order.q_order.shape != (b, hq, t) or order.k_order.shape != (b, hkv, s):
        raise ValueError(f"order was made for queries {tuple(order.q_order.shape)} and keys {tuple(order.k_order.shape)}; "
                         f"got {(b, hq, t)} and {(b, hkv, s)}. Sort the rectangle that is passed")
    if drawn is not None and not drawn.place.shape == drawn.weight.shape == (b, hkv, drawn.place.shape[-1]):
        raise ValueError(f"drawn needs place and weight (B, Hkv, m) with B, Hkv = {(b, hkv)}; got "
                         f"{tuple(drawn.place.shape)} and {tuple(drawn.weight.shape)}")
    o, lse = torch.empty(b, hq, t, dv, dtype=q.dtype, device=q.device), torch.empty(b, hq, t, device=q.device)
    if o.numel() == 0:
        return Partial(o, lse)
    if s == 0:
        return Partial(o.zero_(), lse.fill_(float("-inf")))
    bq, bk = order.bq, order.bk
    if triton.cdiv(t, bq) > triton.cdiv(s, bk):
        raise ValueError(f"order cuts {t} queries into more blocks of bq = {bq} than {s} keys into blocks of bk = {bk}; "
                         "the last queries would meet no keys")
    q_order, k_order = order.q_order.contiguous(), order.k_order.contiguous()
    if drawn is None:
        place, weight = k_order, lse                                        # not read: there are no samples
    else:
        place, weight = drawn.place.contiguous(), (drawn.weight.float() * math.log2(math.e)).contiguous()
    if kernels.interpreted():
        block_m, block_n = block_m or 32, block_n or 32
    else:
        fits = lambda rows: min(max(triton.next_power_of_2(rows), 16), 64 if max(d, dv) > 64 else 128)
        block_m, block_n = block_m or fits(bq), block_n or min(fits(bk), 64)
    parts = triton.cdiv(bq, block_m)                                        # tiles of one query block
    strides = (stride for x in (q, k, v, o, lse) for stride in x.stride())
    _hyper_kernel[(triton.cdiv(t, bq) * parts, b * hq)](
        q, k, v, o, lse, q_order, k_order, place, weight, *strides, hq, t, s, 0 if drawn is None else place.shape[2], bq, bk,
        parts, (1 / math.sqrt(d) if scale is None else scale) * math.log2(math.e), G=hq // hkv, D=d, DV=dv, BLOCK_M=block_m,
        BLOCK_N=block_n, BLOCK_D=_padded(d), BLOCK_DV=_padded(dv), DOT_F32=kernels.interpreted(),
        num_stages=2 if _padded(d) * q.element_size() <= 512 else 1)
    return Partial(o, lse)


def roofline(b: int, hq: int, hkv: int, t: int, s: int, d: int, dv: int | None = None, *, method: Hyper = PUBLISHED,
             dtype: str = "bfloat16", on: str = "H100 SXM", cached: bool = True) -> Roofline:
    """Floor of `hyper_step` alone: two products over matched blocks and samples; hashing and sorting come on top.

    q, o, lse and the lists move once, and so do k and v. `cached=False` counts a gathered key and value row as often as a
    query block asks for it: what moves when no cache helps.
    """
    dv = dv or d
    blocks = max(1, math.ceil(s / method.block))
    bq = math.ceil(t / blocks)
    sizes = [(min(bq, t - i * bq), min(method.block, s - i * method.block)) for i in range(math.ceil(t / bq))]
    pairs = b * hq * (sum(rows * keys for rows, keys in sizes) + t * method.samples)
    gathered = b * hq * sum(keys + method.samples for _, keys in sizes)
    lists = 8 * b * (hq * t + hkv * s) + 12 * b * hkv * method.samples                      # int64 orders; places and weights
    moved = (b * hq * t + (b * hkv * s if cached else gathered)) * (d + dv) * BYTES[dtype] + 4 * b * hq * t + lists
    return Roofline(moved, 2 * pairs * (d + dv), hardware(on), dtype)


@triton.jit
def _join(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, keys, there, weight, scale_log2,
          D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, DOT_F32: tl.constexpr):
    """Join the rows `keys` (BLOCK_N,), of which those `there` count, 2^weight times each, with the running state."""
    dims, dims_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    k = tl.load(k_ptr + keys[None, :] * stride_ks + dims[:, None] * stride_kd,
                mask=there[None, :] & (dims[:, None] < D), other=0.0)                               # (BLOCK_D, BLOCK_N)
    v = tl.load(v_ptr + keys[:, None] * stride_vs + dims_v[None, :] * stride_vd,
                mask=there[:, None] & (dims_v[None, :] < DV), other=0.0)                            # (BLOCK_N, BLOCK_DV)
    if DOT_F32:
        s = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee") * scale_log2         # (BLOCK_M, BLOCK_N)
    else:
        s = tl.dot(q, k, input_precision="ieee") * scale_log2
    s = tl.where(there[None, :], s + weight[None, :], float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1))                                   # finite: the first tile holds a key of the block
    p = tl.exp2(s - m_new[:, None])
    shrink = tl.exp2(m - m_new)
    l = l * shrink + tl.sum(p, 1)
    p = p.to(v.dtype)
    if DOT_F32:
        acc = acc * shrink[:, None] + tl.dot(p.to(tl.float32), v.to(tl.float32), input_precision="ieee")
    else:
        acc = acc * shrink[:, None] + tl.dot(p, v, input_precision="ieee")
    return acc, m_new, l


@triton.jit
def _hyper_kernel(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, q_order_ptr, k_order_ptr, place_ptr, weight_ptr,
                  stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
                  stride_vb, stride_vh, stride_vs, stride_vd, stride_ob, stride_oh, stride_ot, stride_od,
                  stride_lb, stride_lh, stride_lt, Hq, T, S, M, BQ, BK, PARTS, scale_log2,
                  G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                  BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, DOT_F32: tl.constexpr):
    """One program: tile `part` of query block `block` of one head, so that all its rows share one block of keys."""
    block, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    batch, head = (tl.program_id(1) // Hq).to(tl.int64), (tl.program_id(1) % Hq).to(tl.int64)
    kv_head = head // G
    q_ptr += batch * stride_qb + head * stride_qh
    k_ptr += batch * stride_kb + kv_head * stride_kh
    v_ptr += batch * stride_vb + kv_head * stride_vh
    q_order_ptr += (batch * Hq + head) * T
    k_order_ptr += (batch * (Hq // G) + kv_head) * S
    place_ptr += (batch * (Hq // G) + kv_head) * M
    weight_ptr += (batch * (Hq // G) + kv_head) * M

    at = block * BQ + part * BLOCK_M + tl.arange(0, BLOCK_M)               # places in the sorted queries
    mine = at < tl.minimum((block + 1) * BQ, T)
    rows = tl.load(q_order_ptr + at, mask=mine, other=0)                   # (BLOCK_M,) int64, where they lie
    dims, dims_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    q = tl.load(q_ptr + rows[:, None] * stride_qt + dims[None, :] * stride_qd, mask=mine[:, None] & (dims[None, :] < D),
                other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)

    own_end = tl.minimum((block + 1) * BK, S)
    for start in range(block * BK, own_end, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        there = place < own_end
        keys = tl.load(k_order_ptr + place, mask=there, other=0)
        acc, m, l = _join(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, keys, there,
                          tl.zeros([BLOCK_N], tl.float32), scale_log2, D, DV, BLOCK_D, BLOCK_DV, DOT_F32)
    for start in range(0, M, BLOCK_N):
        draw = start + tl.arange(0, BLOCK_N)
        place = tl.load(place_ptr + draw, mask=draw < M, other=0)
        there = (draw < M) & (place // BK != block)                        # the own block is read already
        keys = tl.load(k_order_ptr + place, mask=there, other=0)
        weight = tl.load(weight_ptr + draw, mask=there, other=0.0)
        acc, m, l = _join(acc, m, l, q, k_ptr, v_ptr, stride_ks, stride_kd, stride_vs, stride_vd, keys, there, weight,
                          scale_log2, D, DV, BLOCK_D, BLOCK_DV, DOT_F32)

    o_ptr += batch * stride_ob + head * stride_oh
    lse_ptr += batch * stride_lb + head * stride_lh
    tl.store(o_ptr + rows[:, None] * stride_ot + dims_v[None, :] * stride_od, (acc / l[:, None]).to(o_ptr.dtype.element_ty),
             mask=mine[:, None] & (dims_v[None, :] < DV))
    tl.store(lse_ptr + rows * stride_lt, (m + tl.log2(l)) * 0.6931471805599453, mask=mine)          # ln 2
