"""Exact attention over the rows that a cache returns: the general form, and torch's fused kernel where that applies.

Masking     by position, never by storage index: a query at m sees the keys at 0 <= n <= m, and a row at -1 is padding,
            which is never read. A tree mask replaces this rule among the rows of one call only.
Shapes      B batch, T rows of this call, S rows of a part, Hq and Hkv query and KV heads, G = Hq / Hkv, D = head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tutor.attention.partial import Partial, from_logits, merge
from tutor.model.cache import Part

TILE = 1 << 24                                   # at most this many logits are held at once by the general attention


def attend_view(q: Tensor, view: list[Part], pos_q: Tensor, tree_mask: Tensor | None = None, *,
                rotate: Callable[[Tensor, Tensor], Tensor]) -> Partial:
    """Attention over all parts of a view; arguments as `Model.attend`. `rotate` turns the keys of a part not yet turned."""
    if not view:
        raise ValueError("view is empty; a cache must return at least the rows of this call")
    last = len(view) - 1
    whole = merge(*(_attend_part(q, part, pos_q, tree_mask if i == last else None, rotate) for i, part in enumerate(view)))
    return Partial(whole.o.to(q.dtype), whole.lse)


def _attend_part(q: Tensor, part: Part, pos_q: Tensor, tree_mask: Tensor | None,
                 rotate: Callable[[Tensor, Tensor], Tensor]) -> Partial:
    """Attention over the rows of one part, a tile of queries at a time."""
    B, Hq, T, D = q.shape
    Hkv, S = part.k.shape[1:3]
    if Hq % Hkv:
        raise ValueError(f"q has {Hq} heads, which is no multiple of the {Hkv} KV heads of the part; "
                         "every KV head must serve the same number of query heads")
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = part.k.to(wide), part.v.to(wide)
    if part.rope == "pre":
        k = rotate(k, part.pos.clamp(min=0))
    pos = part.pos if part.pos.dim() == 1 else part.pos[:, :, None, None]            # (S,) or (B, Hkv, 1, 1, S)
    padding = part.pos < 0
    if bool(padding.any()):                                                          # 0 * NaN is NaN
        v = v.masked_fill(padding[..., None], 0)
    grouped = q.to(wide).unflatten(1, (Hkv, Hq // Hkv)) / math.sqrt(D)               # (B, Hkv, G, T, D)
    tile = max(1, TILE // max(1, B * Hq * S))
    pieces = []
    for start in range(0, T, tile):
        rows = slice(start, start + tile)
        allowed = (pos >= 0) & (pos <= pos_q[rows, None])                            # (..., t, S)
        if tree_mask is not None:
            allowed = torch.cat([allowed[..., : S - T], tree_mask[rows].expand(*allowed.shape[:-1], T)], dim=-1)
        logits = grouped[..., rows, :] @ k[:, :, None].mT                            # (B, Hkv, G, t, S)
        if part.w is not None:
            logits = logits + part.w.to(wide).log()[:, :, None, None]
        pieces.append(from_logits(logits.masked_fill(~allowed, float("-inf")), v[:, :, None]))
    o = torch.cat([piece.o for piece in pieces], dim=-2) if len(pieces) > 1 else pieces[0].o
    lse = torch.cat([piece.lse for piece in pieces], dim=-1) if len(pieces) > 1 else pieces[0].lse
    return Partial(o.flatten(1, 2), lse.flatten(1, 2))


def attend_fast(q: Tensor, view: list[Part], pos_q: Tensor, tree_mask: Tensor | None) -> Tensor | None:
    """Exact attention by torch's fused kernel where it applies (one plain part); None where it does not.

    A single query whose keys are all visible is folded into its KV head: the G query heads become G rows of one
    unmasked call, so keys and values are neither repeated nor masked.
    """
    part = view[0]
    if len(view) > 1 or part.w is not None or part.rope == "pre" or part.pos.dim() > 1:
        return None
    (_, Hq, T, D), (Hkv, S) = q.shape, part.k.shape[1:3]
    if T == 1:
        low, high = part.pos.aminmax()
        if int(low) < 0 or int(high) > int(pos_q):
            return None
        folded = q.reshape(-1, Hkv, Hq // Hkv, D)                                # (B, Hkv, G, D)
        return F.scaled_dot_product_attention(folded, part.k, part.v).reshape(q.shape[0], Hq, 1, -1)
    if tree_mask is None and S == T and bool((pos_q[1:] > pos_q[:-1]).all()) and torch.equal(part.pos, pos_q):
        return F.scaled_dot_product_attention(q, part.k, part.v, is_causal=True, enable_gqa=Hq != Hkv)
    if bool((part.pos < 0).any()):
        return None
    allowed = part.pos <= pos_q[:, None]                                        # (T, S)
    if tree_mask is not None:
        allowed[:, S - T:] = tree_mask
    return F.scaled_dot_product_attention(q, part.k, part.v, attn_mask=allowed, enable_gqa=Hq != Hkv)
