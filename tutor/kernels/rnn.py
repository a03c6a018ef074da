"""A recurrent network over all its steps in one kernel: the recurrent matrix is read once and stays on the chip.

What moves: each program owns one head for BLOCK_B texts. It loads that head's matrices R once, then walks through time:
per step it reads the texts' pre-activations W x_t, multiplies its state by R in registers, and writes the new states. A
kernel for each step instead would read R again at every token: T times the bytes.

        program (texts 0..15, head 0)      R (G, Dh, Dh): loaded once, kept
              t ->  0     1     2    ...
            wx    [ld]  [ld]  [ld]                (BLOCK_B, G, Dh) a step
            h, c   o---> o---> o--->              dots with R, then the cell, all in registers
            out   [st]  [st]  [st]                (S, BLOCK_B, Dh) a step
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.methods.flash_rnn import Recurred, cell_of, traffic
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (16, 32, 64)            # R of a head must fit in the registers of one program


def rnn(wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None = None, *, cell: str = "lstm",
        block_b: int = 16) -> Recurred:
    """The same as `tutor.attention.methods.flash_rnn.rnn`, states kept in float32 from step to step.

    Args:
        wx, R, b, states: see there; one dtype of float32, float16, bfloat16, and Dh one of 16, 32, 64.
        block_b: texts of a program, a power of two >= 16 (tl.dot's smallest side); rows that are not there are masked.
    """
    kind = cell_of(cell)
    batch, steps, _, heads, width = _check(wx, R, b, states, kind, block_b)
    fresh = states is None or (cell == "slstm" and bool((states[2] == 0).all()))
    if states is None:
        states = wx.new_zeros(len(kind.states), batch, 1, heads, width)
    out = torch.empty(len(kind.states), batch, steps, heads, width, dtype=wx.dtype, device=wx.device)
    last = torch.empty_like(states, memory_format=torch.contiguous_format)
    if batch and heads:
        _rnn_kernel[(triton.cdiv(batch, block_b), heads)](
            wx.contiguous(), R.contiguous(), b.contiguous(), states.contiguous(), out, last, batch, steps, heads,
            CELL=cell, G_IN=len(kind.inputs), DH=width, BLOCK_B=block_b, FRESH=fresh,
            DOT_F32=kernels.interpreted(), num_warps=4)
    return Recurred(out, last)


def _check(wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None, kind, block_b: int) -> torch.Size:
    given = {"wx": wx, "R": R, "b": b} | ({} if states is None else {"states": states})
    if len({x.dtype for x in given.values()}) > 1 or wx.dtype not in DTYPES:
        raise ValueError(f"{', '.join(given)} must share one dtype of float32, float16, bfloat16; got "
                         f"{', '.join(str(x.dtype) for x in given.values())}")
    if wx.ndim != 5 or wx.shape[2] != len(kind.inputs) or wx.shape[4] not in WIDTHS:
        raise ValueError(f"wx must have shape (B, T, {len(kind.inputs)}, Nh, Dh) with Dh one of {WIDTHS}, since a head's "
                         f"whole matrix stays in one program; got {tuple(wx.shape)}")
    batch, _, _, heads, width = wx.shape
    shapes = {"R": (len(kind.recurrent), heads, width, width), "b": (len(kind.bias), heads, width),
              "states": (len(kind.states), batch, 1, heads, width)}
    for name, shape in shapes.items():
        if name in given and tuple(given[name].shape) != shape:
            raise ValueError(f"{name} must have shape {shape}; got {tuple(given[name].shape)}")
    if block_b < 16 or block_b & (block_b - 1):
        raise ValueError(f"block_b must be a power of two >= 16 (tl.dot's smallest side); got {block_b}")
    return wx.shape


def roofline(batch: int, steps: int, heads: int, width: int, *, cell: str = "lstm", dtype: str = "bfloat16",
             on: str = "H100 SXM") -> Roofline:
    """Bytes that must move (inputs and states once, R once) and the operations of the recurrence. Steps wait for each
    other, so `steps` dependent products of about a microsecond each are a floor of their own, not counted here."""
    kind, size = cell_of(cell), BYTES[dtype]
    each = batch * steps * heads * width * size
    moved = each * (len(kind.inputs) + len(kind.states))
    moved += traffic(steps, len(kind.recurrent), heads, width, size, fused=True)
    return Roofline(moved, 2 * batch * steps * len(kind.recurrent) * heads * width**2, hardware(on), dtype)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _matrix(r_ptr, gate, head, NH, DH: tl.constexpr):
    """R of one gate and head, transposed: `(DH in, DH out)`, ready for `h @ R^T`."""
    d = tl.arange(0, DH)
    return tl.load(r_ptr + ((gate * NH + head) * DH + d[None, :]) * DH + d[:, None])


@triton.jit
def _times(h, r, DOT_F32: tl.constexpr):
    """`h (BLOCK_B, DH)` float32 times `r`, in the precision of `r` (float32 where interpreted)."""
    if DOT_F32:
        return tl.dot(h.to(r.dtype).to(tl.float32), r.to(tl.float32), input_precision="ieee")
    return tl.dot(h.to(r.dtype), r, input_precision="ieee")


@triton.jit
def _rnn_kernel(wx_ptr, r_ptr, b_ptr, start_ptr, out_ptr, last_ptr, B, T, NH, CELL: tl.constexpr, G_IN: tl.constexpr,
                DH: tl.constexpr, BLOCK_B: tl.constexpr, FRESH: tl.constexpr, DOT_F32: tl.constexpr):
    head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    d = tl.arange(0, DH)
    there = (rows < B)[:, None]
    one_state = tl.cast(B, tl.int64) * NH * DH                     # entries of one state at one time
    at = (rows[:, None].to(tl.int64) * NH + head) * DH + d[None, :]               # (BLOCK_B, DH) in (B, 1, NH, DH)
    wx_at = wx_ptr + rows[:, None].to(tl.int64) * T * G_IN * NH * DH + head * DH + d[None, :]
    out_at = out_ptr + rows[:, None].to(tl.int64) * T * NH * DH + head * DH + d[None, :]

    # what stays on the chip: the matrices, the biases, the states
    r0, b0 = _matrix(r_ptr, 0, head, NH, DH), tl.load(b_ptr + head * DH + d).to(tl.float32)
    if CELL != "elman":
        r1, b1 = _matrix(r_ptr, 1, head, NH, DH), tl.load(b_ptr + (NH + head) * DH + d).to(tl.float32)
        r2, b2 = _matrix(r_ptr, 2, head, NH, DH), tl.load(b_ptr + (2 * NH + head) * DH + d).to(tl.float32)
        b3 = tl.load(b_ptr + (3 * NH + head) * DH + d).to(tl.float32)
    if CELL == "lstm" or CELL == "slstm":
        r3 = _matrix(r_ptr, 3, head, NH, DH)
    h = tl.load(start_ptr + at, mask=there, other=0.0).to(tl.float32)
    if CELL == "lstm" or CELL == "slstm":
        c = tl.load(start_ptr + one_state + at, mask=there, other=0.0).to(tl.float32)
    if CELL == "slstm":
        n = tl.load(start_ptr + 2 * one_state + at, mask=there, other=1.0).to(tl.float32)
        m = tl.load(start_ptr + 3 * one_state + at, mask=there, other=0.0).to(tl.float32)

    for t in range(0, T):
        x0 = tl.load(wx_at, mask=there, other=0.0).to(tl.float32)
        if CELL == "elman":
            h = _tanh(_times(h, r0, DOT_F32) + x0 + b0[None, :])
        else:
            x1 = tl.load(wx_at + NH * DH, mask=there, other=0.0).to(tl.float32)
            x2 = tl.load(wx_at + 2 * NH * DH, mask=there, other=0.0).to(tl.float32)
            g0, g1, g2 = _times(h, r0, DOT_F32), _times(h, r1, DOT_F32), _times(h, r2, DOT_F32)
            if CELL == "gru":                                      # R feeds n_rec, r, z; W x feeds r, z, n_in
                reset, z = _sigmoid(g1 + x0 + b1[None, :]), _sigmoid(g2 + x1 + b2[None, :])
                h = z * h + (1 - z) * _tanh(x2 + b3[None, :] + reset * (g0 + b0[None, :]))
            else:
                x3 = tl.load(wx_at + 3 * NH * DH, mask=there, other=0.0).to(tl.float32)
                o = _sigmoid(_times(h, r3, DOT_F32) + x3 + b3[None, :])
                i, f, z = g0 + x0 + b0[None, :], g1 + x1 + b1[None, :], _tanh(g2 + x2 + b2[None, :])
                if CELL == "lstm":
                    c = _sigmoid(f) * c + _sigmoid(i) * z
                    h = o * _tanh(c)
                else:
                    kept = _log_sigmoid(f) + m
                    top = tl.maximum(i, kept)
                    if FRESH:                                      # the first token has nothing to keep
                        top = tl.where(t == 0, i, top)
                    write, keep = tl.exp(i - top), tl.exp(tl.minimum(kept - top, 0.0))
                    c = keep * c + write * z
                    n = tl.maximum(keep * n + write, 1.0)
                    m = top
                    h = o * c / n
        tl.store(out_at, h, mask=there)
        if CELL == "lstm" or CELL == "slstm":
            tl.store(out_at + one_state * T, c, mask=there)
        if CELL == "slstm":
            tl.store(out_at + 2 * one_state * T, n, mask=there)
            tl.store(out_at + 3 * one_state * T, m, mask=there)
        wx_at += G_IN * NH * DH
        out_at += NH * DH

    tl.store(last_ptr + at, h, mask=there)
    if CELL == "lstm" or CELL == "slstm":
        tl.store(last_ptr + one_state + at, c, mask=there)
    if CELL == "slstm":
        tl.store(last_ptr + 2 * one_state + at, n, mask=there)
        tl.store(last_ptr + 3 * one_state + at, m, mask=there)
