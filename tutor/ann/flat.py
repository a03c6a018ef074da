"""Flat search: measure everything, keep the best. The definition of a right answer.

Idea        Compare the query with every row. Nothing is approximated, so every other index is judged by this one.
            Working block by block, with a running top-k, memory stays small however many rows there are.
Rule        For each block of rows: distances of a block of queries by one matrix product, join the block's best with
            the best so far, keep k by (distance, id).
Cost        ndist = N per query; memory O(query block × row block).
Paper       none: the baseline.
Differs     The product form ||q||² - 2 q·x + ||x||² loses digits when norms are large beside gaps (float32: about 7 of
            them). `exact=True` subtracts first, one query at a time, and is what ground truth uses. In both cases the
            distances that come back are computed by subtraction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tutor.ann.base import Answer, Index, Result, distances, nearest, pairwise, record_scan
from tutor.catalog import method
from tutor.cost import Cost

if TYPE_CHECKING:
    from tutor.trace import Recorder

QUERY_BLOCK = 64


@method("flat", "ann", "Exact search", flags=("exact", "nested", "deterministic"), grid=({},))
@dataclass(eq=False)
class Flat(Index):
    """Exact search over all rows.

    Attributes:
        block: rows per block.
        exact: subtract before squaring instead of using the product form.
    """

    block: int = 4096
    exact: bool = False

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(f"block must be >= 1; got {self.block}")

    def _build(self, progress: bool) -> None:
        pass                                                     # the rows are the index

    def search(self, q: Any, k: int, *, trace: Recorder | None = None, pad: bool = False) -> Result:
        return self._answer(q, k, trace, pad)

    def _search(self, Q: np.ndarray, k: int, trace: Recorder | None) -> Iterator[Answer]:
        if self.exact or trace is not None:
            yield from super()._search(Q, k, trace)
            return
        for start in range(0, len(Q), QUERY_BLOCK):
            queries = Q[start:start + QUERY_BLOCK]
            best = [(np.empty(0, np.int64), np.empty(0, Q.dtype))] * len(queries)
            for ids, rows in self._blocks():
                D = pairwise(queries, rows, self.metric)                       # (queries, block)
                best = [_join(held, ids, d, k) for held, d in zip(best, D)]
            for q, (ids, _) in zip(queries, best):
                yield *nearest(ids, distances(q, self.X[ids], self.metric), k), Cost(ndist=len(self.X))

    def _search_one(self, q: np.ndarray, k: int, trace: Recorder | None) -> Answer:
        held = np.empty(0, np.int64), np.empty(0, q.dtype)
        for step, (ids, rows) in enumerate(self._blocks()):
            d = distances(q, rows, self.metric)                                # (block,)
            if trace is not None:
                trace.event("opened_list", level=0, dst=step)
                record_scan(trace, ids, d, held[1], k, src=step)
                trace.next_step()
            held = _join(held, ids, d, k)
        return *held, Cost(ndist=len(self.X))

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self.X), self.block):
            rows = self.X[start:start + self.block]
            yield np.arange(start, start + len(rows)), rows


def _join(held: tuple[np.ndarray, np.ndarray], ids: np.ndarray, d: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return nearest(np.concatenate([held[0], ids]), np.concatenate([held[1], d]), k)


def flat_search(X: Any, Q: Any, k: int, metric: str = "l2", block: int = 4096, exact: bool = False) -> Result:
    """Exact `k` nearest rows of `X (N, d)` for each query of `Q (nq, d)`."""
    return Flat(block, exact).build(X, metric).search(Q, k)
