"""What all graph indexes share: walking a graph, pruning a list of neighbours, and keeping everything in reach.

Idea        Rows are nodes. A search walks from an entry towards the query and measures the neighbours of what it
            passes. Everything else is a question of which edges to keep: short ones to arrive exactly, diverse ones to
            get there at all, and never so few that a row cannot be reached.
Rule        beam      pop the nearest candidate; stop if the beam is full and it lies beyond the worst held; else
                      measure its unvisited neighbours and keep those that beat the worst.
            prune     by distance to p, keep c; then drop each v with alpha · dist(c, v) <= dist(p, v): c leads there.
            repair    give each node out of reach an edge from its nearest node in reach, never to be pruned.
Cost        ndist: nodes measured. nhops: nodes expanded.
Paper       Malkov and Yashunin 2020, algorithms 2 and 4 (beam, heuristic) [malkov2020hnsw]; Subramanya et al. 2019,
            algorithm 2 (RobustPrune) [subramanya2019diskann].
Differs     Pairs (distance, id) are compared wherever the papers compare distances, so that equal distances have one
            answer. Repair is ours: the constructions leave a few nodes out of reach on clustered data.

A graph is a sequence `adj`: `adj[i]` is the int array of the out-neighbours of node i, without repeats.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tutor.ann.base import distances
from tutor.cost import Cost

if TYPE_CHECKING:
    from tutor.trace import Recorder

Adjacency = Sequence[np.ndarray] | Mapping[int, np.ndarray]
NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Beam:
    """What a walk found.

    Attributes:
        ids, distances: the beam, at most L nodes, by (distance, id).
        expanded: nodes whose neighbours were measured, in order; with their distances, pruning needs both.
        expanded_distances: see above.
        cost: ndist and nhops.
    """

    ids: np.ndarray
    distances: np.ndarray
    expanded: np.ndarray
    expanded_distances: np.ndarray
    cost: Cost


# --------------------------------------------------------------------------------------------------------- walking

def beam_search(adj: Adjacency, X: np.ndarray, q: np.ndarray, entry: Collection[int], L: int, *, metric: str = "l2",
                known: Mapping[int, float] | None = None, level: int = 0, trace: Recorder | None = None) -> Beam:
    """Best-first walk with a beam of `L` from the nodes in `entry`.

    Args:
        X: `(N, d)` rows, prepared for `metric`; q: `(d,)`.
        known: distances measured before, of entry nodes: not measured or counted again.
        level: written into the trace, nothing else.
    """
    if L < 1 or not len(entry):
        raise ValueError(f"a walk needs a beam L >= 1 and an entry; got L={L}, entry={list(entry)}")
    visited = np.zeros(len(X), bool)
    candidates: list[tuple[float, int]] = []         # min-heap of (distance, id): the frontier
    held: list[tuple[float, int]] = []               # max-heap of (-distance, -id): the beam, worst on top
    expanded: list[tuple[float, int]] = []
    ndist = 0

    def offer(v: int, d: float, src: int) -> None:
        accepted = len(held) < L or (d, v) < (-held[0][0], -held[0][1])
        if accepted:
            heapq.heappush(candidates, (d, v))
            heapq.heappush(held, (-d, -v))
            if len(held) > L:
                heapq.heappop(held)
        if trace is not None:
            kind = "entered" if src < 0 and v in known else "evaluated"
            trace.event(kind, level=level, src=src, dst=v, dist=d, accepted=accepted, frontier_size=len(candidates),
                        best_k_worst=worst())

    def worst() -> float:
        return -held[0][0] if len(held) == L else float("nan")

    known = known or {}
    start = np.unique(np.asarray(list(entry), np.int64))
    fresh = np.asarray([v for v in start if v not in known], np.int64)
    measured = dict(known) | dict(zip(fresh.tolist(), distances(q, X[fresh], metric).tolist()))
    ndist += len(fresh)
    visited[start] = True
    for v in start.tolist():
        if trace is not None and v not in known:
            trace.event("entered", level=level, dst=v, dist=measured[v])
        offer(v, measured[v], -1)

    while candidates:
        d, c = heapq.heappop(candidates)
        if len(held) == L and (d, c) > (-held[0][0], -held[0][1]):
            if trace is not None:
                trace.next_step()
                trace.event("stopped", level=level, dst=c, dist=d, frontier_size=len(candidates) + 1,
                            best_k_worst=worst())
            break
        expanded.append((d, c))
        neighbours = adj[c]
        seen = visited[neighbours]
        if trace is not None:
            trace.next_step()
            trace.event("expanded", level=level, dst=c, dist=d, frontier_size=len(candidates), best_k_worst=worst())
            for v in neighbours[seen].tolist():
                trace.event("skipped", level=level, src=c, dst=v)
        fresh = neighbours[~seen]
        visited[fresh] = True
        ndist += len(fresh)
        for v, d in zip(fresh.tolist(), distances(q, X[fresh], metric).tolist()):
            offer(v, d, c)

    best = sorted((-d, -v) for d, v in held)
    ids, dist = _columns(best, X.dtype)
    path, path_dist = _columns(expanded, X.dtype)
    return Beam(ids, dist, path, path_dist, Cost(ndist=ndist, nhops=len(expanded)))


def greedy(adj: Adjacency, X: np.ndarray, q: np.ndarray, node: int, dist: float, *, metric: str = "l2", level: int = 0,
           trace: Recorder | None = None) -> tuple[int, float, Cost]:
    """Walk downhill: move to the nearest neighbour while it is nearer. Keeps no record of what it has measured,
    as the common libraries do on upper levels, so a node passed twice is measured (and counted) twice."""
    ndist = nhops = 0
    while True:
        neighbours = adj[node]
        d = distances(q, X[neighbours], metric)
        ndist, nhops = ndist + len(d), nhops + 1
        if trace is not None:
            trace.next_step()
            trace.event("expanded", level=level, dst=node, dist=dist, frontier_size=1, best_k_worst=dist)
            for v, dv in zip(neighbours.tolist(), d.tolist()):
                trace.event("evaluated", level=level, src=node, dst=v, dist=dv, accepted=dv < dist, frontier_size=1,
                            best_k_worst=dist)
        if not len(d) or d.min() >= dist:
            return node, dist, Cost(ndist=ndist, nhops=nhops)
        best = int(d.argmin())
        node, dist = int(neighbours[best]), float(d[best])


def _columns(pairs: list[tuple[float, int]], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray([v for _, v in pairs], np.int64), np.asarray([d for d, _ in pairs], dtype)


# --------------------------------------------------------------------------------------------------------- pruning

def robust_prune(p: np.ndarray, ids: np.ndarray, X: np.ndarray, R: int, *, alpha: float = 1.0, metric: str = "l2",
                 keep: Collection[int] = (), fill: bool = False) -> np.ndarray:
    """At most `R` of the candidates `ids` as neighbours of the point `p (d,)`: near, and none in the shadow of another.

    Distances are computed in float64, so that equal rows are exactly equal. Returns ids in the order of choice.

    Args:
        alpha: >= 1; larger keeps longer edges. It scales true distance, so squared distances take its square
            (cosine too: on the unit sphere 1 - cos is half the squared distance).
        keep: ids that stay whatever they shade (edges of a repair); they count towards R and come first.
        fill: give places left over to the nearest of those dropped.
    """
    if R < 1 or alpha < 1:
        raise ValueError(f"R and alpha must be >= 1; got R={R}, alpha={alpha}")
    if metric == "ip" and alpha != 1:
        raise ValueError("alpha > 1 scales a distance, and -q·x is none; lift the rows with tutor.ann.mips.lift first")
    ids, rows, gap = _by_distance(p, ids, X, metric)
    factor = alpha if metric == "ip" else alpha ** 2
    alive = np.ones(len(ids), bool)
    chosen: list[int] = []

    def choose(j: int) -> None:
        chosen.append(j)
        alive[:] &= factor * distances(rows[j], rows, metric) > gap            # v stays if p is nearer to it than j

    for j in np.flatnonzero(np.isin(ids, list(keep))).tolist():
        choose(j)
    for j in range(len(ids)):
        if len(chosen) >= R:
            break
        if alive[j] and j not in chosen:
            choose(j)
    if fill:
        chosen += [j for j in range(len(ids)) if j not in chosen][:max(R - len(chosen), 0)]
    return ids[chosen]


def select_neighbors(p: np.ndarray, ids: np.ndarray, X: np.ndarray, M: int, *, metric: str = "l2",
                     heuristic: bool = True, fill: bool = False, keep: Collection[int] = ()) -> np.ndarray:
    """HNSW's choice of `M` neighbours for `p`: keep c if it is nearer to p than to every neighbour kept before.

    `heuristic=False` keeps the M nearest instead, which is the natural idea and the wrong one: in clustered data every
    edge then stays inside its cluster. `fill` is the paper's keepPrunedConnections.
    """
    if heuristic:
        return robust_prune(p, ids, X, M, metric=metric, keep=keep, fill=fill)
    ids, _, _ = _by_distance(p, ids, X, metric)
    first = np.isin(ids, list(keep))
    return np.concatenate([ids[first], ids[~first]])[:max(M, int(first.sum()))]


def _by_distance(p: np.ndarray, ids: np.ndarray, X: np.ndarray,
                 metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates sorted by (distance to p, id): ids `(n,)`, their rows `(n, d)` and distances `(n,)` in float64."""
    ids = np.unique(np.asarray(ids, np.int64))
    rows = X[ids].astype(np.float64)
    gap = distances(p.astype(np.float64), rows, metric)
    order = np.argsort(gap, kind="stable")                       # ids ascend, so equal distances stay in order of id
    return ids[order], rows[order], gap[order]


# ----------------------------------------------------------------------------------------------------------- reach

def reachable(adj: Adjacency, entry: int, N: int) -> np.ndarray:
    """Which of the `N` nodes a walk from `entry` can arrive at: `(N,)` bool."""
    mask = np.zeros(N, bool)
    _flood(adj, entry, mask)
    return mask


def repair(adj: list[np.ndarray], X: np.ndarray, entry: int, *, metric: str = "l2",
           both_ways: bool = False) -> list[tuple[int, int]]:
    """Make every node reachable from `entry` by new edges, in place, and return them as (from, to).

    Each node out of reach, in order of id, gets an edge from its nearest node in reach, and brings along all that it
    leads to. `both_ways` does the same for the reversed graph, so that afterwards every node can reach every other.
    Whoever prunes later passes these edges as `keep`.
    """
    edges = _attach(adj, X, entry, metric)
    for a, b in edges:
        adj[a] = np.append(adj[a], b)
    if both_ways:
        back = [(b, a) for a, b in _attach(reverse(adj), X, entry, metric)]
        for a, b in back:
            adj[a] = np.append(adj[a], b)
        edges = edges + back
    return edges


def reverse(adj: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The graph with every edge turned round."""
    sources = np.repeat(np.arange(len(adj)), [len(row) for row in adj])
    targets = np.concatenate([NONE, *adj])
    order = np.argsort(targets, kind="stable")
    return np.split(sources[order], np.cumsum(np.bincount(targets, minlength=len(adj)))[:-1])


def _attach(adj: Sequence[np.ndarray], X: np.ndarray, entry: int, metric: str) -> list[tuple[int, int]]:
    mask = reachable(adj, entry, len(X))
    edges = []
    for node in range(len(X)):
        if not mask[node]:
            inside = np.flatnonzero(mask)
            edges.append((int(inside[distances(X[node], X[inside], metric).argmin()]), node))
            _flood(adj, node, mask)
    return edges


def _flood(adj: Adjacency, start: int, mask: np.ndarray) -> None:
    mask[start] = True
    stack = [start]
    while stack:
        neighbours = adj[stack.pop()]
        fresh = neighbours[~mask[neighbours]]
        mask[fresh] = True
        stack.extend(fresh.tolist())
