"""RetrievalAttention: fetch the keys of a query from a graph that earlier queries have wired.

Idea        Which keys matter to a query is a nearest-neighbour question, by inner product. Keep the first keys and the newest
            in reach at all times, put the rest in an index, and fetch. Queries lie elsewhere than keys, so let earlier
            queries wire the index: two keys are neighbours when one query wanted both (RoarGraph, one per query head).
Rule        static     keys j < sinks, and p - window < j <= p for a query at position p.
            admit      a key that leaves the window walks to itself in the graph, and is linked there.
            learn      every `refresh` positions, each query since the last time names its `neighbours` best keys among those
                       outside its own static set; they are projected onto its best one.
            retrieve   a beam of `ef` from the key nearest to the mean; the k best by q·k.
            attend     static and retrieved keys are disjoint: attend to each, merge by log-sum-exp.
Cost        scored: dot products of the walks. loaded: static + k. build_dots: what learning asks (a prefill computes these
            scores anyway), plus walks and pruning. index_bytes: ids of the edges, per query head; keys are not copied.
Paper       Liu et al. 2024. [liu2024retrievalattention] Static set of 128 first and 512 last keys as in a public port; k of
            100 is unverified. The graph is that of Chen et al. 2024. [chen2024roargraph]
Differs     No query learns from itself or from later ones: a row at p asks an index that holds keys up to p - window and has
            learned from queries before the last multiple of `refresh`. So all queries of the text must be given, or an
            index made of the earlier ones (`prefill`, then `select(..., index=)`, rows in order: decoding). In decoding the
            index admits keys but learns nothing new. With fewer than k keys in the index, all of them are taken.
            The paper attends densely in prefill; here rows of a prefill select, too, to be comparable.
See also    tutor.ann.roargraph, tutor.kernels.graph_search, tests/museum/attention/retrieval.py (merges that go wrong)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from tutor.ann import graph, roargraph
from tutor.ann.roargraph import FREE, Neighbours
from tutor.attention.dense import check_qkv, positions
from tutor.attention.methods.window import window_mask
from tutor.attention.partial import Partial, merge
from tutor.attention.selection import Selection, Selector, attend_selected, finish, need
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


@method("retrieval", "attention", "RetrievalAttention", paper="liu2024retrievalattention",
        kernel="tutor.kernels.graph_search.beam_search", flags=("selector",),
        grid=tuple({"k": k, "ef": k, "sinks": 16, "window": k - 16} for k in (64, 128, 256)))
@dataclass(frozen=True)
class Retrieval(Selector):
    """`k` retrieved keys beside `sinks` first and `window` last ones.

    Attributes:
        ef: beam of a search, at least k. neighbours: keys a query names when the index learns.
        degree: edges of each kind per key. beam: of the walk that admits a key. refresh: positions between lessons.
        fast: use the compiled graph (`tutor.kernels.graph_search`); False the plain one, which is slow.
    """

    k: int = 100
    ef: int = 128
    sinks: int = 128
    window: int = 512
    neighbours: int = 32
    degree: int = 16
    beam: int = 64
    refresh: int = 256
    fast: bool = True

    def __post_init__(self):
        need(self.k, 1, "k")
        need(self.ef, self.k, "ef", "a beam cannot return more keys than it holds")
        need(self.sinks, 0, "sinks")
        need(self.window, 1, "window", "a query reads at least its own key")
        for name in ("neighbours", "degree", "beam", "refresh"):
            need(getattr(self, name), 1, name)

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None,
               index: KeyIndex | None = None) -> tuple[Selection, Cost]:
        """Static and retrieved keys of each row.

        Args:
            index: from `prefill`; it is searched and admits keys, and the rows must come after those it has seen. Without
                one, the earlier rows of `q` make it.
        """
        check_qkv(q, k, v, check=True)
        pos, learns = positions(q, k, pos_q), index is None
        index = KeyIndex.empty(self, q, k) if index is None else index.fits(self, q, k)
        before = index.build_dots
        read, scored = self._static(pos, k.shape[2]).expand(*q.shape[:3], -1).clone(), 0
        for (b, h), keys, queries, head in index.each(q, k):
            for row in torch.argsort(pos, stable=True).tolist():
                p = int(pos[row])
                if learns:
                    head.learn(self, keys, queries, pos, p // self.refresh * self.refresh)
                found, ndist = head.ask(self, keys, queries[row], p)
                read[b, h, row, self.sinks + found] = True
                scored += ndist
        return finish(Selection.from_mask(read, q, k, pos_q=pos), scored=scored, trace=trace,
                      index_bytes=index.nbytes, build_dots=index.build_dots - before)

    def prefill(self, q: Tensor, k: Tensor, *, pos_q: Tensor | None = None) -> KeyIndex:
        """The index after reading `q (B, Hq, T, D)`, learned from all of them: for the queries that come next."""
        check_qkv(q, k, check=True)
        index, pos = KeyIndex.empty(self, q, k), positions(q, k, pos_q)
        for _, keys, queries, head in index.each(q, k):
            for stop in range(self.refresh, k.shape[2] + self.refresh, self.refresh):
                head.learn(self, keys, queries, pos, min(stop, k.shape[2]))
        return index

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, pos_q: Tensor | None = None,
               index: KeyIndex | None = None) -> Partial:
        """Attention over static and over retrieved keys, in two parts that may live on two devices, merged."""
        static, retrieved = self.split(self.select(q, k, v=v, pos_q=pos_q, index=index)[0], q, k)
        return merge(attend_selected(q, k, v, static), attend_selected(q, k, v, retrieved))

    def split(self, sel: Selection, q: Tensor, k: Tensor) -> tuple[Selection, Selection]:
        """A selection of this method as (static, retrieved), disjoint."""
        mask, near = sel.mask(), self._static(sel.pos, sel.shape[3])
        return tuple(Selection.from_mask(part, q, k, pos_q=sel.pos) for part in (mask & near, mask & ~near))

    def full(self, keys: int) -> Retrieval:
        return replace(self, k=keys, ef=keys)

    def outside(self, p: int | np.ndarray) -> int | np.ndarray:
        """How many keys lie between the sinks and the window of a query at `p`: those an index holds for it."""
        return np.maximum(p - self.window - self.sinks + 1, 0)

    def _static(self, pos: Tensor, keys: int) -> Tensor:
        return window_mask(pos, keys, self.window) | (torch.arange(keys) < self.sinks)      # (T, S)


# ------------------------------------------------------------------------------------------------------------ the index

@dataclass
class KeyGraph:
    """The graph of one query head over its KV head's keys; row i is key `sinks + i`.

    Attributes:
        table: edges, as in `tutor.ann.roargraph`. size: keys admitted. entry: where searches start.
        learned: queries before this position have been learned from. dots: distances spent on all this.
    """

    table: np.ndarray
    size: int = 0
    entry: int = 0
    learned: int = 0
    dots: int = 0

    def admit(self, method: Retrieval, keys: np.ndarray, size: int) -> None:
        """Link the keys up to `size` into the graph."""
        if size > len(self.table):
            more = np.full((size, self.table.shape[1]), FREE, np.int32)
            self.table = np.concatenate([self.table, more])
        if size > self.size:
            self.dots += roargraph.engine(method.fast).connect(keys, self.table, self.entry, method.degree, method.beam,
                                                              self.size, size)
            self.size = size

    def learn(self, method: Retrieval, keys: np.ndarray, queries: np.ndarray, pos: Tensor, until: int) -> None:
        """Project what the queries at positions `learned` to `until - 1` would have retrieved; see that all is in reach."""
        if until <= self.learned:
            return
        due = ((pos >= self.learned) & (pos < until)).numpy()
        self.learned = until
        self.admit(method, keys, int(method.outside(until - 1)))
        if not self.size:
            return
        room = method.outside(pos.numpy()[due])                                             # (n,) keys it could retrieve
        scores = torch.from_numpy(queries[due] @ keys[:self.size].T)
        scores[torch.arange(self.size) >= torch.from_numpy(room)[:, None]] = float("-inf")
        best = scores.topk(min(method.neighbours, self.size), dim=-1)
        top = torch.where(best.values > float("-inf"), best.indices, FREE).numpy()
        self.dots += int(room.sum()) + roargraph.engine(method.fast).project(keys, top, self.table, method.degree)
        self.entry = roargraph.medoid(keys[:self.size])
        self._repair(method, keys)

    def ask(self, method: Retrieval, keys: np.ndarray, q: np.ndarray, p: int) -> tuple[np.ndarray, int]:
        """Ids of the keys retrieved for one query `q (D,)` at position `p`, and how many dot products that took."""
        size = int(method.outside(p))
        if size < self.size:
            raise ValueError(f"the index holds keys up to {method.sinks + self.size - 1}, which position {p} reads in its "
                             "window; ask in order of position, or make another index with prefill()")
        self.admit(method, keys, size)
        if not size:
            return np.empty(0, np.int64), 0
        if method.fast:
            from tutor.kernels.graph_search import beam_search

            ids, _, ndist, _ = beam_search(self.table, keys, q[None], self.entry, method.ef, metric="ip")
            return ids[0, :method.k][ids[0, :method.k] != FREE], int(ndist[0])
        walk = graph.beam_search(Neighbours(self.table), keys, q, [self.entry], method.ef, metric="ip")
        return walk.ids[:method.k], walk.cost["ndist"]

    def _repair(self, method: Retrieval, keys: np.ndarray) -> None:
        """Edges in further columns of the table to keys out of reach; pruning never touches those."""
        if method.fast:
            from tutor.kernels.graph_search import reachable

            if reachable(self.table, self.entry, self.size).all():
                return
        adj = [row for row in Neighbours(self.table[:self.size])]
        width = self.table.shape[1]
        for a, b in graph.repair(adj, keys[:self.size], self.entry):
            free = np.flatnonzero(self.table[a, width:] == FREE)
            if not len(free):
                self.table = np.pad(self.table, ((0, 0), (0, 1)), constant_values=FREE)
                free = [self.table.shape[1] - 1 - width]
            self.table[a, width + free[0]] = b


@dataclass
class KeyIndex:
    """One `KeyGraph` per batch entry and query head, row `b * Hq + h`, for a method with the given settings."""

    method: Retrieval
    shape: tuple[int, int]
    graphs: list[KeyGraph] = field(default_factory=list)

    @classmethod
    def empty(cls, method: Retrieval, q: Tensor, k: Tensor) -> KeyIndex:
        room = max(k.shape[2] - method.sinks, 1)
        return cls(method, tuple(q.shape[:2]), [KeyGraph(np.full((room, 2 * method.degree), FREE, np.int32))
                                                for _ in range(q.shape[0] * q.shape[1])])

    def fits(self, method: Retrieval, q: Tensor, k: Tensor) -> KeyIndex:
        wiring = replace(self.method, k=method.k, ef=method.ef, fast=method.fast)           # the search may differ
        if wiring != method or self.shape != tuple(q.shape[:2]):
            raise ValueError(f"the index was made by {self.method} for (B, Hq) = {self.shape}; got {method} and "
                             f"{tuple(q.shape[:2])}. Make one with prefill()")
        return self

    def each(self, q: Tensor, k: Tensor) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray, KeyGraph]]:
        """(b, h), the keys from `sinks` on `(S - sinks, D)`, the queries `(T, D)` and the graph of each query head."""
        rows = lambda x: np.ascontiguousarray(x.detach().float().numpy())
        for b in range(q.shape[0]):
            held = [rows(k[b, kv, self.method.sinks:]) for kv in range(k.shape[1])]
            for h in range(q.shape[1]):
                yield (b, h), held[h // (q.shape[1] // k.shape[1])], rows(q[b, h]), self.graphs[b * q.shape[1] + h]

    @property
    def build_dots(self) -> int:
        return sum(head.dots for head in self.graphs)

    @property
    def nbytes(self) -> int:
        return 4 * sum(int((head.table != FREE).sum()) for head in self.graphs)


# --------------------------------------------------------------------------------------------------- how far away they are

@dataclass(frozen=True)
class Distance:
    """How far the queries of one head are from the keys they ask.

    Attributes:
        queries, keys: Mahalanobis distance to the keys' distribution, median over queries and over held-out keys.
        spread_queries, spread_keys: mean distance among the `top` best keys of a query, and among the `top` nearest of a
            held-out key. Where the first is larger, neighbours of a query are no neighbours of each other.
    """

    queries: float
    keys: float
    spread_queries: float
    spread_keys: float

    @property
    def ratio(self) -> float:
        return self.queries / self.keys


def ood_report(q: Tensor, k: Tensor, *, top: int = 100, ridge: float = 1e-3, ask: int = 64) -> list[Distance]:
    """Out-of-distribution measures of each query head of `q (1, Hq, T, D)`, `k (1, Hkv, S, D)`.

    The distribution is fitted to every other key, with `ridge` of the mean variance added; the keys between are held out.
    """
    check_qkv(q, k, check=True)
    need(top, 2, "top", "a spread needs two keys")
    if q.shape[0] != 1 or k.shape[2] < 2 * top:
        raise ValueError(f"ood_report takes one text of at least 2 top = {2 * top} keys; got B = {q.shape[0]}, "
                         f"S = {k.shape[2]}")
    reports = []
    for h in range(q.shape[1]):
        keys, queries = k[0, h // (q.shape[1] // k.shape[1])].double(), q[0, h].double()
        fitted, held = keys[::2], keys[1::2]
        sigma = torch.cov(fitted.T)
        sigma += ridge * sigma.trace() / len(sigma) * torch.eye(len(sigma), dtype=sigma.dtype)
        factor = torch.linalg.cholesky(sigma)
        far = lambda x: torch.linalg.solve_triangular(factor, (x - fitted.mean(0)).T, upper=False).norm(dim=0)
        some = lambda x: x[torch.linspace(0, len(x) - 1, min(ask, len(x))).round().long()]
        spread = lambda best: float(torch.stack([torch.pdist(fitted[row]).mean() for row in best]).mean())
        best_q = (some(queries) @ fitted.T).topk(top, dim=-1).indices
        best_k = torch.cdist(some(held), fitted).topk(top, dim=-1, largest=False).indices
        reports.append(Distance(float(far(queries).median()), float(far(held).median()), spread(best_q), spread(best_k)))
    return reports
