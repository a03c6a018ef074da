"""Butterfly: each block reads the blocks whose number differs from its own in one bit.

Idea        The fast Fourier transform connects n points by log n layers of pairs that differ in one bit. Use the same
            wiring for attention: log n blocks per query, some near, some far, fixed before any data is seen.
Rule        query block I = p // block reads key block J <= I when J = I, when I xor J has one bit set, or when J = 0.
Cost        scored 0; loaded at most (2 + number of ones in I) block per row: it grows with the logarithm of the length.
Paper       Dao et al. 2022, FlashAttention, section 3.3 runs a fixed butterfly pattern block-sparse; theirs is defined
            on matrices and trained with.
Differs     our definition, in its spirit: causal, one fixed pattern for all heads, the first block always read (the
            sinks live there). With J < I, I xor J has one bit when J is I with one of its ones cleared.
See also    bigbird (random wiring), flash; tests/attention/test_baselines.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv, positions
from tutor.attention.selection import Selection, Selector, finish, need
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


def wired(i: Tensor, j: Tensor) -> Tensor:
    """Whether blocks i and j are connected; integers, broadcast."""
    differs = i ^ j
    return (differs & (differs - 1)).eq(0) | j.eq(0)        # at most one bit is set in i xor j


@method("butterfly", "attention", "Butterfly blocks", paper="dao2022flashattention",
        flags=("selector", "rowwise", "monotone"), grid=tuple({"block": b} for b in (16, 32, 64, 128, 256)))
@dataclass(frozen=True)
class Butterfly(Selector):
    """Blocks of `block` tokens, read where the numbers of query and key block differ in at most one bit."""

    block: int = 64

    def __post_init__(self):
        need(self.block, 1, "block")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        of = lambda places: places.div(self.block, rounding_mode="floor")
        mask = wired(of(positions(q, k, pos_q))[:, None], of(torch.arange(k.shape[2])))          # (T, S)
        return finish(Selection.from_mask(mask, q, k, pos_q=pos_q), trace=trace)

    def full(self, keys: int) -> Butterfly:
        return replace(self, block=keys)
