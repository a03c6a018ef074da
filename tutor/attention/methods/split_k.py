"""Flash-Decoding: cut every context in the same number of splits, attend to each apart, merge in a second pass.

Idea        One query row a head leaves most of a device idle. Cut each head's keys in s splits that run side by side, keep
            each split's output and log-sum-exp, and let a second, small pass join them.
Rule        split i of an output of t tiles: tiles [i c, (i + 1) c), c = ceil(t / s); splits beyond the end are empty.
            Blocks start in order, each on the worker that is free first.
            s: 1 if the outputs fill 80 % of the workers; else the smallest s whose last wave is filled within 85 % of the
            best, among those that shorten a split. This rule is unverified (see Differs).
Cost        in units of one tile, O outputs of t tiles on C workers: ceil(O s / C) ceil(t / s) when s divides t, never
            more. Every key and value is read once; with s > 1 all partials are written and read again.
Paper       Dao et al. 2023, Flash-Decoding for long-context inference (the blog's section of that name).
Differs     how many splits to take is told from memory of the public code, unverified; it knows waves, no bandwidth.
            Both passes are simulated, and the second one's time is not counted.
See also    tutor.attention.methods.lean (equal shares instead); tutor.kernels.split_decode; tests/attention/test_lean.py
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tutor.attention.dense import check_qkv
from tutor.attention.methods.lean import (
    Piece,
    attend_piece,
    check_cover,
    check_positive,
    check_tiles,
    decode_cost,
    names_of,
    tiles_of,
    trace_schedule,
    write,
)
from tutor.attention.partial import Partial, empty_like, merge
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Trace


@method("split_k", "attention", "Flash-Decoding", paper="dao2023flashdecoding",
        kernel="tutor.kernels.split_decode.split_decode", flags=("attends", "exact", "schedule"),
        grid=({"splits": 1}, {"splits": 4}, {"splits": 16}))
@dataclass(frozen=True)
class SplitK:
    """`splits` splits of every context (0: chosen by `best_splits`) of `tile`-key tiles, on `workers` workers."""

    workers: int = 108
    tile: int = 256
    splits: int = 0

    def __post_init__(self):
        check_positive(workers=self.workers, tile=self.tile)
        if self.splits:
            check_positive(splits=self.splits)

    def schedule(self, q: Tensor, k: Tensor, *, lengths: Sequence[int] | None = None) -> list[Piece]:
        """Who runs which tiles for `q (B, Hq, T, D)` and `k (B, Hkv, S, D)`."""
        tiles = tiles_of(k, self.tile, lengths)
        splits = self.splits or best_splits(len(tiles), max(tiles, default=0), self.workers)
        return split_schedule(tiles, splits, self.workers)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Sequence[int] | None = None, causal: bool = True,
               scale: float | None = None, pos_q: Tensor | None = None) -> Partial:
        """Exact attention, in the dtype of `q`; `lengths` as in `run_splits`."""
        return run_splits(self.schedule(q, k, lengths=lengths), q, k, v, tile=self.tile, lengths=lengths, causal=causal,
                          scale=scale, pos_q=pos_q)

    def trace(self, q: Tensor, k: Tensor, *, lengths: Sequence[int] | None = None, merge: float = 0.25) -> Trace:
        """The schedule as a timeline, the second pass after all splits; `merge` as in `lean.trace_schedule`."""
        return trace_schedule(self.schedule(q, k, lengths=lengths), self.workers, method="split_k", merge=merge,
                              second_pass=True, names=names_of(k, lengths))

    def cost(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Sequence[int] | None = None) -> Cost:
        """Tiles, operations and words of one run; every partial of an output in several pieces is stored."""
        pieces = self.schedule(q, k, lengths=lengths)
        return decode_cost(q, k, v, lengths, pieces, stored=sum(not (p.host and p.finishing) for p in pieces))


def split_schedule(tiles_per_output: Sequence[int], splits: int, workers: int) -> list[Piece]:
    """Every output in `splits` splits, dealt in order to the worker that is free first (ties: the lower number)."""
    tiles = check_tiles(tiles_per_output)
    check_positive(splits=splits, workers=workers)
    free = [(0, worker) for worker in range(workers)]            # (tiles done, worker), a heap
    pieces = []
    for output, t in enumerate(tiles):
        size = math.ceil(t / splits)
        for first in range(0, t, size or 1):
            last = min(first + size, t)
            done, worker = heapq.heappop(free)
            pieces.append(Piece(worker, output, first, last, host=first == 0, finishing=last == t))
            heapq.heappush(free, (done + last - first, worker))
    return pieces


def run_splits(pieces: Sequence[Piece], q: Tensor, k: Tensor, v: Tensor, *, tile: int = 256,
               lengths: Sequence[int] | None = None, causal: bool = True, scale: float | None = None,
               pos_q: Tensor | None = None) -> Partial:
    """Attention by any schedule that covers every tile once: all partials, then one merge an output.

    Args:
        pieces: from `split_schedule(tiles_of(k, tile, lengths), splits, workers)`, or any other cover.
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; T = 1 in decode.
        lengths: keys of each request, `B` numbers in `[0, S]`; the keys behind are padding. S each unless given.
        pos_q: `(T,)` positions of the query rows; the last T of each request's own keys unless given.
    """
    check_qkv(q, k, v)
    check_cover(pieces, tiles_of(k, tile, lengths))
    parts: dict[int, list[Partial]] = {}
    for piece in pieces:
        parts.setdefault(piece.output, []).append(attend_piece(piece, q, k, v, tile, lengths, causal, scale, pos_q))
    whole = empty_like(q, v.shape[3])
    for output, found in parts.items():
        write(whole, output, merge(*found), k.shape[1])
    return whole


def split_makespan(outputs: int, tiles: int, splits: int, workers: int) -> int:
    """Makespan in whole waves of whole splits: ceil(O s / C) ceil(t / s); exact when `splits` divides `tiles`."""
    return math.ceil(outputs * splits / workers) * math.ceil(tiles / splits)


def best_splits(outputs: int, tiles: int, workers: int, *, most: int = 128) -> int:
    """How many splits to cut each of `outputs` contexts of `tiles` tiles in (the rule is unverified)."""
    check_positive(workers=workers, most=most)
    if outputs >= 0.8 * workers or tiles < 2 or outputs == 0:
        return 1
    candidates = [s for s in range(1, min(most, workers, tiles) + 1)
                  if s == 1 or math.ceil(tiles / s) < math.ceil(tiles / (s - 1))]     # another split must be shorter
    filled = {s: outputs * s / workers / math.ceil(outputs * s / workers) for s in candidates}
    return next(s for s in candidates if filled[s] >= 0.85 * max(filled.values()))
