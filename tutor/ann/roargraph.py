"""RoarGraph: wire the rows as the queries see them.

Idea        A graph over rows joins rows that are near each other. Where queries come from another distribution, the rows
            that one query wants are scattered, and a walk between them is long. So ask first: run training queries
            exactly, and make neighbours of two rows when one query liked both. The queries are then thrown away.
Rule        ask      each training query has its exact `neighbours` nearest rows; the nearest one is its pivot.
            project  pivot: prune the others by distance to the pivot (keep c if no kept r has dist(c, r) <= dist(c, pivot)),
                     fill up to M with the nearest dropped; link back, and prune a list that overflows, without filling.
            connect  each row walks to itself from the entry with a beam of `ef_construction`; what it expanded is pruned to
                     M without filling and linked both ways. Lists are projected + connecting edges: at most 2 M.
            repair   rows still out of reach get an edge that nothing prunes.
            search   a beam of `ef` from the entry, the row nearest to the mean.
Cost        building: (training queries) · N distances to ask, which is most of it, and N walks. A search counts like any walk.
Paper       Chen et al. 2024, section 4 (bipartite graph, neighbourhood-aware projection, connectivity enhancement).
            [chen2024roargraph] Defaults there: 100 neighbours, M 35, beam 500 (unverified).
Differs     Rows are compared with each other by L2 whatever the metric of the search: an inner product is no distance (a
            row need not be its own nearest). Training queries that share a pivot are merged into one list; the authors'
            code lets the last one replace the others (`merge=False`). The walks of `connect` use the edges found so far,
            so an entry that no query touched is no trap. Repair is ours.
See also    tutor.ann.hnsw (edges from the rows alone), tutor.attention.methods.retrieval, tutor.kernels.graph_search.

A graph is a table `(N, 2 M)` int32, -1 where a place is free: M places for projected edges, M for connecting ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from tutor.ann import graph
from tutor.ann.base import Answer, Index, Result, as_rows, check_metric, distances, lift_effort, nearest, pairwise, prepare
from tutor.catalog import method
from tutor.cost import Cost

if TYPE_CHECKING:
    from tutor.trace import Recorder

FREE = -1


@method("roargraph", "ann", "RoarGraph", paper="chen2024roargraph", kernel="tutor.kernels.graph_search.beam_search",
        flags=("graph",), grid=tuple({"ef": ef} for ef in (10, 20, 40, 80, 160, 320, 640)))
@dataclass(eq=False)
class RoarGraph(Index):
    """A graph over rows, built from queries.

    Attributes:
        neighbours: exact answers per training query. M: edges of each kind per row. ef_construction: beam of `connect`.
        merge: training queries with one pivot share its list; False lets the last one replace it.
        connect: False leaves out the walks (to see what the queries alone wire).
        repair: after building, make every row reachable from every other.
        fast: build with the compiled twins of `project` and `connect` (`tutor.kernels.graph_search`).
        adj: after build, the neighbours of each row, a list of arrays. entry: where every search starts.
        wired: share of rows with an edge after the projection. repaired: edges that repair had to add.
    """

    neighbours: int = 100
    M: int = 35
    ef_construction: int = 100
    merge: bool = True
    connect: bool = True
    repair: bool = True
    fast: bool = False
    effort = "ef"

    def __post_init__(self):
        for name in ("neighbours", "M", "ef_construction"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")

    def build(self, X: Any, metric: str = "l2", *, queries: Any = None, progress: bool = False) -> RoarGraph:
        """Index the rows of `X (N, d)` for questions like `queries (n, d)`; with none, only `connect` wires them."""
        check_metric(metric)
        rows = as_rows(X, "X")
        self._asked = None
        if queries is not None and len(queries):
            self._asked = prepare(as_rows(queries, "queries", rows.shape[1]), metric, "queries").astype(rows.dtype)
        return super().build(rows, metric, progress=progress)

    def _build(self, progress: bool) -> None:
        X, N, M = self.X, len(self.X), self.M
        self.entry, dots = medoid(X), N
        table = np.full((N, 2 * M), FREE, np.int32)
        twin = engine(self.fast)
        if self._asked is not None:
            dots += len(self._asked) * N
            dots += twin.project(X, answers(X, self._asked, self.neighbours, self.metric), table, M, merge=self.merge)
        self.wired = float((table >= 0).any(1).mean())
        if self.connect:
            dots += twin.connect(X, table, self.entry, M, self.ef_construction, 0, N, progress=progress)
        self.adj = [row[row >= 0].astype(np.int64) for row in table]
        self.repaired = len(graph.repair(self.adj, X, self.entry, both_ways=True)) if self.repair else 0
        self.build_cost = Cost(build_dots=dots, index_bytes=4 * sum(map(len, self.adj)))
        del self._asked

    def search(self, q: Any, k: int, *, ef: int = 64, trace: Recorder | None = None, pad: bool = False) -> Result:
        """The `k` nearest rows that a beam of `ef` finds; `ef < k` is lifted to k with a warning."""
        return self._answer(q, k, trace, pad, ef=lift_effort("ef", ef, k))

    def _search_one(self, q: np.ndarray, k: int, trace: Recorder | None, ef: int) -> Answer:
        dist = float(distances(q, self.X[self.entry:self.entry + 1], self.metric)[0])
        if trace is not None:
            trace.event("evaluated", level=1, src=-1, dst=self.entry, dist=dist)
        beam = graph.beam_search(self.adj, self.X, q, [self.entry], ef, metric=self.metric, known={self.entry: dist},
                                 trace=trace)
        return beam.ids[:k], beam.distances[:k], beam.cost + Cost(ndist=1)

    def reachable(self) -> np.ndarray:
        """Which rows a walk can arrive at from the entry, `(N,)` bool."""
        return graph.reachable(self.adj, self.entry, len(self.X))


# ------------------------------------------------------------------------------------------------------ the three steps

def medoid(X: np.ndarray) -> int:
    """The row nearest to the mean."""
    return int(((X - X.mean(0, dtype=np.float64)) ** 2).sum(1).argmin())


def answers(X: np.ndarray, Q: np.ndarray, neighbours: int, metric: str) -> np.ndarray:
    """Exact ids `(nq, min(neighbours, N))` of each query, nearest first, by one matrix product a block."""
    n, every = min(neighbours, len(X)), np.arange(len(X))
    return np.asarray([nearest(every, row, n)[0] for start in range(0, len(Q), 256)
                       for row in pairwise(Q[start:start + 256], X, metric)])


def project(X: np.ndarray, top: np.ndarray, table: np.ndarray, M: int, *, merge: bool = True) -> int:
    """Write the projected edges into `table[:, :M]`, and return how many distances that took at most.

    May be called again with more queries: candidates that `connect` has linked to the pivot already are left out.

    Args:
        top: `(n, neighbours)` ids of each training query, nearest first; -1 fills up a short answer.
    """
    dots, lists = 0, table[:, :M]
    for answer in top:
        pivot, others = int(answer[0]), answer[1:]
        if pivot == FREE:
            continue
        others = np.append(others, lists[pivot]) if merge else others
        others = np.unique(others[(others != FREE) & (others != pivot)])
        others = others[~np.isin(others, table[pivot, M:])]
        chosen = graph.robust_prune(X[pivot], others, X, M, fill=True) if len(others) else others
        dots += _prune_dots(len(others), len(chosen))
        _write(lists, pivot, chosen)
        for c in chosen.tolist():
            dots += _link(X, table, lists, c, pivot, M)
    return dots


def connect(X: np.ndarray, table: np.ndarray, entry: int, M: int, beam: int, start: int, stop: int, *,
            progress: bool = False) -> int:
    """Let the rows `start` to `stop - 1` walk to themselves and link, in `table[:, M:2 * M]`; returns the distances taken.

    This is also how a row is added later: give it a free line of the table and call with its number.
    """
    dots, lists, adj = 0, table[:, M:2 * M], Neighbours(table)
    for p in tqdm(range(start, stop), desc="connect", disable=not progress):
        walk = graph.beam_search(adj, X, X[p], [entry], beam)
        met = walk.expanded[walk.expanded != p]
        chosen = graph.robust_prune(X[p], met, X, M) if len(met) else met
        dots += walk.cost["ndist"] + _prune_dots(len(met), len(chosen))
        for c in chosen.tolist():
            dots += _link(X, table, lists, p, c, M) + _link(X, table, lists, c, p, M)
    return dots


class Neighbours(Sequence):
    """A table read as adjacency: `[i]` gives the neighbours of row i."""

    def __init__(self, table: np.ndarray):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> np.ndarray:
        row = self.table[i]
        return row[row != FREE].astype(np.int64)


def engine(fast: bool):
    """The module whose `project` and `connect` build: this one, or its compiled twin."""
    if fast:
        from tutor.kernels import graph_search as twin
    else:
        from tutor.ann import roargraph as twin
    return twin


def _link(X: np.ndarray, table: np.ndarray, lists: np.ndarray, a: int, b: int, M: int) -> int:
    """Add the edge a -> b to `lists`, one half of `table`, unless it is there; prune a list that overflows."""
    if b in table[a]:
        return 0
    row = np.append(lists[a][lists[a] != FREE], np.int32(b))
    if len(row) <= M:
        _write(lists, a, row)
        return 0
    chosen = graph.robust_prune(X[a], row, X, M)
    _write(lists, a, chosen)
    return _prune_dots(len(row), len(chosen))


def _write(lists: np.ndarray, a: int, row: np.ndarray) -> None:
    lists[a] = FREE
    lists[a, :len(row)] = row


def _prune_dots(candidates: int, chosen: int) -> int:
    return candidates * (1 + chosen)            # to the point, and to each one chosen; a filler is counted and needs none
