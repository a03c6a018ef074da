"""Rows: what one layer of a cache holds, as a policy sees it, and the attention that each row has received."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutor.model.cache import Observation, Part


@dataclass(frozen=True)
class Rows:
    """The rows of one layer, padded to a rectangle.

    Attributes:
        k, v: `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; views of the storage where all heads hold equally many rows.
        pos: int32 original positions, ascending in each head; `(1, 1, S)` when all heads hold the same rows, else
            `(B, Hkv, S)`; -1 marks padding, which stands at the end.
        w: multiplicities `(B, Hkv, S)` once rows were merged, else None.
        state: the policy's own columns, each `(B, Hkv, S)`, which follow their rows and leave with them.
        rope: "post" when `k` carries its rotation, "pre" when the cache rotates it as it hands it out.
    """

    k: Tensor
    v: Tensor
    pos: Tensor
    w: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    rope: str = "post"

    @property
    def counts(self) -> Tensor:
        """Rows of each head, `(1, 1)` or `(B, Hkv)`."""
        return (self.pos >= 0).sum(-1)


def part_logits(q: Tensor, part: Part, pos_q: Tensor) -> Tensor:
    """Scaled, masked logits of queries over a part: `(B, Hkv, G, T, S)`, in float32 at least.

    A row is allowed when `0 <= pos <= pos_q`: the mask goes by original position, never by storage index, since after
    an eviction the two no longer agree. A row that stands for `w` merged ones weighs `w` times as much: `+ log w`.

    Args:
        q: `(B, Hq, T, D)`, already rotated; pos_q: `(T,)`.
    """
    if part.rope != "post":
        raise ValueError(f"part.rope must be 'post' here; got {part.rope!r}: rotate its keys to their positions first")
    heads, kv_heads = q.shape[1], part.k.shape[1]
    if heads % kv_heads:
        raise ValueError(f"Hq={heads} is not a multiple of Hkv={kv_heads}; give q a head count divisible by {kv_heads}")
    dtype = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(dtype).unflatten(1, (kv_heads, -1))                             # (B, Hkv, G, T, D)
    logits = grouped @ part.k.to(dtype)[:, :, None].transpose(-1, -2) * q.shape[-1] ** -0.5
    if part.w is not None:
        logits = logits + part.w.to(dtype).log()[:, :, None, None]
    pos = part.pos if part.pos.dim() == 3 else part.pos[None, None]                # (B or 1, Hkv or 1, S)
    allowed = (pos[:, :, None] <= pos_q[:, None]) & (pos[:, :, None] >= 0)         # (B or 1, Hkv or 1, T, S)
    return logits.masked_fill(~allowed[:, :, None], float("-inf"))


def column_sums(observation: Observation, *, block: int = 256) -> Tensor:
    """Attention received by every attended row, summed over this call's queries, mean over each group: `(B, Hkv, S)`.

    Probabilities come from the log-sum-exp that the attention left behind, `p = exp(logit - lse)`, so the softmax is
    not done twice; queries go through in blocks, so the full matrix never stands in memory.
    """
    sums = []
    for part in observation.attended:
        total = 0.0
        for start in range(0, observation.q.shape[2], block):
            rows = slice(start, start + block)
            logits = part_logits(observation.q[:, :, rows], part, observation.pos_q[rows])
            lse = observation.lse[:, :, rows].to(logits.dtype).unflatten(1, (part.k.shape[1], -1))
            total = total + (logits - lse[..., None]).exp().sum(-2)                # (B, Hkv, G, S)
        sums.append(total.mean(2))
    return torch.cat(sums, -1)
