"""HNSW: a small world on several floors; the upper ones for distance, the lowest for precision.

Idea        Every row is on floor 0; a fraction 1/M of each floor also lives on the next. A search walks downhill on the
            sparse top floor with long strides, takes the stairs where it got stuck, and needs a beam only below.
            Edges are chosen so that neighbours point in different directions, or clusters would become islands.
Rule        level  floor(-ln U / ln M).
            insert walk down to the point's level; from there on each floor a beam of `ef_construction` finds candidates
                   and `select_neighbors` picks M; link both ways; a list longer than M (2M on floor 0) is picked anew.
            search greedy on every upper floor, then a beam of `ef` on floor 0.
Cost        ndist grows roughly with log N at fixed recall; memory N · 2M ids and a little.
Paper       Malkov and Yashunin 2020, algorithms 1, 2, 4 and 5. [malkov2020hnsw]
Differs     upper floors are walked by plain descent, which measures a node anew each time it sees it, as common
            libraries do. Afterwards `repair` joins what pruning cut off (`repaired` counts the edges); without it some
            rows of clustered data can never be found, in this and in other implementations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from tutor.ann import graph
from tutor.ann.base import Answer, Index, Result, distances, lift_effort
from tutor.catalog import method
from tutor.cost import Cost

if TYPE_CHECKING:
    from tutor.trace import Recorder


@method("hnsw", "ann", "HNSW", paper="malkov2020hnsw", flags=("graph",),
        grid=tuple({"ef": ef} for ef in (10, 20, 40, 80, 160, 320, 640)))
@dataclass(eq=False)
class HNSW(Index):
    """Hierarchical navigable small world graph.

    Attributes:
        M: neighbours chosen per insertion; lists hold M ids, 2M on floor 0.
        ef_construction: beam while building.
        heuristic: diverse neighbours; False keeps the nearest (to see what breaks).
        fill: give free places to candidates the heuristic dropped (the paper's keepPrunedConnections).
        repair: after building, make every row reachable.
        seed: of the levels.
        layers: after build, `layers[l][i]` are the neighbours of row i on floor l: a list for floor 0, else a dict.
        levels: `(N,)`, top floor of each row. entry: where every search starts.
        repaired: edges that repair had to add.
    """

    M: int = 16
    ef_construction: int = 200
    heuristic: bool = True
    fill: bool = False
    repair: bool = True
    seed: int = 0
    effort = "ef"

    def __post_init__(self):
        if self.M < 2:
            raise ValueError(f"M must be >= 2, or floors never thin out; got {self.M}")
        if self.ef_construction < 1:
            raise ValueError(f"ef_construction must be >= 1; got {self.ef_construction}")

    # ---------------------------------------------------------------------------------------------------- building

    def _build(self, progress: bool) -> None:
        N = len(self.X)
        uniform = 1 - np.random.default_rng(self.seed).random(N)               # in (0, 1]
        self.levels = np.floor(-np.log(uniform) / np.log(self.M)).astype(np.int64)
        self.layers = [[graph.NONE] * N] + [{} for _ in range(self.levels.max())]
        self.entry, self._dots = 0, 0
        for level in range(1, self.levels[0] + 1):
            self.layers[level][0] = graph.NONE
        for i in tqdm(range(1, N), desc="HNSW", disable=not progress):
            self._insert(i)
        self.repaired = 0
        if self.repair:
            self.repaired = len(graph.repair(self.layers[0], self.X, self.entry, metric=self.metric, both_ways=True))
        self.build_cost = Cost(build_dots=self._dots)

    def _insert(self, i: int) -> None:
        q, top = self.X[i], int(self.levels[self.entry])
        node, dist, cost = self._descend(q, int(self.levels[i]))
        known = {node: dist}
        for level in range(min(top, int(self.levels[i])), -1, -1):
            beam = graph.beam_search(self.layers[level], self.X, q, list(known), self.ef_construction,
                                     metric=self.metric, known=known)
            cost += beam.cost
            chosen = self._select(i, beam.ids, self.M)
            self.layers[level][i] = chosen
            for c in chosen.tolist():
                self._link(level, c, i)
            known = dict(zip(beam.ids.tolist(), beam.distances.tolist()))      # entries of the floor below
        for level in range(top + 1, int(self.levels[i]) + 1):
            self.layers[level][i] = graph.NONE
        if self.levels[i] > top:
            self.entry = i
        self._dots += cost["ndist"]

    def _link(self, level: int, a: int, b: int) -> None:
        room = 2 * self.M if level == 0 else self.M
        row = np.append(self.layers[level][a], b)
        self.layers[level][a] = row if len(row) <= room else self._select(a, row, room)

    def _select(self, i: int, ids: np.ndarray, M: int) -> np.ndarray:
        chosen = graph.select_neighbors(self.X[i], ids, self.X, M, metric=self.metric, heuristic=self.heuristic,
                                        fill=self.fill)
        self._dots += len(ids) * (1 + len(chosen) * self.heuristic)            # to the point, and to each one chosen
        return chosen

    # --------------------------------------------------------------------------------------------------- searching

    def search(self, q: Any, k: int, *, ef: int = 64, trace: Recorder | None = None, pad: bool = False) -> Result:
        """The `k` nearest rows that a beam of `ef` finds; `ef < k` is lifted to k with a warning."""
        return self._answer(q, k, trace, pad, ef=lift_effort("ef", ef, k))

    def _search_one(self, q: np.ndarray, k: int, trace: Recorder | None, ef: int) -> Answer:
        node, dist, cost = self._descend(q, 0, trace)
        beam = graph.beam_search(self.layers[0], self.X, q, [node], ef, metric=self.metric,
                                 known={node: dist}, trace=trace)
        return beam.ids[:k], beam.distances[:k], cost + beam.cost

    def _descend(self, q: np.ndarray, floor: int, trace: Recorder | None = None) -> tuple[int, float, Cost]:
        """Where plain descent from the entry arrives on the level above `floor`, and how far from `q` that is."""
        node, top = self.entry, int(self.levels[self.entry])
        dist = float(distances(q, self.X[node:node + 1], self.metric)[0])
        cost = Cost(ndist=1)
        if trace is not None:
            trace.event("evaluated", level=top, src=-1, dst=node, dist=dist)
        for level in range(top, floor, -1):
            node, dist, spent = graph.greedy(self.layers[level], self.X, q, node, dist, metric=self.metric, level=level,
                                             trace=trace)
            cost += spent
        return node, dist, cost

    def reachable(self) -> np.ndarray:
        """Which rows a walk on floor 0 can arrive at from the entry, `(N,)` bool."""
        return graph.reachable(self.layers[0], self.entry, len(self.X))
