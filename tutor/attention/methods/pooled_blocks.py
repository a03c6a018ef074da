"""Pooled blocks: compare the mean query of a block with the mean key of each block, read the best blocks whole.

Idea        Some heads attend to patches: many neighbouring queries look at many neighbouring keys. One dot product of
            two means stands for a whole patch, and a chosen patch is read whole, as hardware likes it.
Rule        blocks of `side` positions; score_IJ = mean(q in block I) · mean(k in block J) for J <= I; each query block
            reads its `blocks` best key blocks, ties to the lower one.
Cost        scored = one dot product for each pair of blocks J <= I; tiles = blocks read; loaded at most blocks * side.
Paper       Jiang et al. 2024, MInference 1.0, section 3.3 and algorithm 3 (their default: 100 blocks of 64).
Differs     The last block is the mean of the rows it has; the published code pads with zeros, a whole block of them when
            the length is a multiple of 64 (tests/museum/attention/minference.py). Blocks are cut by position, so a row
            always sees a key of any block that was chosen for it.
See also    vertical_slash, minference; tests/attention/test_minference.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv, positions, stack_groups
from tutor.attention.selection import Selection, Selector, finish, need, top_k
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


def pooled(x: Tensor, pos: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Means `(B, H, n, D)` of the rows of `x (B, H, T, D)` in each block of `side` positions, and the blocks' numbers `(n,)`."""
    number, member = pos.div(side, rounding_mode="floor").unique(return_inverse=True)
    total = x.new_zeros(*x.shape[:2], len(number), x.shape[3]).index_add(2, member, x)
    return total / torch.bincount(member)[:, None], number


@method("pooled_blocks", "attention", "Block-sparse by pooled queries and keys", paper="jiang2024minference",
        flags=("selector", "monotone"), grid=tuple({"blocks": n} for n in (4, 8, 16, 32, 64)))
@dataclass(frozen=True)
class PooledBlocks(Selector):
    """The `blocks` best key blocks of `side` keys for each block of `side` queries."""

    blocks: int = 16
    side: int = 16

    def __post_init__(self):
        need(self.blocks, 1, "blocks", "a query block reads at least one key block")
        need(self.side, 1, "side")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        (b, hq, t, _), s, pos = q.shape, k.shape[2], positions(q, k, pos_q)
        seeing = pos >= 0                                                   # rows before the first key read nothing
        q_mean, row = pooled(q[:, :, seeing].double(), pos[seeing], self.side)
        k_mean, column = pooled(k.double(), torch.arange(s), self.side)
        score = (stack_groups(q_mean, k.shape[1]) @ k_mean.transpose(-1, -2)).reshape(b, hq, len(row), len(column))
        allowed = column <= row[:, None]                                    # (query blocks, key blocks)
        best = top_k(score.masked_fill(~allowed, -math.inf), self.blocks)   # (B, Hq, query blocks, key blocks)
        counters = {"scored": b * hq * int(allowed.sum()), "tiles": int(best.sum())}
        whole = bool(t) and int(pos[0]) >= 0 and int(pos[0]) % self.side == 0 and bool((pos.diff() == 1).all())
        if whole:                                                           # query blocks begin with the first row
            return finish(Selection.from_blocks(best, q, k, bq=self.side, bk=self.side, pos_q=pos_q), trace=trace, **counters)
        kept = torch.zeros(b, hq, t, s, dtype=torch.bool)
        member = torch.searchsorted(row, pos[seeing].div(self.side, rounding_mode="floor"))
        kept[:, :, seeing] = best[:, :, member].repeat_interleave(self.side, -1)[..., :s]
        return finish(Selection.from_mask(kept, q, k, pos_q=pos_q), trace=trace, **counters)

    def full(self, keys: int) -> PooledBlocks:
        return replace(self, blocks=keys)
