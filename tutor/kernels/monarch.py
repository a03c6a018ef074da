"""Causal FFT convolution in one kernel: 1 024 or 4 096 entries as a grid of 32 x 32 or 64 x 64, multiplied by DFT matrices.

What moves: a program loads one sequence of one channel and its gates once and writes its output once; spectra live and die in
registers as two real planes. The filter's spectrum (made once, in the grid's own order, 1/N folded in so that half precision
cannot overflow) and the DFT constants are read by every program and stay in the caches. Rows that are padding are neither
multiplied nor computed.

        u (R x N2)     F1 (N1 x R)      twiddle     F2        filter    conj F2    conj twiddle    conj F1 (R x N1)
        [ input  ]  ->  [ 2 dots ]  ->   [ * ]  ->  [ 4 ]  ->  [ * ]  ->  [ 4 ]  ->   [ * ]   ->   [ 2 dots ]  ->  y (R x N2)
        [ zeros, ]      u is real                                                                  only the real part,
        [ skipped]                                                                                 only rows that are kept
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.methods.fftconv import dft_matrix, monarch_fft, twiddle
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GRIDS = {256: 16, 1024: 32, 4096: 64}          # circular length -> side of the square grid


def fft_conv(u: Tensor, h: Tensor, *, pre: Tensor | None = None, post: Tensor | None = None, n: int | None = None,
             batch_tile: int = 1) -> Tensor:
    """y = post * ((u * pre) conv h), causal: `FFTConv().conv`, in the dtype of u with float32 sums.

    Args:
        u, pre, post: `(B, H, L)`, any strides, one dtype.
        h: `(H, taps)`, taps <= L; its spectrum is made in float64.
        n: circular length, 256, 1024 or 4096; the shortest that holds L + taps - 1 unless given.
        batch_tile: sequences of a channel that one program does after another, so that the filter is loaded once for them.
    """
    if u.ndim != 3 or h.ndim != 2 or h.shape[0] != u.shape[1] or 0 in h.shape:
        raise ValueError(f"u must be (B, H, L) and h (H, taps), with taps; got {tuple(u.shape)} and {tuple(h.shape)}")
    if h.shape[1] > u.shape[2] > 0:
        raise ValueError(f"the filter is longer than the input: {h.shape[1]} taps, {u.shape[2]} entries; "
                         f"pass h[:, :{u.shape[2]}]")
    if u.dtype not in DTYPES:
        raise ValueError(f"u must be float32, float16 or bfloat16; got {u.dtype}. The float64 truth is FFTConv().conv")
    for name, gate in (("pre", pre), ("post", post)):
        if gate is not None and (gate.shape != u.shape or gate.dtype != u.dtype or gate.device != u.device):
            raise ValueError(f"{name} must have shape, dtype and device of u; got {tuple(gate.shape)} {gate.dtype} {gate.device}")
    if batch_tile < 1:
        raise ValueError(f"batch_tile must be >= 1; got {batch_tile}")
    (batch, heads, length), taps = u.shape, h.shape[1]
    n = _circle(length + taps - 1) if n is None else n
    if n not in GRIDS or n < length + taps - 1:
        raise ValueError(f"n must be one of {tuple(GRIDS)} and >= L + taps - 1 = {length + taps - 1}; got {n}")
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if y.numel() == 0:
        return y
    side, spectrum = GRIDS[n], filter_spectrum(h, n)                                       # (2, H, side * side)
    matrix, turns = _constants(side, u.dtype, u.device)
    rows = side if 2 * length > n else max(16, side // 2)                                  # tl.dot's smallest side is 16
    strides = (stride for x in (u, u if pre is None else pre, u if post is None else post, y) for stride in x.stride())
    _monarch_kernel[(heads, triton.cdiv(batch, batch_tile))](
        u, u if pre is None else pre, u if post is None else post, y, spectrum, matrix, turns, *strides, batch, heads, length,
        SIDE=side, ROWS=rows, BATCH=batch_tile, PRE=pre is not None, POST=post is not None,
        DOT_F32=kernels.interpreted(), num_warps=4 if side < 64 else 8)
    return y


def filter_spectrum(h: Tensor, n: int) -> Tensor:
    """Real and imaginary plane `(2, H, n)`, float32, of the filter's DFT / n in the grid's own order."""
    spectrum = monarch_fft(h.double(), (GRIDS[n], GRIDS[n])) / n
    return torch.stack([spectrum.real, spectrum.imag]).float().contiguous()


def _circle(needed: int) -> int:
    for n in GRIDS:
        if n >= needed:
            return n
    raise ValueError(f"L + taps - 1 = {needed} is beyond this kernel's {max(GRIDS)}; use FFTConv().conv, or fewer taps")


@lru_cache(maxsize=16)
def _constants(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """DFT matrix `(2, side, side)` in the dtype that is multiplied; twiddles `(2, side, side)` in float32."""
    matrix, turns = (torch.view_as_real(x).movedim(-1, 0).contiguous() for x in (dft_matrix(side), twiddle(side, side)))
    return matrix.to(device, dtype), turns.to(device, torch.float32)


def roofline(batch: int, heads: int, length: int, taps: int | None = None, *, gates: int = 0, dtype: str = "bfloat16",
             on: str = "H100 SXM") -> Roofline:
    """Bytes that must move (input, gates, output and filter once) and operations of the products that run."""
    taps = taps or length
    n = _circle(length + taps - 1)
    side = GRIDS[n]
    rows = side if 2 * length > n else max(16, side // 2)
    flops = 2 * (2 * 2 * rows * n + 4 * 2 * side * n)                                      # forward and inverse
    moved = (2 + gates) * batch * heads * length * BYTES[dtype] + heads * taps * BYTES["float32"]
    return Roofline(moved, batch * heads * flops, hardware(on), dtype)


@triton.jit
def _product(a, b, DOT_F32: tl.constexpr):
    """a @ b in float32 sums; operands keep their dtype, but the interpreter multiplies them as float32."""
    if DOT_F32:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _monarch_kernel(u_ptr, pre_ptr, post_ptr, y_ptr, spectrum_ptr, matrix_ptr, turns_ptr,
                    stride_ub, stride_uh, stride_ul, stride_pb, stride_ph, stride_pl, stride_qb, stride_qh, stride_ql,
                    stride_yb, stride_yh, stride_yl, B, H, L,
                    SIDE: tl.constexpr, ROWS: tl.constexpr, BATCH: tl.constexpr, PRE: tl.constexpr, POST: tl.constexpr,
                    DOT_F32: tl.constexpr):
    """One program: BATCH sequences of one channel. Planes of the spectrum are (SIDE, SIDE) float32."""
    channel = tl.program_id(0).to(tl.int64)
    k, t = tl.arange(0, SIDE), tl.arange(0, SIDE)
    r = tl.arange(0, ROWS)
    grid = k[:, None] * SIDE + t[None, :]                                 # (SIDE, SIDE)
    entries = r[:, None] * SIDE + t[None, :]                              # (ROWS, SIDE): position in the sequence
    re = tl.load(matrix_ptr + grid)                                       # F = re + i im, symmetric
    im = tl.load(matrix_ptr + SIDE * SIDE + grid)
    re_in = tl.load(matrix_ptr + k[:, None] * SIDE + r[None, :])          # (SIDE, ROWS): columns of rows that are not padding
    im_in = tl.load(matrix_ptr + SIDE * SIDE + k[:, None] * SIDE + r[None, :])
    re_out = tl.load(matrix_ptr + r[:, None] * SIDE + t[None, :])         # (ROWS, SIDE)
    im_out = tl.load(matrix_ptr + SIDE * SIDE + r[:, None] * SIDE + t[None, :])
    turn_re = tl.load(turns_ptr + grid)
    turn_im = tl.load(turns_ptr + SIDE * SIDE + grid)
    h_re = tl.load(spectrum_ptr + channel * SIDE * SIDE + grid)
    h_im = tl.load(spectrum_ptr + (H + channel) * SIDE * SIDE + grid)

    for step in range(0, BATCH):
        batch = (tl.program_id(1) * BATCH + step).to(tl.int64)
        here = entries < tl.where(batch < B, L, 0)                        # nothing, for a batch beyond the last
        u = tl.load(u_ptr + batch * stride_ub + channel * stride_uh + entries * stride_ul, mask=here, other=0.0)
        if PRE:
            gate = tl.load(pre_ptr + batch * stride_pb + channel * stride_ph + entries * stride_pl, mask=here, other=0.0)
            u = (u.to(tl.float32) * gate.to(tl.float32)).to(u.dtype)
        a_re = _product(re_in, u, DOT_F32)                                # (SIDE, SIDE): DFT down the columns
        a_im = _product(im_in, u, DOT_F32)
        x_re = (a_re * turn_re - a_im * turn_im).to(re.dtype)
        x_im = (a_re * turn_im + a_im * turn_re).to(re.dtype)
        s_re = _product(x_re, re, DOT_F32) - _product(x_im, im, DOT_F32)  # DFT along the rows
        s_im = _product(x_re, im, DOT_F32) + _product(x_im, re, DOT_F32)
        p_re = (s_re * h_re - s_im * h_im).to(re.dtype)
        p_im = (s_re * h_im + s_im * h_re).to(re.dtype)
        a_re = _product(p_re, re, DOT_F32) + _product(p_im, im, DOT_F32)  # and back, with conjugates
        a_im = _product(p_im, re, DOT_F32) - _product(p_re, im, DOT_F32)
        x_re = (a_re * turn_re + a_im * turn_im).to(re.dtype)
        x_im = (a_im * turn_re - a_re * turn_im).to(re.dtype)
        y = _product(re_out, x_re, DOT_F32) + _product(im_out, x_im, DOT_F32)
        if POST:
            gate = tl.load(post_ptr + batch * stride_qb + channel * stride_qh + entries * stride_ql, mask=here, other=0.0)
            y = y * gate.to(tl.float32)
        tl.store(y_ptr + batch * stride_yb + channel * stride_yh + entries * stride_yl, y.to(y_ptr.dtype.element_ty), mask=here)
