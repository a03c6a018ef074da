"""MInference: each head has a shape, found once offline; the indices in it are found anew for each prompt.

Idea        A head's long-prompt attention looks like sinks and a window (A-shape), like columns and diagonals
            (vertical-slash), or like patches (blocks). Which of the three hardly changes with the text; where the columns
            and patches lie does. So search the shape once, estimate the indices online, run one sparse kernel.
Rule        offline, for each head: give every candidate the same number of tiles that a kernel really runs, and keep
            the one whose output is nearest to dense attention. online: apply the head's pattern; a single query is dense.
Cost        scored as the shapes say (A-shape none); tiles; build_dots = what a search on the spot spends.
Paper       Jiang et al. 2024, MInference 1.0, sections 3.2 and 3.3, algorithm 1 (kernel-aware search).
Differs     Budgets are shares of the keys, so that a pattern found on 1 024 tokens serves 4 096. Five candidates in place
            of the paper's six (theirs unverified), each tuned to the same tiles head by head; judged on a few query
            blocks. Heads without a pattern: vertical-slash, as published; but when no pattern at all is given, the
            first quarter of the text is searched, so that the rest is judged by patterns that never saw it; a quarter
            too short for every candidate to run its budget compares nothing, and the default stays.
            The published search ends by replacing both other winners by vertical-slash
            (tests/museum/attention/minference.py).
See also    streaming (the A-shape), vertical_slash, pooled_blocks; tests/attention/test_minference.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from tutor.attention.dense import attend, causal_mask, causal_pairs, check_qkv, positions, probs, stack_groups
from tutor.attention.methods.pooled_blocks import PooledBlocks, pooled
from tutor.attention.methods.streaming import Streaming
from tutor.attention.methods.vertical_slash import VerticalSlash, lines, plan
from tutor.attention.selection import Selection, Selector, finish, need, output_error, top_k
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder

SHAPES = ("a_shape", "vertical_slash", "blocks")
SIDE = 16        # rows and keys of a tile; published kernels use 64 at a hundred times the length


@dataclass(frozen=True)
class HeadPattern:
    """A shape and its budgets as shares of the keys.

    Attributes:
        shape: "a_shape", "vertical_slash" or "blocks".
        size: window, diagonals or blocks, as a share of the keys.
        columns: columns as a share of the keys; vertical-slash only.
    """

    shape: str
    size: float
    columns: float = 0.0

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {SHAPES}; got {self.shape!r}")
        if not (0 < self.size <= 1 and 0 <= self.columns <= 1):
            raise ValueError(f"size must be in (0, 1] and columns in [0, 1]; got {self.size} and {self.columns}. "
                             "They are shares of the keys")

    def selector(self, keys: int, side: int = SIDE) -> Selector:
        """The method with its budgets in numbers, for `keys` keys."""
        size = max(1, round(self.size * keys))
        if self.shape == "a_shape":
            return Streaming(sinks=side, window=size)
        if self.shape == "blocks":
            return PooledBlocks(blocks=max(1, round(self.size * keys / side)), side=side)
        return VerticalSlash(k_v=max(4, round(self.columns * keys)), k_s=size, tile=side)


def tiles_of(sel: Selection, side: int = SIDE) -> Tensor:
    """Tiles of `side` x `side` that a kernel runs for each head `(B, Hq)` when tiles lie on a grid: those with a key in them."""
    if sel.kind == "block" and sel.bq == sel.bk == side:
        return sel.blocks.sum((-1, -2))
    b, hq, t, s = sel.shape
    mask = torch.zeros(b, hq, -(-t // side) * side, -(-s // side) * side, dtype=torch.bool)
    mask[:, :, :t, :s] = sel.mask()
    return mask.reshape(b, hq, -(-t // side), side, -(-s // side), side).any(5).any(3).sum((-1, -2))


# ------------------------------------------------------------------------------------------------- offline search

@dataclass(frozen=True, eq=False)
class Found:
    """What a search measured; axis 0 of each tensor is the query head, axis 1 the candidate.

    Attributes:
        candidates: `(shape, columns)` pairs.
        size: the largest share of the keys that the budget allows.
        tiles: tiles run, as a share of those of dense attention.
        error: what was minimised: output error, or mass lost; infinite where the budget allows nothing.
    """

    candidates: tuple[tuple[str, float], ...]
    size: Tensor
    tiles: Tensor
    error: Tensor

    @property
    def best(self) -> Tensor:
        """Index of the winner of each head `(Hq,)`; ties to the earlier candidate."""
        return self.error.argmin(-1)

    @property
    def patterns(self) -> tuple[HeadPattern, ...]:
        """The winner of each head."""
        return tuple(HeadPattern(self.candidates[c][0], float(self.size[h, c]), self.candidates[c][1])
                     for h, c in enumerate(self.best.tolist()))


def default_candidates(share: float) -> tuple[tuple[str, float], ...]:
    """A-shape, three ways to split vertical-slash (few, some, many columns), blocks."""
    return (("a_shape", 0.0), ("vertical_slash", share / 32), ("vertical_slash", share / 8), ("vertical_slash", share / 2),
            ("blocks", 0.0))


def search(q: Tensor, k: Tensor, v: Tensor, candidates: Sequence[tuple[str, float]] | None = None, *, share: float = 1 / 8,
           score: str = "output", side: int = SIDE, blocks: int = 16) -> Found:
    """Which pattern is nearest to dense attention, head by head, when all run the same number of tiles?

    Args:
        candidates: `(shape, columns)` pairs; the size of each is fitted to the budget, on each head.
        share: tiles that may run, as a share of those of dense attention.
        score: "output" (relative output error) or "mass" (attention mass lost).
        blocks: query blocks that are judged, evenly spaced over the last three quarters of the rows.
    """
    check_qkv(q, k, v, every_row=True)
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1]; got {share}. It is the share of dense attention's tiles that may run")
    if score not in ("output", "mass"):
        raise ValueError(f"score must be 'output' or 'mass'; got {score!r}")
    candidates = tuple(candidates or default_candidates(share))
    t, keys, pos = q.shape[2], k.shape[2], positions(q, k)
    whole = torch.arange(t // side) if t >= side else torch.arange(1)
    judged = whole[len(whole) // 4:]
    judged = judged[torch.linspace(0, len(judged) - 1, min(blocks, len(judged))).round().long()]
    rows = (judged[:, None] * side + torch.arange(min(side, t))).flatten()                   # rows of the judged blocks
    some, at = q[:, :, rows], pos[rows]
    dense = q.shape[0] * int(((at[::side] + side - 1).clamp(max=keys - 1) // side + 1).sum())       # tiles, one head
    budget = math.floor(share * dense)
    votes = _ranks(q, k)
    truth, a = attend(some, k, v, dtype=torch.float32, pos_q=at).o, probs(some, k, dtype=torch.float32, pos_q=at)

    size, tiles, error = [], [], []
    for shape, columns in candidates:
        run = lambda n: _run(shape, columns, n, q, k, at, votes, side)
        most = keys if shape != "blocks" else -(-keys // side)
        n = _largest(lambda n: run(n)[0].sum(0), budget, q.shape[1], most)                  # (Hq,)
        count, mask = run(n)
        kept = attend(some, k, v, mask=mask, dtype=torch.float32, pos_q=at).o
        lost = output_error(kept, truth) if score == "output" else 1 - torch.where(mask, a, 0.0).sum(-1)
        fits = count.sum(0) <= budget
        size.append((n * (side if shape == "blocks" else 1) / keys).clamp(max=1.0))
        tiles.append(count.sum(0) / dense)
        error.append(torch.where(fits, lost.mean((0, 2)).double(), math.inf))
    return Found(candidates, torch.stack(size, -1), torch.stack(tiles, -1), torch.stack(error, -1))


def _ranks(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of every column and of every offset `(B, Hq, S)`, 0 the heaviest, as `VerticalSlash.choose` orders them."""
    vertical, slash = lines(q, k)
    vertical[..., :4], slash[..., :32] = math.inf, math.inf
    return tuple(x.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) for x in (vertical, slash))


def _run(shape: str, columns: float, n: Tensor, q: Tensor, k: Tensor, at: Tensor, votes: tuple[Tensor, Tensor],
         side: int) -> tuple[Tensor, Tensor]:
    """Tiles `(B, Hq)` and keys `(B, Hq, R, S)` of a candidate of size `n (Hq,)` for the rows at positions `at`."""
    b, hq, keys = q.shape[0], q.shape[1], k.shape[2]
    seen, n = causal_mask(at, keys), n[None, :, None, None]
    if shape == "vertical_slash":
        vertical, slash = votes
        todo = plan(vertical < max(4, round(columns * keys)), slash < n[..., 0], at, side)
        return todo.tiles(), todo.mask(len(at), keys) & seen
    if shape == "a_shape":
        key = torch.arange(keys)
        mask = ((key > at[:, None] - n) | (key < side)) & seen
    else:                                       # blocks of q that hold the judged rows: theirs are the scores needed
        number = at.div(side, rounding_mode="floor").unique()
        sel = _pooled_scores(q, k, number, side)
        rank = sel.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        best = (rank < n) & (sel > -math.inf)
        own = torch.searchsorted(number, at.div(side, rounding_mode="floor"))
        mask = best[:, :, own].repeat_interleave(side, -1)[..., :keys] & seen
    wide = torch.zeros(*mask.shape[:-1], -(-keys // side) * side, dtype=torch.bool)
    wide[..., :keys] = mask
    touched = torch.stack([rows.any(2) for rows in wide.split(side, 2)], 2)                 # (B, Hq, nQ, S)
    count = touched.unflatten(-1, (-1, side)).any(-1).sum((-1, -2))
    return count.expand(b, hq), mask.expand(b, hq, -1, -1)


def _pooled_scores(q: Tensor, k: Tensor, number: Tensor, side: int) -> Tensor:
    """Scores `(B, Hq, n, S / side)` of the query blocks `number`, `-inf` beyond the diagonal."""
    q_mean, row = pooled(q.double(), positions(q, k), side)
    q_mean, row = q_mean[:, :, torch.searchsorted(row, number)], number
    k_mean, column = pooled(k.double(), torch.arange(k.shape[2]), side)
    score = (stack_groups(q_mean, k.shape[1]) @ k_mean.transpose(-1, -2)).reshape(*q.shape[:2], len(row), len(column))
    return score.masked_fill(column > row[:, None], -math.inf)


def _largest(tiles, budget: int, heads: int, most: int) -> Tensor:
    """For each head the largest n in [1, most] with `tiles(n) <= budget`, by halving; 1 where not even that fits."""
    low, high = torch.ones(heads, dtype=torch.long), torch.full((heads,), most)
    while bool((low < high).any()):
        middle = (low + high + 1) // 2
        fits = tiles(middle) <= budget
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle - 1)
    return low


# -------------------------------------------------------------------------------------------------------- online

@method("minference", "attention", "MInference", paper="jiang2024minference", flags=("selector",),
        grid=tuple({"share": s} for s in (1 / 16, 1 / 8, 1 / 4)))      # with fewer tiles no A-shape fits on the searched quarter
@dataclass(frozen=True)
class MInference(Selector):
    """Every head by its own pattern. Without `patterns`, they are searched on the first quarter of the rows at `share`."""

    patterns: tuple[HeadPattern, ...] = ()
    share: float = 1 / 8
    side: int = SIDE

    def __post_init__(self):
        need(self.side, 1, "side")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1]; got {self.share}")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        (b, hq, t), s, pos = q.shape[:3], k.shape[2], positions(q, k, pos_q)
        if t == 1:                                                          # decoding: dense
            return finish(Selection.from_mask(torch.ones(1, 1, 1, s, dtype=torch.bool), q, k, pos_q=pos_q), trace=trace)
        patterns, spent = (self.patterns, 0) if self.patterns else self._search_first_quarter(q, k, v, pos)
        if len(patterns) > hq:
            raise ValueError(f"{len(patterns)} patterns for {hq} query heads; pass those of one layer")
        patterns = [*patterns, *[self._default] * (hq - len(patterns))]
        kept, total = torch.zeros(b, hq, t, s, dtype=torch.bool), Cost()
        for pattern in dict.fromkeys(patterns):                             # heads of one pattern together
            heads = torch.tensor([h for h, p in enumerate(patterns) if p == pattern])
            selector = pattern.selector(s, self.side)
            sel, cost = selector.select(q[:, heads], k[:, heads // (hq // k.shape[1])], pos_q=pos_q)
            kept[:, heads] = sel.mask()
            total += cost if pattern.shape != "a_shape" else cost + Cost(tiles=int(tiles_of(sel, self.side).sum()))
        sel = Selection.from_mask(kept, q, k, pos_q=pos_q)
        return finish(sel, scored=total["scored"], tiles=total["tiles"], build_dots=spent, trace=trace)

    def _search_first_quarter(self, q: Tensor, k: Tensor, v: Tensor | None, pos: Tensor) -> tuple[tuple[HeadPattern, ...], int]:
        seeing = (pos >= 0).nonzero()[:, 0]
        rows = seeing[: max(1, len(seeing) // 4)]
        if not len(rows):
            return (), 0
        known = slice(0, int(pos[rows[-1]]) + 1)
        trial = q[:, :, rows], k[:, :, known], (k if v is None else v)[:, :, known]
        found = search(*trial, share=self.share, side=self.side, score="mass" if v is None else "output")
        dense = q.shape[0] * q.shape[1] * causal_pairs(pos[rows], known.stop)
        fair = found.error.isfinite().all(-1).tolist()         # a candidate that could not run its budget was not compared
        return tuple(p if ok else self._default for p, ok in zip(found.patterns, fair)), dense * (1 + len(found.candidates))

    @property
    def _default(self) -> HeadPattern:
        """What a head without a pattern runs."""
        return HeadPattern("vertical_slash", self.share / 2, self.share / 32)

    def full(self, keys: int) -> MInference:
        return replace(self, patterns=(), share=1.0)


# -------------------------------------------------------------------------------------------- lines from text to text

ALWAYS = (4, 32)        # first columns and nearest diagonals that vertical-slash keeps whatever it finds


def heaviest_lines(q: Tensor, k: Tensor, count: int = 64, last_q: int = 64) -> Tensor:
    """bool `(2, B, Hq, S)`: `count` columns and `count` diagonals that weigh most for the last queries, ties to the lower number.

    Left out are lines that are kept in any case, and columns in or just before the last queries, which are neighbours only.
    """
    vertical, slash = lines(q, k, last_q=last_q)
    vertical[..., max(ALWAYS[0], k.shape[2] - 2 * last_q):] = -1
    vertical[..., : ALWAYS[0]], slash[..., : ALWAYS[1]] = -1, -1
    return torch.stack([top_k(x, count) for x in (vertical, slash)])


def kept_by_lines(q: Tensor, k: Tensor, chosen: Tensor, last_q: int = 64) -> Tensor:
    """Attention `(B, Hq)` of the last queries that lies on `chosen (2, B, Hq, S)` and on what is kept in any case."""
    columns, diagonals = chosen.clone()
    columns[..., : ALWAYS[0]], diagonals[..., : ALWAYS[1]] = True, True
    pos = positions(q, k)[-last_q:]
    back = pos[:, None] - torch.arange(k.shape[2])
    mask = (columns[:, :, None] | diagonals[:, :, back.clamp(min=0)]) & (back >= 0)
    return torch.where(mask, probs(q[:, :, -last_q:], k, pos_q=pos), 0.0).sum(-1).mean(-1)


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Shared over all, along the last axis of two sets of flags."""
    return (a & b).sum(-1) / (a | b).sum(-1)


# ------------------------------------------------------------------------------------------------------- recorded runs

@lru_cache(maxsize=1)
def shipped() -> dict:
    """The recorded search over all heads of the model, as `data/make_minference_heads.py` wrote it."""
    from tutor.data import path

    return json.loads(path("attention", "minference_heads.json").read_text(encoding="utf-8"))


def shipped_patterns(layer: int, run: int = 0) -> tuple[HeadPattern, ...]:
    """The patterns of one layer's query heads from a recorded run."""
    measured = shipped()["runs"][run]
    candidates = [tuple(c) for c in shipped()["candidates"]]
    best = torch.tensor(measured["error"][layer]).argmin(-1).tolist()
    return tuple(HeadPattern(candidates[c][0], measured["size"][layer][h][c], candidates[c][1]) for h, c in enumerate(best))
