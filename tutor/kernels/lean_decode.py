"""LeanAttention: decode with equal contiguous shares of key tiles, whatever head or request they belong to.

What moves: `workers` programs share out the tiles of all outputs (an output is one request's KV head) in one line; each reads
its share of the keys and values once, for all query heads of the group together. An output that lies within one share is
written at once; where a share begins or ends inside an output, a partial (o, log-sum-exp) goes to scratch: two slots a worker.

        outputs   |   0   |     1     | 2 |        3         |      cut in equal shares, not at the borders of outputs
        workers   |    0     |    1     |    2     |    3     |
        slots          whole 0, ends 1   starts 1, ..              "starts": the first piece of a worker, inside an output
                                                                   "ends": its last piece, of an output it does not finish
        second kernel, one program an output: its host's "ends", then "starts" of the workers after it, until it is covered

No program waits for another: the published kernel lets the host of an output wait for flags, which is right only if all
programs run at the same time. Two launches are right wherever programs run one after another, Triton's interpreter included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.methods.lean import check_positive
from tutor.attention.partial import Partial

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from tutor.kernels.split_decode import (  # noqa: E402
    _fold,
    _load_rows,
    _take,
    _write_rows,
    check_decode,
    default_tile,
    lengths_of,
    padded,
    roofline,
    scale_log2,
    workers_of,
)

__all__ = ["lean_decode", "roofline"]


def lean_decode(q: Tensor, k: Tensor, v: Tensor, *, lengths: Sequence[int] | Tensor | None = None, causal: bool = True,
                scale: float | None = None, workers: int | None = None, tile: int | None = None,
                check: bool = False) -> Partial:
    """Exact attention of a few query rows; the same as `tutor.attention.methods.lean.Lean.attend`.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; (Hq / Hkv) T up to 128 rows; any strides.
        lengths: keys of each request; what lies behind is never read. A CUDA tensor is not checked (that would wait).
        workers: programs; the multiprocessors of the GPU unless given.
        tile: keys of a tile, a power of two >= 16.

    Returns:
        `Partial` with o in the dtype of q and lse in float32.
    """
    check_decode(q, k, v, tile, check)
    (b, hq, t, d), hkv, dv = q.shape, k.shape[1], v.shape[3]
    lengths, tile, workers = lengths_of(k, lengths), tile or default_tile(q, v), workers_of(q) if workers is None else workers
    check_positive(workers=workers)
    o, lse = torch.empty(b, hq, t, dv, dtype=q.dtype, device=q.device), torch.empty(b, hq, t, device=q.device)
    if o.numel() == 0:
        return Partial(o, lse)
    rows, outputs = hq // hkv * t, b * hkv
    begin = torch.empty(outputs + 1, dtype=torch.int32, device=q.device)              # first tile of each output in the line
    _line_kernel[(1,)](lengths, begin, hkv, outputs, BLOCK_N=tile, BLOCK_O=triton.next_power_of_2(outputs))
    part_o = torch.empty(2 * workers, rows, dv, device=q.device)                      # slots "starts", then slots "ends"
    part_lse = torch.empty(2 * workers, rows, device=q.device)
    sizes = {"R": rows, "T": t, "G": hq // hkv, "DV": dv, "BLOCK_M": padded(rows), "BLOCK_DV": padded(dv)}
    launch = {"num_warps": 4, "num_stages": 2 if padded(d) * q.element_size() <= 256 else 1}
    _share_kernel[(workers,)](
        q, k, v, part_o, part_lse, o, lse, lengths, begin, *q.stride(), *k.stride(), *v.stride(), *o.stride(), *lse.stride(),
        hkv, outputs, workers, scale_log2(scale, d), SEARCH=max(1, outputs.bit_length()), D=d, BLOCK_D=padded(d), BLOCK_N=tile,
        CAUSAL=causal, DOT_F32=kernels.interpreted(), **sizes, **launch)
    _fix_kernel[(outputs,)](part_o, part_lse, o, lse, begin, *o.stride(), *lse.stride(), hkv, outputs, workers, **sizes)
    return Partial(o, lse)


@triton.jit
def _line_kernel(lengths_ptr, begin_ptr, Hkv, outputs, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr):
    """One program: the running sum of the outputs' tiles."""
    output = tl.arange(0, BLOCK_O)
    length = tl.load(lengths_ptr + output // Hkv, mask=output < outputs, other=0)
    tl.store(begin_ptr + 1 + output, tl.cumsum((length + BLOCK_N - 1) // BLOCK_N, 0), mask=output < outputs)
    tl.store(begin_ptr, 0)


@triton.jit
def _owner(tile, total, workers):
    """The worker of a tile of the line: `full` workers take `most` tiles, the others one less."""
    most = tl.maximum((total + workers - 1) // workers, 1)
    full = total - (most - 1) * workers
    shorter = tl.maximum(most - 1, 1)                                     # most = 1: no tile lies beyond the full ones
    return tl.where(tile < full * most, tile // most, full + (tile - full * most) // shorter)


@triton.jit
def _share_kernel(q_ptr, k_ptr, v_ptr, part_o_ptr, part_lse_ptr, o_ptr, lse_ptr, lengths_ptr, begin_ptr,
                  stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
                  stride_vb, stride_vh, stride_vs, stride_vd, stride_ob, stride_oh, stride_ot, stride_od,
                  stride_lb, stride_lh, stride_lt, Hkv, outputs, workers, scale_log2,
                  SEARCH: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
                  DOT_F32: tl.constexpr, R: tl.constexpr, T: tl.constexpr, G: tl.constexpr, DV: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr):
    """One program: the share of one worker, piece by piece."""
    worker = tl.program_id(0)
    total = tl.load(begin_ptr + outputs)
    most = (total + workers - 1) // workers
    full = total - (most - 1) * workers
    at = worker * most - tl.maximum(worker - full, 0)                     # tiles of the line [at, end)
    end = at + tl.where(worker < full, most, most - 1)
    low, high = 0, outputs                                                # of tile `at`: begin[low] <= at < begin[high]
    for _ in tl.static_range(SEARCH):
        middle = (low + high) // 2
        right = tl.load(begin_ptr + middle) <= at
        low, high = tl.where(right & (high - low > 1), middle, low), tl.where(right, high, middle)
    output = low
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DV)
    while at < end:
        begin, stop = tl.load(begin_ptr + output), tl.load(begin_ptr + output + 1)
        last = tl.minimum(end, stop)
        if last > at:                                                     # else the output is empty
            batch, head = (output // Hkv).to(tl.int64), (output % Hkv).to(tl.int64)
            q = _load_rows(q_ptr + batch * stride_qb + head * G * stride_qh, stride_qh, stride_qt, stride_qd,
                           R, T, D, BLOCK_M, BLOCK_D)
            o, lse = _fold(q, k_ptr + batch * stride_kb + head * stride_kh, v_ptr + batch * stride_vb + head * stride_vh,
                           stride_ks, stride_kd, stride_vs, stride_vd, at - begin, last - begin, tl.load(lengths_ptr + batch),
                           scale_log2, T, D, DV, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, CAUSAL, DOT_F32)
            if (at == begin) & (last == stop):
                seen = tl.where(lse == float("-inf"), 0.0, 1.0)           # rows that may see no key, T > length
                _write_rows(o_ptr + batch * stride_ob + head * G * stride_oh,
                            lse_ptr + batch * stride_lb + head * G * stride_lh,
                            stride_oh, stride_ot, stride_od, stride_lh, stride_lt, o, lse, seen, R, T, DV, BLOCK_M, BLOCK_DV)
            else:
                slot = tl.where(at == begin, workers + worker, worker).to(tl.int64) * R
                tl.store(part_o_ptr + (slot + rows)[:, None] * DV + dims[None, :], o,
                         mask=(rows[:, None] < R) & (dims[None, :] < DV))
                tl.store(part_lse_ptr + slot + rows, lse, mask=rows < R)
            at = last
        output += 1


@triton.jit
def _fix_kernel(part_o_ptr, part_lse_ptr, o_ptr, lse_ptr, begin_ptr, stride_ob, stride_oh, stride_ot, stride_od,
                stride_lb, stride_lh, stride_lt, Hkv, outputs, workers,
                R: tl.constexpr, T: tl.constexpr, G: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr,
                BLOCK_DV: tl.constexpr):
    """One program: an output that several workers share, or that has no keys; the others are already written."""
    output = tl.program_id(0)
    begin, stop, total = tl.load(begin_ptr + output), tl.load(begin_ptr + output + 1), tl.load(begin_ptr + outputs)
    host, ender = _owner(begin, total, workers), _owner(tl.maximum(stop - 1, 0), total, workers)
    parts = tl.where(begin == stop, 0, ender - host + 1)
    batch, head = (output // Hkv).to(tl.int64), (output % Hkv).to(tl.int64)
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DV)
    if parts != 1:
        acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)
        for part in range(0, parts):
            slot = tl.where(part == 0, workers + host, host + part).to(tl.int64) * R
            o = tl.load(part_o_ptr + (slot + rows)[:, None] * DV + dims[None, :],
                        mask=(rows[:, None] < R) & (dims[None, :] < DV), other=0.0)
            lse = tl.load(part_lse_ptr + slot + rows, mask=rows < R, other=float("-inf"))
            acc, m, l = _take(acc, m, l, o, lse)
        _write_rows(o_ptr + batch * stride_ob + head * G * stride_oh, lse_ptr + batch * stride_lb + head * G * stride_lh,
                    stride_oh, stride_ot, stride_od, stride_lh, stride_lt, acc, m, l, R, T, DV, BLOCK_M, BLOCK_DV)
