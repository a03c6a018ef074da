"""Vertical-slash: the columns and the diagonals that the last queries look at, read in tiles.

Idea        Many heads look at a few fixed words (columns) and at fixed distances back (diagonals, slashes). Which ones
            changes with the text, but the last 64 queries betray them: look at their attention only, keep the
            heaviest columns and diagonals, and read those for every query.
Rule        A^ = softmax of the last `last_q` query rows, causal. column_j = sum_r A^_rj; slash_o = sum_r A^[r, p_r - o].
            Keep the k_v heaviest columns and the k_s heaviest offsets; the first `sinks` columns and offsets below
            `near` come first. A block of `tile` query rows that begins at position a needs, for each offset o, the keys
            [a - o, a - o + tile). Cover these with tiles of `tile` keys from left to right, each beginning at the first
            needed key that no tile holds; whole tiles are read. Kept columns outside the tiles are gathered.
Cost        scored = the causal pairs of the last rows; tiles = tiles of the ranges + columns in chunks of `tile`;
            loaded = every key of the tiles and the columns, up to the row's own: a slash is a band `tile` wide or wider.
Paper       Jiang et al. 2024, MInference 1.0, section 3.3 and algorithm 2.
Differs     `tile=1` reads the bare lines. Published: tile 64, sinks 30, near 100, k_v >= 30, k_s >= 50, budgets up to
            (1000, 6096) for prompts of 100 000 tokens; here scaled to a few thousand. Queries may be fewer than keys: an
            offset is a distance between positions. The forced lines count in k_v and k_s.
See also    vertical, pooled_blocks, minference (which head gets which), tests/attention/test_minference.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import causal_mask, causal_pairs, check_qkv, positions, probs
from tutor.attention.selection import Selection, Selector, finish, need, top_k
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


def lines(q: Tensor, k: Tensor, *, last_q: int = 64, pos_q: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention of the last `last_q` rows summed down columns and along diagonals: two `(B, Hq, S)`, index j and offset o."""
    pos = positions(q, k, pos_q)[-last_q:]
    a = probs(q[:, :, -last_q:], k, pos_q=pos)                              # (B, Hq, R, S)
    return a.sum(2), slash_sums(a, pos)


def slash_sums(a: Tensor, pos: Tensor) -> Tensor:
    """`(B, Hq, R, S) -> (B, Hq, S)`: entry o sums a[r, pos_r - o], the weight that rows give to the key o back."""
    back = pos[:, None] - torch.arange(a.shape[-1])                         # (R, S) offset of each pair; < 0 lies ahead
    weight = torch.where(back >= 0, a, 0.0)
    return torch.zeros_like(a[:, :, 0]).index_add(-1, back.clamp(min=0).flatten(), weight.flatten(2))


@dataclass(frozen=True, eq=False)
class Plan:
    """What a blocked kernel runs: for each block of query rows a list of key tiles, and a list of single keys.

    Attributes:
        tile: rows of a query block and keys of a tile.
        starts: int32 `(B, Hq, nQ, N)`, first key of each tile, ascending, `-1` after the last.
        columns: int32 `(B, Hq, nQ, C)`, keys outside the tiles, ascending, `-1` after the last.
    """

    tile: int
    starts: Tensor
    columns: Tensor

    def tiles(self) -> Tensor:
        """Tiles run for each head `(B, Hq)`: those of the ranges, and the gathered columns in chunks."""
        chunks = ((self.columns >= 0).sum(-1) + self.tile - 1) // self.tile
        return ((self.starts >= 0).sum(-1) + chunks).sum(-1)

    def mask(self, rows: int, keys: int) -> Tensor:
        """bool `(B, Hq, rows, keys)`: every key that is read, before the causal cut."""
        edges = torch.zeros(*self.starts.shape[:3], keys + self.tile + 1, dtype=torch.int8)
        begin, there = self.starts.long().clamp(min=0), (self.starts >= 0).to(torch.int8)
        edges.scatter_add_(-1, begin, there).scatter_add_(-1, begin + self.tile, -there)
        read = edges.cumsum(-1, dtype=torch.int8)[..., : keys + 1] > 0
        read.scatter_(-1, torch.where(self.columns >= 0, self.columns, keys).long(), True)      # absent ones: a spare column
        return read[..., :keys].repeat_interleave(self.tile, 2)[:, :, :rows]


def plan(columns: Tensor, slashes: Tensor, pos: Tensor, tile: int) -> Plan:
    """Tiles for kept columns and offsets, two bool `(B, Hq, S)`, of queries at consecutive positions `pos (T,)`."""
    b, hq, keys = columns.shape
    first = pos[::tile]                                                     # (nQ,) where each query block begins
    last = torch.stack([rows.max() for rows in pos.split(tile)]) if len(pos) else pos
    order = torch.where(slashes, torch.arange(keys), -1).sort(-1, descending=True).values       # far to near: ascending keys
    end = torch.full((b, hq, len(first)), -1)                               # keys below it are in a tile, or not needed
    starts = []
    for o in order[..., : int(slashes.sum(-1).max()) if slashes.numel() else 0].unbind(-1):     # (B, Hq) one offset a head
        low = first - o[..., None]                                          # (B, Hq, nQ) [low, low + tile) is needed
        begin = torch.maximum(low.clamp(min=0), end)
        new = (o[..., None] >= 0) & (low + tile > begin) & (begin <= last)
        starts.append(torch.where(new, begin, -1))
        end = torch.where(new, begin + tile, end)
    tiles = torch.stack(starts, -1) if starts else torch.zeros(b, hq, len(first), 0, dtype=torch.long)
    bare = Plan(tile, tiles.int(), torch.full((b, hq, len(first), 1), -1, dtype=torch.int32))
    inside = bare.mask(len(first) * tile, keys)[:, :, ::tile]               # (B, Hq, nQ, S)
    alone = columns[:, :, None] & ~inside & causal_mask(last, keys)
    return Plan(tile, _packed(tiles), _packed(torch.where(alone, torch.arange(keys), -1)))


def _packed(x: Tensor) -> Tensor:
    """Entries >= 0 moved to the front of the last axis in ascending order, the rest cut or `-1`; int32."""
    most = int((x >= 0).sum(-1).max()) if x.numel() else 0
    big = torch.iinfo(torch.int64).max
    x = torch.where(x >= 0, x.long(), big).sort(-1).values[..., :most]
    return torch.where(x < big, x, -1).int()


@method("vertical_slash", "attention", "Vertical-slash", paper="jiang2024minference",
        kernel="tutor.kernels.vertical_slash.vertical_slash_attention",
        flags=("selector", "monotone"),
        grid=tuple({"k_v": v, "k_s": s} for v, s in ((16, 32), (32, 64), (64, 128), (128, 256), (256, 512))))
@dataclass(frozen=True)
class VerticalSlash(Selector):
    """`k_v` columns and `k_s` diagonals estimated from the last `last_q` rows, read in tiles of `tile`."""

    k_v: int = 64
    k_s: int = 128
    tile: int = 16
    last_q: int = 64
    sinks: int = 4
    near: int = 32

    def __post_init__(self):
        need(self.k_v, 1, "k_v", "keep at least one column")
        need(self.k_s, 1, "k_s", "offset 0 is the query's own key")
        need(self.tile, 1, "tile", "1 reads the bare lines")
        need(self.last_q, 1, "last_q", "some rows must be looked at")
        need(self.sinks, 0, "sinks")
        need(self.near, 1, "near", "offset 0 must be kept, or a row may be empty")

    def choose(self, q: Tensor, k: Tensor, *, pos_q: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Kept columns and kept offsets, two bool `(B, Hq, S)`."""
        vertical, slash = lines(q, k, last_q=self.last_q, pos_q=pos_q)
        vertical[..., : self.sinks], slash[..., : self.near] = math.inf, math.inf
        return top_k(vertical, self.k_v), top_k(slash, self.k_s)

    def plan(self, q: Tensor, k: Tensor, *, pos_q: Tensor | None = None) -> Plan:
        """What the kernel runs."""
        return plan(*self.choose(q, k, pos_q=pos_q), positions(q, k, pos_q), self.tile)

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        pos = positions(q, k, pos_q)
        if self.tile > 1 and bool((pos.diff() != 1).any()):
            raise ValueError(f"tile={self.tile} covers neighbouring queries: pos_q must count up by one")
        todo = self.plan(q, k, pos_q=pos_q)
        scored = q.shape[0] * q.shape[1] * causal_pairs(pos[-self.last_q:], k.shape[2])
        sel = Selection.from_mask(todo.mask(q.shape[2], k.shape[2]), q, k, pos_q=pos_q)
        return finish(sel, scored=scored, tiles=int(todo.tiles().sum()), trace=trace)

    def full(self, keys: int) -> VerticalSlash:
        return replace(self, k_v=keys)
