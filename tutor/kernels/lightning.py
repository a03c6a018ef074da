"""Lightning Attention-2: linear attention with decay, forward, backward and one decode step.

What moves: every row of q, k, v and o crosses the memory once for each slice of the value (or key) channels, and the state
not at all: it lives in registers while a program walks through the text. Inside a block of tokens the products are those of
attention with a decay mask; between blocks the state carries the past.

        program (head h, channels 0..31)      state KV (D, 32) in registers, from block to block
          tokens   0..63    64..127   128..191
                  [ intra ] [ intra ] [ intra ]         o = ((q k^T) * M) v      M_rc = e^{-s(r-c)}
             KV o----->o------->o--------->o            o += e^{-s(r+1)} q KV;  KV <- e^{-sL} KV + (e^{-s(L-1-r)} k)^T v

The way back walks twice: forward again for dq, which needs the states; from the end for dk and dv, which need the gradient
of the state. A program sums over the query heads of its group, so nothing is added atomically.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutor import kernels
from tutor.attention.methods.lightning import Attended, Grads, slopes
from tutor.kernels.flash import check_kernel
from tutor.kernels.roofline import BYTES, Roofline, hardware

kernels.require()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

SLICE = 32      # channels of a program: the state of a slice fits in its registers


def lightning(q: Tensor, k: Tensor, v: Tensor, s: Tensor | None = None, *, state: Tensor | None = None,
              block: int | None = None) -> Attended:
    """The same as `tutor.attention.methods.lightning.Lightning.attend`; the output can be differentiated.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, T, D)`, `(B, Hkv, T, Dv)`, one dtype of float32, float16, bfloat16.
        s: `(Hkv,)` decay rates >= 0; `slopes(Hkv)` unless given.
        state: `(B, Hkv, D, Dv)` after all earlier tokens; zeros unless given.
        block: tokens of a block, a power of two >= 16.

    Returns:
        o in the dtype of q, and the float32 state after the last token.
    """
    s, state, block = _ready(q, k, v, s, state, block)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad or state.requires_grad):
        return Attended(*_Differentiable.apply(q, k, v, s, state, block))
    return _forward(q, k, v, s, state, block)


def lightning_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, s: Tensor, *, state: Tensor | None = None,
                       dstate: Tensor | None = None, block: int | None = None) -> Grads:
    """The same as `tutor.attention.methods.lightning.lightning_backward`."""
    s, state, block = _ready(q, k, v, s, state, block)
    if do.shape != (*q.shape[:-1], v.shape[-1]):
        raise ValueError(f"do must have the output's shape {(*q.shape[:-1], v.shape[-1])}; got {tuple(do.shape)}")
    dstate = torch.zeros_like(state) if dstate is None else _state("dstate", dstate, state.shape)
    (b, hq, t, d), hkv, dv_ = q.shape, k.shape[1], v.shape[3]
    q, k, v, do = (x.contiguous() for x in (q, k, v, do.to(q.dtype)))
    dq, dk, dv, dstart = (torch.empty_like(x) for x in (q, k, v, state))
    if q.numel() and v.numel():
        options = _options(q, k, v, block)
        by_key = (b * hkv, triton.cdiv(d, options["SLICE"]))
        _dq_kernel[(b * hq, by_key[1])](do, k, v, s, state, dq, t, hkv, **options)
        _dk_kernel[by_key](do, q, v, s, dstate, dk, dstart, t, hkv, **options)
        _dv_kernel[(b * hkv, triton.cdiv(dv_, options["SLICE"]))](do, q, k, s, dstate, dv, t, hkv, **options)
    else:
        for x in (dq, dk, dv):
            x.zero_()
        dstart.copy_(dstate)
    return Grads(dq, dk, dv, dstart)


def recurrent_step(q: Tensor, k: Tensor, v: Tensor, s: Tensor, state: Tensor | None = None) -> Attended:
    """One token: `q (B, Hq, 1, D)`, `k (B, Hkv, 1, D)`, `v (B, Hkv, 1, Dv)`; reads and writes the state once."""
    if q.shape[2] != 1:
        raise ValueError(f"recurrent_step takes one token; got q of length {q.shape[2]}. Use lightning")
    s, state, _ = _ready(q, k, v, s, state, None)
    b, hkv, dv = q.shape[0], k.shape[1], v.shape[3]
    o, after = torch.empty(*q.shape[:3], dv, dtype=q.dtype, device=q.device), torch.empty_like(state)
    if o.numel():
        options = _options(q, k, v, 16)
        options = {name: options[name] for name in ("G", "D", "DV", "PAD_D", "SLICE")}
        grid = (b * hkv, triton.cdiv(dv, SLICE))
        _step_kernel[grid](q.contiguous(), k.contiguous(), v.contiguous(), s, state, o, after, hkv, **options)
    return Attended(o, after)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, s, state, block):
        ctx.save_for_backward(q, k, v, s, state)
        ctx.block = block
        return tuple(_forward(q, k, v, s, state, block))

    @staticmethod
    def backward(ctx, do, dstate):
        q, k, v, s, state = ctx.saved_tensors
        found = lightning_backward(do, q, k, v, s, state=state, dstate=dstate, block=ctx.block)
        return found.q, found.k, found.v, None, found.state, None


def _forward(q: Tensor, k: Tensor, v: Tensor, s: Tensor, state: Tensor, block: int) -> Attended:
    (b, hq, t, _), dv = q.shape, v.shape[3]
    o, after = torch.empty(b, hq, t, dv, dtype=q.dtype, device=q.device), torch.empty_like(state)
    if o.numel() == 0:
        return Attended(o, after.copy_(state))
    options = _options(q, k, v, block)
    _forward_kernel[(b * hq, triton.cdiv(dv, SLICE))](
        q.contiguous(), k.contiguous(), v.contiguous(), s, state, o, after, t, k.shape[1], **options)
    return Attended(o, after)


def _options(q: Tensor, k: Tensor, v: Tensor, block: int) -> dict:
    d, dv = q.shape[3], v.shape[3]
    pad = lambda width: max(16, triton.next_power_of_2(width))
    return {"G": q.shape[1] // k.shape[1], "D": d, "DV": dv, "PAD_D": pad(d), "PAD_DV": pad(dv), "SLICE": SLICE,
            "BLOCK": block, "DOT_F32": kernels.interpreted()}


def _ready(q: Tensor, k: Tensor, v: Tensor, s: Tensor | None, state: Tensor | None, block: int | None) -> tuple:
    """Decay rates and state in float32, and the size of a block; bad input is named."""
    from tutor.attention.dense import check_qkv

    check_qkv(q, k, v)
    check_kernel(q, k, v, block=block)
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"linear attention reads as many keys as queries; got T = {q.shape[2]} and S = {k.shape[2]}. "
                         "Pass earlier keys as `state`, the second result of the call that read them")
    s = (slopes(k.shape[1]) if s is None else torch.as_tensor(s)).to(q.device, torch.float32).contiguous()
    if s.shape != (k.shape[1],) or not bool(((s >= 0) & torch.isfinite(s)).all()):
        raise ValueError(f"s must hold one finite decay rate >= 0 per KV head, shape ({k.shape[1]},); got {s.tolist()}")
    shape = (*k.shape[:2], k.shape[3], v.shape[3])
    state = torch.zeros(shape, device=q.device) if state is None else _state("state", state, shape)
    return s, state, block or (32 if kernels.interpreted() else 64)


def _state(name: str, state: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(state.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape (B, Hkv, D, Dv) = {tuple(shape)}; got {tuple(state.shape)}")
    return state.to(torch.float32).contiguous()


def roofline(b: int, hq: int, hkv: int, t: int, d: int, dv: int | None = None, *, block: int = 64, dtype: str = "bfloat16",
             on: str = "H100 SXM") -> Roofline:
    """Bytes that must move (each row once, the state in and out) and operations of the block form, full blocks counted."""
    dv = dv or d
    moved = b * (hq + hkv) * t * (d + dv) * BYTES[dtype] + 2 * b * hkv * d * dv * 4
    return Roofline(moved, b * t * (2 * hq * (block * (d + dv) + d * dv) + 2 * hkv * d * dv), hardware(on), dtype)


# ------------------------------------------------------------------------------------------------------------ kernels

@triton.jit
def _rows(ptr, first, start, T, WIDTH: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr):
    """Rows start .. start + BLOCK of one head, all channels: `(BLOCK, PAD)`, zero where there is none."""
    r, d = start + tl.arange(0, BLOCK), tl.arange(0, PAD)
    there = (r < T)[:, None] & (d < WIDTH)[None, :]
    return tl.load(ptr + (first * T + r)[:, None] * WIDTH + d[None, :], mask=there, other=0.0)


@triton.jit
def _part(ptr, first, start, T, at, WIDTH: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr):
    """The same for channels at .. at + SLICE: `(BLOCK, SLICE)`."""
    r, d = start + tl.arange(0, BLOCK), at + tl.arange(0, SLICE)
    there = (r < T)[:, None] & (d < WIDTH)[None, :]
    return tl.load(ptr + (first * T + r)[:, None] * WIDTH + d[None, :], mask=there, other=0.0)


@triton.jit
def _put(ptr, x, first, start, T, at, WIDTH: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr):
    r, d = start + tl.arange(0, BLOCK), at + tl.arange(0, SLICE)
    there = (r < T)[:, None] & (d < WIDTH)[None, :]
    tl.store(ptr + (first * T + r)[:, None] * WIDTH + d[None, :], x, mask=there)


@triton.jit
def _dot(a, b, DOT_F32: tl.constexpr):
    """A product in the narrower precision of its two sides, summed in float32."""
    if DOT_F32:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _fades(s, start, T, BLOCK: tl.constexpr):
    """Decays of a block of L = min(BLOCK, T - start) tokens: mask (BLOCK, BLOCK), since and until (BLOCK,), whole."""
    r = tl.arange(0, BLOCK)
    gap = r[:, None] - r[None, :]
    left = tl.minimum(BLOCK, T - start)
    mask = tl.where(gap >= 0, tl.exp(-s * tl.maximum(gap, 0)), 0.0)
    since = tl.exp(-s * (r + 1))
    until = tl.where(r < left, tl.exp(-s * tl.maximum(left - 1 - r, 0)), 0.0)
    return mask, since, until, tl.exp(-s * left)


@triton.jit
def _forward_kernel(q_ptr, k_ptr, v_ptr, s_ptr, state_ptr, o_ptr, after_ptr, T, HKV, G: tl.constexpr, D: tl.constexpr,
                    DV: tl.constexpr, PAD_D: tl.constexpr, PAD_DV: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr,
                    DOT_F32: tl.constexpr):
    head, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * SLICE
    kv_head = head // G
    s = tl.load(s_ptr + kv_head % HKV)
    i, j = tl.arange(0, PAD_D), at + tl.arange(0, SLICE)
    where = (kv_head * D + i)[:, None] * DV + j[None, :]
    inside = (i < D)[:, None] & (j < DV)[None, :]
    kv = tl.load(state_ptr + where, mask=inside, other=0.0)                # (PAD_D, SLICE) float32
    for start in range(0, T, BLOCK):
        q, k = _rows(q_ptr, head, start, T, D, PAD_D, BLOCK), _rows(k_ptr, kv_head, start, T, D, PAD_D, BLOCK)
        v = _part(v_ptr, kv_head, start, T, at, DV, SLICE, BLOCK)
        mask, since, until, whole = _fades(s, start, T, BLOCK)
        a = _dot(q, tl.trans(k), DOT_F32) * mask                           # (BLOCK, BLOCK)
        o = _dot(a.to(v.dtype), v, DOT_F32) + since[:, None] * _dot(q, kv.to(q.dtype), DOT_F32)
        kv = whole * kv + _dot(tl.trans((until[:, None] * k).to(v.dtype)), v, DOT_F32)
        _put(o_ptr, o, head, start, T, at, DV, SLICE, BLOCK)
    if head % G == 0:
        tl.store(after_ptr + where, kv, mask=inside)


@triton.jit
def _dq_kernel(do_ptr, k_ptr, v_ptr, s_ptr, state_ptr, dq_ptr, T, HKV, G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
               PAD_D: tl.constexpr, PAD_DV: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr, DOT_F32: tl.constexpr):
    head, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * SLICE     # a slice of the key channels
    kv_head = head // G
    s = tl.load(s_ptr + kv_head % HKV)
    i, j = at + tl.arange(0, SLICE), tl.arange(0, PAD_DV)
    inside = (i < D)[:, None] & (j < DV)[None, :]
    kv = tl.load(state_ptr + (kv_head * D + i)[:, None] * DV + j[None, :], mask=inside, other=0.0)   # (SLICE, PAD_DV)
    for start in range(0, T, BLOCK):
        do, v = _rows(do_ptr, head, start, T, DV, PAD_DV, BLOCK), _rows(v_ptr, kv_head, start, T, DV, PAD_DV, BLOCK)
        k = _part(k_ptr, kv_head, start, T, at, D, SLICE, BLOCK)
        mask, since, until, whole = _fades(s, start, T, BLOCK)
        da = _dot(do, tl.trans(v), DOT_F32) * mask
        dq = _dot(da.to(k.dtype), k, DOT_F32) + since[:, None] * _dot(do, tl.trans(kv.to(do.dtype)), DOT_F32)
        kv = whole * kv + _dot(tl.trans((until[:, None] * k).to(v.dtype)), v, DOT_F32)
        _put(dq_ptr, dq, head, start, T, at, D, SLICE, BLOCK)


@triton.jit
def _dk_kernel(do_ptr, q_ptr, v_ptr, s_ptr, dstate_ptr, dk_ptr, dstart_ptr, T, HKV, G: tl.constexpr, D: tl.constexpr,
               DV: tl.constexpr, PAD_D: tl.constexpr, PAD_DV: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr,
               DOT_F32: tl.constexpr):
    kv_head, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * SLICE
    s = tl.load(s_ptr + kv_head % HKV)
    i, j = at + tl.arange(0, SLICE), tl.arange(0, PAD_DV)
    where = (kv_head * D + i)[:, None] * DV + j[None, :]
    inside = (i < D)[:, None] & (j < DV)[None, :]
    dkv = tl.load(dstate_ptr + where, mask=inside, other=0.0)              # (SLICE, PAD_DV): of the state after a block
    blocks = tl.cdiv(T, BLOCK)
    for n in range(0, blocks):
        start = (blocks - 1 - n) * BLOCK
        v = _rows(v_ptr, kv_head, start, T, DV, PAD_DV, BLOCK)
        mask, since, until, whole = _fades(s, start, T, BLOCK)
        dk = until[:, None] * _dot(v, tl.trans(dkv.to(v.dtype)), DOT_F32)
        dkv = whole * dkv
        for g in range(0, G):
            q = _part(q_ptr, kv_head * G + g, start, T, at, D, SLICE, BLOCK)
            do = _rows(do_ptr, kv_head * G + g, start, T, DV, PAD_DV, BLOCK)
            da = _dot(do, tl.trans(v), DOT_F32) * mask
            dk += _dot(tl.trans(da.to(q.dtype)), q, DOT_F32)
            dkv += _dot(tl.trans((since[:, None] * q).to(do.dtype)), do, DOT_F32)
        _put(dk_ptr, dk, kv_head, start, T, at, D, SLICE, BLOCK)
    tl.store(dstart_ptr + where, dkv, mask=inside)


@triton.jit
def _dv_kernel(do_ptr, q_ptr, k_ptr, s_ptr, dstate_ptr, dv_ptr, T, HKV, G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
               PAD_D: tl.constexpr, PAD_DV: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr, DOT_F32: tl.constexpr):
    kv_head, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * SLICE  # a slice of the value channels
    s = tl.load(s_ptr + kv_head % HKV)
    i, j = tl.arange(0, PAD_D), at + tl.arange(0, SLICE)
    inside = (i < D)[:, None] & (j < DV)[None, :]
    dkv = tl.load(dstate_ptr + (kv_head * D + i)[:, None] * DV + j[None, :], mask=inside, other=0.0)
    blocks = tl.cdiv(T, BLOCK)
    for n in range(0, blocks):
        start = (blocks - 1 - n) * BLOCK
        k = _rows(k_ptr, kv_head, start, T, D, PAD_D, BLOCK)
        mask, since, until, whole = _fades(s, start, T, BLOCK)
        dv = until[:, None] * _dot(k, dkv.to(k.dtype), DOT_F32)
        dkv = whole * dkv
        for g in range(0, G):
            q = _rows(q_ptr, kv_head * G + g, start, T, D, PAD_D, BLOCK)
            do = _part(do_ptr, kv_head * G + g, start, T, at, DV, SLICE, BLOCK)
            a = _dot(q, tl.trans(k), DOT_F32) * mask
            dv += _dot(tl.trans(a.to(do.dtype)), do, DOT_F32)
            dkv += _dot(tl.trans((since[:, None] * q).to(do.dtype)), do, DOT_F32)
        _put(dv_ptr, dv, kv_head, start, T, at, DV, SLICE, BLOCK)


@triton.jit
def _step_kernel(q_ptr, k_ptr, v_ptr, s_ptr, state_ptr, o_ptr, after_ptr, HKV, G: tl.constexpr, D: tl.constexpr,
                 DV: tl.constexpr, PAD_D: tl.constexpr, SLICE: tl.constexpr):
    kv_head, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * SLICE
    i, j = tl.arange(0, PAD_D), at + tl.arange(0, SLICE)
    where = (kv_head * D + i)[:, None] * DV + j[None, :]
    inside = (i < D)[:, None] & (j < DV)[None, :]
    k = tl.load(k_ptr + kv_head * D + i, mask=i < D, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + kv_head * DV + j, mask=j < DV, other=0.0).to(tl.float32)
    kv = tl.exp(-tl.load(s_ptr + kv_head % HKV)) * tl.load(state_ptr + where, mask=inside, other=0.0)
    kv += k[:, None] * v[None, :]
    tl.store(after_ptr + where, kv, mask=inside)
    for g in range(0, G):
        head = kv_head * G + g
        q = tl.load(q_ptr + head * D + i, mask=i < D, other=0.0).to(tl.float32)
        tl.store(o_ptr + head * DV + j, tl.sum(q[:, None] * kv, axis=0), mask=j < DV)
