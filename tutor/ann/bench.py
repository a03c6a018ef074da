"""What recall costs: sweep an index over its effort, and read off the price of a target.

Cost is counted, as distances per query over the number of rows, so that it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tutor.ann import metrics
from tutor.ann.base import Index
from tutor.ann.flat import Flat


@dataclass(frozen=True, eq=False)
class Sweep:
    """One index at several efforts.

    Attributes:
        effort: `(n,)` values of the index's knob; 0 if it has none.
        share: `(n,)` distances per query, as a share of the rows.
        recall: `(n,)` mean recall@k. per_query: `(n, nq)`, the same for each query.
    """

    effort: np.ndarray
    share: np.ndarray
    recall: np.ndarray
    per_query: np.ndarray

    def share_at(self, recall: float) -> float:
        """Share of distances at which the frontier reaches `recall`; inf when it never does."""
        return metrics.cost_at(self.share, self.recall, recall)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval of the mean recall over queries, `(n,)` and `(n,)`."""
        half = 1.96 * self.per_query.std(1) / np.sqrt(self.per_query.shape[1])
        return np.maximum(self.recall - half, 0), np.minimum(self.recall + half, 1)


def truth(X: np.ndarray, Q: np.ndarray, k: int, metric: str) -> np.ndarray:
    """Exact ids `(nq, k)`, distances by subtraction."""
    return Flat(exact=True).build(X, metric).search(Q, k).ids


def sweep(index: Index, Q: np.ndarray, k: int, ids: np.ndarray, grid: Iterable[int], stop: float = 1.0) -> Sweep:
    """Search all queries at every effort of `grid`, ascending, until recall reaches `stop`.

    Args:
        ids: exact answer `(nq, k)` from `truth`.
    """
    rows = []
    for effort in grid:
        found = index.search(Q, k, pad=True, **({index.effort: effort} if index.effort else {}))
        each = [metrics.recall(row, true) for row, true in zip(found.ids, ids)]
        rows.append((effort if index.effort else 0, found.cost["ndist"] / len(Q) / len(index.X), np.mean(each), each))
        if rows[-1][2] >= stop or not index.effort:
            break
    if not rows:
        raise ValueError("grid is empty; give at least one effort")
    effort, share, mean, per_query = (np.asarray(column) for column in zip(*rows))
    return Sweep(effort, share, mean, per_query)


def beams(k: int, most: int) -> list[int]:
    """Efforts for a graph: k, 1.5 k, 2 k, 3 k, … doubling in two steps, up to `most`."""
    steps = sorted({round(k * 2 ** p * f) for p in range(20) for f in (1, 1.5)})
    return [ef for ef in steps if ef <= most]
