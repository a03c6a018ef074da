"""BigBird: global blocks, a window of blocks, and a few random ones.

Idea        A random graph connects everybody in few steps, a window serves the neighbours, and global tokens make the
            whole thing as expressive as full attention. Take all three, in blocks, because hardware likes blocks.
Rule        query at position p lies in block I = p // block and reads, of the key blocks J <= I: the first n_glob, the
            n_win that end at I, and n_rand of the others, drawn without replacement for each head and block.
Cost        scored 0; loaded at most (n_glob + n_win + n_rand) block per row.
Paper       Zaheer et al. 2020, Big Bird, section 2 and appendix D; block counts of their base model unverified.
Differs     causal: the paper's window has a block on either side, its random blocks may lie ahead, and its global rows
            read everything. Drawn anew by seed, head and block alone, so that prefill and decode agree and a larger
            n_rand or n_win adds blocks to those of a smaller one.
See also    longformer, butterfly, random_k; tests/attention/test_baselines.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv, positions
from tutor.attention.selection import Selection, Selector, finish, need, top_k
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


@method("bigbird", "attention", "Global, window and random blocks (BigBird)", paper="zaheer2020bigbird",
        flags=("selector", "rowwise", "monotone"),
        grid=tuple({"block": 16, "n_win": n, "n_rand": n - 1, "n_glob": 1} for n in (2, 4, 8, 16, 32)))
@dataclass(frozen=True)
class BigBird(Selector):
    """Blocks of `block` keys: `n_glob` first ones, `n_win` last ones, `n_rand` random ones; `generator` replaces `seed`."""

    block: int = 64
    n_win: int = 3
    n_rand: int = 3
    n_glob: int = 2
    seed: int = 0

    def __post_init__(self):
        need(self.block, 1, "block")
        need(self.n_win, 1, "n_win", "a query reads at least its own block")
        need(self.n_rand, 0, "n_rand")
        need(self.n_glob, 0, "n_glob")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        (b, hq, t), s, pos = q.shape[:3], k.shape[2], positions(q, k, pos_q)
        seed = self.seed if generator is None else int(torch.randint(2**31, (), generator=generator))
        kept = torch.zeros(b, hq, t, s, dtype=torch.bool)
        for own in pos[pos >= 0].unique().div(self.block, rounding_mode="floor").unique().tolist():
            wide = self._blocks(b, hq, own, seed).repeat_interleave(self.block, -1)[..., :s]     # (B, Hq, keys so far)
            kept[:, :, pos.div(self.block, rounding_mode="floor") == own, : wide.shape[-1]] = wide[:, :, None]
        return finish(Selection.from_mask(kept, q, k, pos_q=pos_q), trace=trace)

    def _blocks(self, b: int, hq: int, own: int, seed: int) -> Tensor:
        """bool `(B, Hq, own + 1)`: the key blocks read by query block `own`."""
        block = torch.arange(own + 1)
        fixed = (block < self.n_glob) | (block > own - self.n_win)
        draw = torch.Generator().manual_seed((seed * 2654435761 + own) % 2**32)                  # 32 bits are all torch uses
        score = torch.rand(b, hq, own + 1, generator=draw).masked_fill(fixed, float("-inf"))
        return fixed | (top_k(score, self.n_rand) if self.n_rand else torch.zeros_like(score, dtype=torch.bool))

    def full(self, keys: int) -> BigBird:
        return replace(self, block=keys)
