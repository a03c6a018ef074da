"""Rotary position embedding (RoPE): a position is an angle, so a dot product sees only distances.

Idea        Cut a head's D numbers into D/2 pairs and turn pair i by the angle `pos * inv_freq[i]`. The product of a
            query at m and a key at n then depends on m - n alone, and two rotations in a row add their positions.
Rule        inv_freq[i] = base^(-2i/D); pair i is (x[i], x[i + D/2]), the two-halves layout of Llama checkpoints.
            rotate: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), that is x cos + swap_halves(x) (-sin, sin).
            unrotate: the same with -pos; rerotate: the same with the change of position, for a key that moves.
Cost        4 D multiplications per row; the table of cosines is made once per forward pass.
Paper       Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, section 3.2.2. [su2021roformer]
Differs     pairs are the two halves instead of neighbours: the same rotation after a fixed permutation of D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inv_freq(head_dim: int, base: float) -> Tensor:
    """The D/2 angular speeds, float32, fastest first."""
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim must be even and >= 2 for RoPE; got {head_dim}")
    return 1.0 / (base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))


def table(pos: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`(cos, cos)` and `(-sin, sin)` of positions `pos (..., T)`: two tensors `(..., T, D)`.

    Angles are computed in float32, as checkpoints are trained; in float64 when `dtype` is float64.
    """
    wide = torch.promote_types(dtype, torch.float32)
    angle = pos.to(wide)[..., None] * inv_freq.to(pos.device, wide)              # (..., T, D/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `x (..., T, D)` by a table; computed in the dtype of the table, returned in that of `x`."""
    wide = x.to(cos.dtype)
    return (wide * cos + wide.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


def rotate(x: Tensor, pos: Tensor, inv_freq: Tensor) -> Tensor:
    """Give rows their position.

    Args:
        x: `(B, H, T, D)`.
        pos: `(T,)`, or `(B, H, T)` when every head holds rows of its own.
        inv_freq: `(D/2,)`.
    """
    if x.shape[-1] != 2 * len(inv_freq):
        raise ValueError(f"x has head width {x.shape[-1]}; inv_freq with {len(inv_freq)} speeds is for "
                         f"width {2 * len(inv_freq)}")
    if pos.shape[-1] != x.shape[-2]:
        raise ValueError(f"pos {tuple(pos.shape)} must end in the number of rows of x {tuple(x.shape)}: {x.shape[-2]}")
    return apply(x, *table(pos, inv_freq, x.dtype))


def unrotate(x: Tensor, pos: Tensor, inv_freq: Tensor) -> Tensor:
    """Take the position away again: `unrotate(rotate(x, pos), pos) == x` up to rounding."""
    return rotate(x, -pos, inv_freq)


def rerotate(x: Tensor, delta: Tensor, inv_freq: Tensor) -> Tensor:
    """Move rotated rows by `delta` positions: `rerotate(rotate(x, p), d) == rotate(x, p + d)` up to rounding."""
    return rotate(x, delta, inv_freq)


def scaled_inv_freq(head_dim: int, base: float, scaling: dict | None) -> Tensor:
    """Speeds of a checkpoint that stretches its context: kinds "default", "linear" and "llama3".

    Raises:
        ValueError: another kind of scaling.
    """
    speeds = inv_freq(head_dim, base)
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind == "default":
        return speeds
    if kind == "linear":
        return speeds / scaling["factor"]
    if kind == "llama3":      # slow pairs are divided by the factor, fast ones kept, those between blended
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * speeds / (2 * math.pi)
        blend = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - blend) * speeds / scaling["factor"] + blend * speeds
    raise ValueError(f"rope scaling {kind!r} is not supported; tutor reads 'default', 'linear' and 'llama3'")
