"""LeanAttention: decode in equal shares of tiles, whatever head or request they belong to.

Idea        A decoding step has one query row a head, so work can be shared out along the context only. Put the key tiles of
            all heads and requests in one line and cut the line in equal contiguous pieces, one a worker. A piece may end
            in the middle of a head: partial attention joins exactly at any cut, so the cut needs to follow nothing.
Rule        output = one (request, KV head), its G query heads stacked as rows; t_o = ceil(S_o / tile) tiles; T = sum t_o.
            With h = ceil(T / C) the first T - (h - 1) C workers take h tiles, the others h - 1.
            The worker of an output's tile 0 hosts it. A worker whose piece starts inside an output leaves a partial in
            its scratch slot; the host merges the slots of the workers after it until the output's last tile is reached.
            Only the first piece of a worker can start inside an output: one slot a worker is enough.
Cost        in units of one tile, O outputs of t tiles on C workers: ceil(O t / C); nothing can be below O t / C.
            Every key and value is read once; a partial (Dv + 1 words a row) is written and read for each piece that is
            no host, fewer than C of them. Waiting and launches are not counted.
Paper       Sanovar et al. 2024, Lean Attention. The fair split, and a tile of 256 keys for heads of 64 (128 for 128),
            follow public ports of the kernel, not the authors' text: unverified.
Differs     a schedule that is simulated: partials first, hosts after them, in place of flags that a host waits for.
            A slot holds (o, log-sum-exp), the paper's an unnormalised output with its maximum and sum.
See also    tutor.attention.methods.split_k (the same number of pieces for every head); tutor.kernels.lean_decode;
            tests/attention/test_lean.py
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from tutor.attention.dense import causal_mask, check_qkv, positions
from tutor.attention.methods.flash import tile_logits
from tutor.attention.partial import Partial, empty_like, from_logits, merge
from tutor.catalog import method
from tutor.cost import Cost
from tutor.timeline import Timeline
from tutor.trace import Trace


@dataclass(frozen=True)
class Piece:
    """Tiles `[first, last)` of one output, run by one worker without a break.

    Attributes:
        host: it holds the output's first tile.
        finishing: it holds the output's last tile.
    """

    worker: int
    output: int
    first: int
    last: int
    host: bool
    finishing: bool

    @property
    def tiles(self) -> int:
        return self.last - self.first


@method("lean", "attention", "LeanAttention", paper="sanovar2024lean",
        kernel="tutor.kernels.lean_decode.lean_decode", flags=("attends", "exact", "schedule"),
        grid=({"workers": 1}, {"workers": 16}, {"workers": 108}))
@dataclass(frozen=True)
class Lean:
    """Equal shares of `tile`-key tiles for `workers` workers (108: the multiprocessors of an A100)."""

    workers: int = 108
    tile: int = 256

    def __post_init__(self):
        check_positive(workers=self.workers, tile=self.tile)

    def schedule(self, q: Tensor, k: Tensor, *, lengths: Sequence[int] | None = None) -> list[Piece]:
        """Who runs which tiles for `q (B, Hq, T, D)` and `k (B, Hkv, S, D)`."""
        return schedule(tiles_of(k, self.tile, lengths), self.workers)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Sequence[int] | None = None, causal: bool = True,
               scale: float | None = None, pos_q: Tensor | None = None) -> Partial:
        """Exact attention, in the dtype of `q`; `lengths` as in `run`."""
        return run(self.schedule(q, k, lengths=lengths), q, k, v, tile=self.tile, lengths=lengths, causal=causal,
                   scale=scale, pos_q=pos_q)

    def trace(self, q: Tensor, k: Tensor, *, lengths: Sequence[int] | None = None, merge: float = 0.25) -> Trace:
        """The schedule as a timeline; `merge` as in `trace_schedule`."""
        return trace_schedule(self.schedule(q, k, lengths=lengths), self.workers, method="lean", merge=merge,
                              names=names_of(k, lengths))

    def cost(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Sequence[int] | None = None) -> Cost:
        """Tiles, operations and words of one run; a partial that is no host's is written once and read once."""
        pieces = self.schedule(q, k, lengths=lengths)
        return decode_cost(q, k, v, lengths, pieces, stored=fixups(pieces))


def schedule(tiles_per_output: Sequence[int], workers: int) -> list[Piece]:
    """Contiguous shares whose sizes differ by one at most, in order of worker; an empty output has no piece.

    Raises:
        ValueError: a count of tiles is negative or not whole, or workers < 1.
    """
    tiles = check_tiles(tiles_per_output)
    check_positive(workers=workers)
    most = math.ceil(sum(tiles) / workers)
    full = sum(tiles) - (most - 1) * workers                     # so many workers take `most` tiles, the others one less
    pieces, output, done = [], 0, 0
    for worker in range(workers):
        left = most if worker < full else most - 1
        while left:
            while done == tiles[output]:                         # finished, or empty from the start
                output, done = output + 1, 0
            last = min(done + left, tiles[output])
            pieces.append(Piece(worker, output, done, last, host=done == 0, finishing=last == tiles[output]))
            left, done = left - (last - done), last
    return pieces


def run(pieces: Sequence[Piece], q: Tensor, k: Tensor, v: Tensor, *, tile: int = 256, lengths: Sequence[int] | None = None,
        causal: bool = True, scale: float | None = None, pos_q: Tensor | None = None) -> Partial:
    """Attention by a schedule of contiguous shares.

    Args:
        pieces: from `schedule(tiles_of(k, tile, lengths), workers)`.
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; T = 1 in decode.
        lengths: keys of each request, `B` numbers in `[0, S]`; the keys behind are padding. S each unless given.
        pos_q: `(T,)` positions of the query rows; the last T of each request's own keys unless given.

    Raises:
        ValueError: the pieces do not cover every tile once, or need more than one scratch slot a worker.
    """
    check_qkv(q, k, v)
    check_cover(pieces, tiles_of(k, tile, lengths))
    whole, scratch = empty_like(q, v.shape[3]), {}
    for piece in pieces:
        if not piece.host:
            if piece.worker in scratch:
                raise ValueError(f"worker {piece.worker} starts inside two outputs but has one scratch slot; "
                                 "make the pieces with schedule()")
            scratch[piece.worker] = piece, attend_piece(piece, q, k, v, tile, lengths, causal, scale, pos_q)
    for piece in pieces:
        if piece.host:
            part, reached = attend_piece(piece, q, k, v, tile, lengths, causal, scale, pos_q), piece
            while not reached.finishing:
                after, more = scratch.get(reached.worker + 1, (None, None))
                if after is None or (after.output, after.first) != (piece.output, reached.last):
                    raise ValueError(f"worker {reached.worker + 1} does not go on with output {piece.output} at tile "
                                     f"{reached.last}; make the pieces with schedule()")
                part, reached = merge(part, more), after
            write(whole, piece.output, part, k.shape[1])
    return whole


# --------------------------------------------------------------------------------------------------------- as a timeline

def trace_schedule(pieces: Sequence[Piece], workers: int, *, method: str = "lean", merge: float = 0.25,
                   second_pass: bool = False, names: Sequence[str] | None = None) -> Trace:
    """A schedule as lanes and intervals, "timeline/1": a tile takes one unit of time, joining one stored partial `merge`.

    Args:
        second_pass: partials wait until all of them are stored, then the outputs' merges are dealt to the workers
            (Flash-Decoding); else the host of an output merges, as soon as its own piece and the partials are done.
        names: of the outputs; "head 0", "head 1" … unless given.
    """
    check_positive(workers=workers)
    outputs = max((piece.output for piece in pieces), default=-1) + 1
    line = Timeline(method, [f"worker {w}" for w in range(workers)], unit="tiles", params={"workers": workers, "merge": merge},
                    groups=list(names or [f"head {o}" for o in range(outputs)]), group_word="head", mark="host of its head",
                    arrow="leaves a partial for")
    whole = {piece.output for piece in pieces if piece.host and piece.finishing}
    free, hosts, stored = [0.0] * workers, {}, {}
    for piece in pieces:
        start, free[piece.worker] = free[piece.worker], free[piece.worker] + piece.tiles
        alone = piece.output in whole
        kept = alone or (piece.host and not second_pass)
        at = line.interval(piece.worker, start, free[piece.worker], "work" if kept else "partial", group=piece.output,
                           label=f"tiles {piece.first}-{piece.last - 1}" if piece.tiles > 1 else f"tile {piece.first}",
                           marked=piece.host and not alone and not second_pass)
        if not kept:
            stored.setdefault(piece.output, []).append((at, free[piece.worker]))
        elif not alone:
            hosts[piece.output] = piece.worker
    done = max(free, default=0.0)
    for turn, (output, parts) in enumerate(stored.items()):
        worker = turn % workers if second_pass else hosts[output]
        ready = max(free[worker], done if second_pass else max(time for _, time in parts))
        if ready > free[worker] and not second_pass:
            line.interval(worker, free[worker], ready, "wait", group=output)
        free[worker] = ready + merge * len(parts)
        target = line.interval(worker, ready, free[worker], "merge", group=output)
        for at, _ in parts:
            line.arrow(at, target)
    return line.finish()


def names_of(k: Tensor, lengths: Sequence[int] | None = None) -> list[str]:
    """Names of the outputs of `k (B, Hkv, S, D)`: the request is named where there are several."""
    requests = len(check_lengths(k, lengths))
    return [f"head {head}" if requests == 1 else f"request {b}, head {head}"
            for b in range(requests) for head in range(k.shape[1])]


# ----------------------------------------------------------------------------------------------------- counting, exactly

def makespan(pieces: Iterable[Piece]) -> int:
    """Tiles of the busiest worker: when the last one is done, if a tile takes one unit of time."""
    loads: dict[int, int] = {}
    for piece in pieces:
        loads[piece.worker] = loads.get(piece.worker, 0) + piece.tiles
    return max(loads.values(), default=0)


def occupancy(pieces: Sequence[Piece], workers: int) -> float:
    """Share of the workers' time that is spent on tiles; 1 when there is nothing to do."""
    check_positive(workers=workers)
    return sum(piece.tiles for piece in pieces) / (workers * makespan(pieces)) if pieces else 1.0


def fixups(pieces: Iterable[Piece]) -> int:
    """Partials that are stored for another worker to merge."""
    return sum(not piece.host for piece in pieces)


def lean_makespan(outputs: int, tiles: int, workers: int) -> int:
    """Makespan of equal shares of `outputs` outputs with `tiles` tiles each: ceil(O t / C)."""
    return math.ceil(outputs * tiles / workers)


def floor_makespan(outputs: int, tiles: int, workers: int) -> float:
    """What no schedule can beat: O t / C."""
    return outputs * tiles / workers


def decode_cost(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | None, pieces: Sequence[Piece],
                stored: int) -> Cost:
    """Work and traffic of a schedule that stores `stored` partials of `(G*T, Dv + 1)` words."""
    check_qkv(q, k, v)
    heads, d, dv = k.shape[1], q.shape[3], v.shape[3]
    rows = q.shape[1] // heads * q.shape[2]                      # of one output
    keys = heads * sum(check_lengths(k, lengths))
    words = keys * (d + dv) + rows * (len(pieces) * d + 2 * stored * (dv + 1) + k.shape[0] * heads * (dv + 1))
    return Cost(tiles=sum(piece.tiles for piece in pieces), loaded=keys, flops=2 * rows * keys * (d + dv), words=words)


# ------------------------------------------------------------------------------------------- what both schedules share

def tiles_of(k: Tensor, tile: int, lengths: Sequence[int] | None = None) -> list[int]:
    """Tiles of each output, request by request and KV head by KV head, `B * Hkv` numbers."""
    check_positive(tile=tile)
    return [math.ceil(length / tile) for length in check_lengths(k, lengths) for _ in range(k.shape[1])]


def attend_piece(piece: Piece, q: Tensor, k: Tensor, v: Tensor, tile: int, lengths: Sequence[int] | None, causal: bool,
                 scale: float | None, pos_q: Tensor | None) -> Partial:
    """Fold the tiles of one piece, in order: o `(1, G, T, Dv)`."""
    (b, head), group = divmod(piece.output, k.shape[1]), q.shape[1] // k.shape[1]
    length = check_lengths(k, lengths)[b]
    q, k, v = q[b:b + 1, head * group:(head + 1) * group], k[b:b + 1, head:head + 1, :length], v[b:b + 1, head:head + 1]
    pos = positions(q, k, pos_q)                                 # (T,), the last rows of this request
    parts = [empty_like(q, v.shape[3])]
    for j in range(piece.first, piece.last):
        keys = slice(j * tile, min((j + 1) * tile, length))
        s = tile_logits(q, k[:, :, keys], scale)                 # (1, G, T, tile)
        if causal:
            s = s.masked_fill(~causal_mask(pos - keys.start, s.shape[3]), float("-inf"))
        parts.append(from_logits(s, v[:, :, keys]))
    return reduce(merge, parts)


def write(whole: Partial, output: int, part: Partial, kv_heads: int) -> None:
    """Put one output's rows `(1, G, T, Dv)` into the result of all `(B, Hq, T, Dv)`."""
    (b, head), group = divmod(output, kv_heads), part.o.shape[1]
    whole.o[b, head * group:(head + 1) * group] = part.o[0]
    whole.lse[b, head * group:(head + 1) * group] = part.lse[0]


def check_cover(pieces: Iterable[Piece], tiles: Sequence[int]) -> None:
    """Raise `ValueError` unless every tile of every output is in exactly one piece, flagged as it lies."""
    reached = [0] * len(tiles)
    for piece in sorted(pieces, key=lambda p: (p.output, p.first)):
        here = f"tiles [{piece.first}, {piece.last}) of output {piece.output}"
        if not 0 <= piece.output < len(tiles) or not piece.first < piece.last <= tiles[piece.output]:
            raise ValueError(f"{here} do not exist in {len(tiles)} outputs; schedule with tiles_of(k, tile, lengths)")
        if piece.first != reached[piece.output]:
            raise ValueError(f"{here} leave a gap or an overlap at tile {reached[piece.output]}; use each tile once")
        if (piece.host, piece.finishing) != (piece.first == 0, piece.last == tiles[piece.output]):
            raise ValueError(f"{here} are flagged host={piece.host}, finishing={piece.finishing}; "
                             "host has the first tile, finishing the last")
        reached[piece.output] = piece.last
    if missing := [o for o, (end, want) in enumerate(zip(reached, tiles)) if end < want]:
        raise ValueError(f"outputs {missing} are not covered to their last tile; schedule with tiles_of(k, tile, lengths)")


def check_lengths(k: Tensor, lengths: Sequence[int] | None) -> list[int]:
    """Keys of each request, `B` whole numbers in `[0, S]`."""
    b, s = k.shape[0], k.shape[2]
    found = [s] * b if lengths is None else torch.as_tensor(lengths).tolist()
    if len(found) != b or not all(isinstance(n, int) and 0 <= n <= s for n in found):
        raise ValueError(f"lengths must hold {b} whole numbers in [0, {s}], one a request; got {found}")
    return found


def check_tiles(tiles_per_output: Sequence[int]) -> list[int]:
    tiles = list(tiles_per_output)
    if not all(int(t) == t and t >= 0 for t in tiles):
        raise ValueError(f"tiles_per_output must hold whole numbers >= 0; got {tiles}")
    return [int(t) for t in tiles]


def check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if int(value) != value or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1; got {value}")
