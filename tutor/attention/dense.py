"""Dense attention in float64: the truth that every other method is measured against.

Idea        Each query weighs every key it may see by the exponential of their scaled dot product, and returns the
            weighted mean of the values. Nothing is left out and nothing is approximated.
Rule        s_ij = q_i·k_j / sqrt(D);  L_i = log sum_j exp s_ij;  A_ij = exp(s_ij - L_i);  o_i = sum_j A_ij v_j.
            Query row t stands at position S - T + t and sees keys j <= its position (bottom-right alignment).
            A row that sees nothing returns o = 0, L = -inf: never NaN.
Heads       Query head h reads KV head h // (Hq // Hkv). Keys are never copied: the query heads that share a KV head
            are laid under each other as more rows of one matrix product.
Differs     torch's `is_causal=True` aligns top-left, so it agrees with this file only where T == S.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor.attention.partial import Partial, from_logits


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, mask: Tensor | None = None,
           scale: float | None = None, dtype: torch.dtype = torch.float64, pos_q: Tensor | None = None,
           check: bool = False) -> Partial:
    """Exact attention.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`.
        mask: bool, broadcastable to `(B, Hq, T, S)`; True where a key is allowed. Intersected with the causal rule.
        scale: factor of the dot products; `1 / sqrt(D)` unless given.
        dtype: what everything is computed in.
        pos_q: `(T,)` positions of the query rows, `S - T + t` unless given.
        check: refuse NaN and infinities (one more pass over the inputs).
    """
    check_qkv(q, k, v, check=check)
    s = logits(q, k, causal=causal, mask=mask, scale=scale, dtype=dtype, pos_q=pos_q)        # (B, Hq, T, S)
    part = from_logits(stack_groups(s, k.shape[1]), v.to(dtype))                            # (B, Hkv, G*T, Dv)
    return Partial(part.o.reshape(*q.shape[:-1], -1), part.lse.reshape(q.shape[:-1]))


def probs(q: Tensor, k: Tensor, *, causal: bool = True, mask: Tensor | None = None, scale: float | None = None,
          dtype: torch.dtype = torch.float64, pos_q: Tensor | None = None) -> Tensor:
    """Attention weights `A (B, Hq, T, S)`; a row that sees nothing is all zeros."""
    s = logits(q, k, causal=causal, mask=mask, scale=scale, dtype=dtype, pos_q=pos_q)
    return torch.softmax(s, dim=-1).nan_to_num(0.0)      # softmax of a row of -inf is the only NaN there can be


def logits(q: Tensor, k: Tensor, *, causal: bool = True, mask: Tensor | None = None, scale: float | None = None,
           dtype: torch.dtype = torch.float64, pos_q: Tensor | None = None) -> Tensor:
    """Scaled dot products `(B, Hq, T, S)`, `-inf` where a key is not allowed."""
    check_qkv(q, k)
    rows = stack_groups(q.to(dtype), k.shape[1])                                            # (B, Hkv, G*T, D)
    s = (rows @ k.to(dtype).transpose(-1, -2)).reshape(*q.shape[:-1], k.shape[2])           # (B, Hq, T, S)
    s *= 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if causal:
        s.masked_fill_(~causal_mask(positions(q, k, pos_q), k.shape[2]), float("-inf"))
    if mask is not None:
        check_mask(mask, s.shape)
        s.masked_fill_(~mask, float("-inf"))
    return s


# ------------------------------------------------------------------------------------- what every method shares

def stack_groups(x: Tensor, kv_heads: int) -> Tensor:
    """`(B, Hq, T, X) -> (B, Hkv, G*T, X)`: the G consecutive query heads of one KV head, one under the other."""
    b, hq, t, width = x.shape
    return x.reshape(b, kv_heads, hq // kv_heads * t, width)


def positions(q: Tensor, k: Tensor, pos_q: Tensor | None = None) -> Tensor:
    """Positions `(T,)` of the query rows, int64: `S - T + t`, or `pos_q` checked."""
    t, s = q.shape[2], k.shape[2]
    if pos_q is None:
        return torch.arange(s - t, s, device=q.device)
    pos_q = torch.as_tensor(pos_q, device=q.device)
    if pos_q.shape != (t,) or pos_q.is_floating_point() or pos_q.dtype == torch.bool:
        raise ValueError(f"pos_q must hold one whole number per query row, shape ({t},); "
                         f"got {pos_q.dtype} of shape {tuple(pos_q.shape)}")
    return pos_q.long()


def causal_mask(pos: Tensor, keys: int) -> Tensor:
    """bool `(T, S)`: key j is allowed for a query at position p when `j <= p`."""
    return torch.arange(keys, device=pos.device) <= pos[:, None]


def causal_pairs(pos: Tensor, keys: int) -> int:
    """How many (query, key) pairs a causal mask allows, for one head."""
    return int((pos + 1).clamp(0, keys).sum())


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless `mask` is bool and broadcasts to `shape`."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True where a key is allowed; got {mask.dtype}. "
                         "Additive masks: pass `mask = bias > -inf`")
    try:
        fits = torch.broadcast_shapes(mask.shape, shape) == tuple(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not broadcast to (B, Hq, T, S) = {tuple(shape)}")


def check_qkv(q: Tensor, k: Tensor, v: Tensor | None = None, *, check: bool = False, every_row: bool = False) -> None:
    """Raise `ValueError` for tensors that no attention can be computed from.

    Args:
        check: look at the numbers too, and refuse NaN and infinities (one pass over the data).
        every_row: refuse T > S, for methods that cannot define a row which sees no key.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x is None:
            continue
        if x.ndim != 4:
            raise ValueError(f"{name} must have four axes (B, H, length, width); got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point; got {x.dtype}. Convert it with {name}.float()")
        if check and not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} holds NaN or infinity; look for it upstream, or mask those keys out")
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q and k differ in batch: {q.shape[0]} and {k.shape[0]}")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k differ in head width: {q.shape[3]} and {k.shape[3]}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"Hq must be a multiple of Hkv; got {q.shape[1]} query heads and {k.shape[1]} KV heads")
    if v is not None and v.shape[:3] != k.shape[:3]:
        raise ValueError(f"k and v must share batch, heads and length; got {tuple(k.shape)} and {tuple(v.shape)}")
    if every_row and q.shape[2] > k.shape[2]:
        raise ValueError(f"T = {q.shape[2]} queries but S = {k.shape[2]} keys: the first {q.shape[2] - k.shape[2]} "
                         "causal rows see no key, which this method does not define; drop those rows")
