"""What every index shares: one metric to minimise, one way to ask, one answer, one set of refusals.

Idea        An index is built once from the rows of `X` and then asked for the `k` rows nearest to a query. Whatever it
            does inside, it answers with ids, their true distances and the count of distances that it computed.
Rule        l2: ||q - x||²;  ip: -q·x;  cosine: 1 - q·x of the normalised rows. Smaller is nearer, always.
            Equal distances are ordered by the lower id.
Cost        `ndist` counts every full-precision distance: rows, centroids and graph nodes alike.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tutor.cost import Cost

if TYPE_CHECKING:
    from tutor.trace import Recorder

METRICS = ("l2", "ip", "cosine")
Answer = tuple[np.ndarray, np.ndarray, Cost]      # ids and distances of one query, nearest first, and what they cost


@dataclass(frozen=True)
class Result:
    """The answer to `nq` queries.

    Attributes:
        ids: `(nq, k)` int64, nearest first; -1 where an index had nothing more to give.
        distances: `(nq, k)`, ascending; +inf beside every id of -1.
        cost: counters summed over the queries.
    """

    ids: np.ndarray
    distances: np.ndarray
    cost: Cost


# ------------------------------------------------------------------------------------------------------- distances

def check_metric(metric: str) -> str:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}; got {metric!r}")
    return metric


def distances(q: np.ndarray, X: np.ndarray, metric: str = "l2") -> np.ndarray:
    """Distance of one query `q (d,)` to each row of `X (n, d)`, by subtraction: exact to rounding. Returns `(n,)`.

    For "cosine" both sides must be normalised already (`prepare` does it).
    """
    if metric == "l2":
        gap = X - q                                              # (n, d)
        return np.einsum("nd,nd->n", gap, gap)
    return -(X @ q) if metric == "ip" else 1 - X @ q


def pairwise(A: np.ndarray, B: np.ndarray, metric: str = "l2") -> np.ndarray:
    """All distances between rows of `A (n, d)` and `B (m, d)` by one matrix product. Returns `(n, m)`.

    ||a - b||² = ||a||² - 2 a·b + ||b||² loses digits when norms are large beside gaps: pass float64 where it matters.
    """
    dots = A @ B.T                                               # (n, m)
    if metric == "l2":
        return np.maximum((A * A).sum(1)[:, None] - 2 * dots + (B * B).sum(1), 0)
    return -dots if metric == "ip" else 1 - dots


def nearest(ids: np.ndarray, dist: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` smallest of `dist (n,)` with their `ids (n,)`, sorted by (distance, id); no tie is cut by luck."""
    if k < len(dist):
        within = dist <= np.partition(dist, k - 1)[k - 1]        # keeps every tie at the border
        ids, dist = ids[within], dist[within]
    order = np.lexsort((ids, dist))[:k]
    return ids[order], dist[order]


# -------------------------------------------------------------------------------------------------------- refusals

def as_rows(X: Any, name: str, dim: int | None = None) -> np.ndarray:
    """`X` as a C-contiguous float32 (or float64, if it was) matrix; a single vector becomes one row.

    Raises:
        ValueError: wrong rank, no rows, no columns, wrong width, or values that are not finite.
    """
    X = np.asarray(X)
    if X.ndim == 1 and dim is not None:
        X = X[None]
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"{name} must be a matrix (rows, d) with at least one row and column; got shape {X.shape}")
    if dim is not None and X.shape[1] != dim:
        raise ValueError(f"{name} has width {X.shape[1]} (shape {X.shape}), but the index holds width {dim}; "
                         "pass vectors of that width, or build the index again")
    X = np.ascontiguousarray(X, dtype=np.float64 if X.dtype == np.float64 else np.float32)
    if not np.isfinite(X).all():
        row = int(np.flatnonzero(~np.isfinite(X).all(1))[0])
        raise ValueError(f"{name} of shape {X.shape} holds NaN or infinity, first in row {row}; "
                         "remove or replace such rows")
    return X


def prepare(X: np.ndarray, metric: str, name: str = "X") -> np.ndarray:
    """Rows as the metric wants them: of length 1 for "cosine", untouched otherwise.

    Raises:
        ValueError: a zero row under "cosine", which has no direction.
    """
    if metric != "cosine":
        return X
    norms = np.linalg.norm(X, axis=1, keepdims=True)             # (n, 1)
    if (norms == 0).any():
        row = int(np.flatnonzero(norms[:, 0] == 0)[0])
        raise ValueError(f"row {row} of {name} (shape {X.shape}) is zero and has no cosine; "
                         "remove it or use metric='ip'")
    return X / norms


def check_k(k: int, N: int, pad: bool) -> int:
    if k < 1:
        raise ValueError(f"k must be >= 1; got {k}")
    if k > N and not pad:
        raise ValueError(f"k={k} exceeds the {N} rows of the index; lower k, or pass pad=True to fill up with id -1")
    return min(k, N)


# ----------------------------------------------------------------------------------------------------------- index

class Index:
    """Base of all indexes: validation, cosine, padding and cost are here, the algorithm is in the subclass.

    A subclass is a dataclass of build parameters with `_build(progress)`, which reads `self.X` and `self.metric`, and a
    public `search` that names its effort (`ef`, `nprobe`, …) and calls `_answer`, which calls `_search_one` per query.
    """

    X: np.ndarray | None = None      # (N, d) prepared rows; None before build
    metric: str = "l2"
    effort: str = ""                 # name of the knob of `search` that buys recall; "" when there is none
    build_cost: Cost = Cost()

    def build(self, X: Any, metric: str = "l2", *, progress: bool = False) -> Index:
        """Index the rows of `X (N, d)`; float16 is widened to float32. Returns self."""
        self.metric = check_metric(metric)
        self.X = prepare(as_rows(X, "X"), metric)
        self.build_cost = Cost()
        self._build(progress)
        return self

    def search(self, q: Any, k: int, *, trace: Recorder | None = None, pad: bool = False) -> Result:
        """The `k` nearest rows of each query in `q (nq, d)` or `(d,)`. A trace tells the story of one query."""
        return self._answer(q, k, trace, pad)

    def _build(self, progress: bool) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _build")

    def _answer(self, q: Any, k: int, trace: Recorder | None, pad: bool, **effort) -> Result:
        if self.X is None:
            raise RuntimeError(f"{type(self).__name__}.search was called before build; call .build(X, metric) first")
        Q = prepare(as_rows(q, "q", self.X.shape[1]), self.metric, "q")
        Q = Q.astype(self.X.dtype, copy=False)
        inside = check_k(k, len(self.X), pad)
        if trace is not None and len(Q) != 1:
            raise ValueError(f"a trace records one query; got {len(Q)} queries: pass q[i]")
        ids = np.full((len(Q), k), -1, np.int64)
        found = np.full((len(Q), k), np.inf, self.X.dtype)
        total = Cost()
        for row, (best, dist, cost) in enumerate(self._search(Q, inside, trace, **effort)):
            ids[row, :len(best)], found[row, :len(best)] = best, dist
            total += cost
        return Result(ids, found, total)

    def _search(self, Q: np.ndarray, k: int, trace: Recorder | None, **effort) -> Iterator[Answer]:
        """One `Answer` per row of `Q`; override to treat queries together."""
        return (self._search_one(q, k, trace, **effort) for q in Q)

    def _search_one(self, q: np.ndarray, k: int, trace: Recorder | None, **effort) -> Answer:
        raise NotImplementedError(f"{type(self).__name__} must define _search_one")


def lift_effort(name: str, value: int, k: int) -> int:
    """`ef >= k`, lifted with a warning; `ValueError` below 1."""
    if value < 1:
        raise ValueError(f"{name} must be >= 1; got {value}")
    if value < k:
        warnings.warn(f"{name}={value} is below k={k} and was lifted to {k}: a beam cannot return more than it holds",
                      UserWarning, stacklevel=4)
    return max(value, k)


def record_scan(trace: Recorder, ids: np.ndarray, dist: np.ndarray, held: np.ndarray, k: int, src: int) -> None:
    """Record that all of `ids` were measured in this order, given the sorted distances `held` so far."""
    best = sorted(held.tolist())
    for i, d in zip(ids.tolist(), dist.tolist()):
        accepted = len(best) < k or d < best[-1]
        if accepted:
            bisect.insort(best, d)
            del best[k:]
        worst = best[-1] if len(best) == k else float("nan")
        trace.event("evaluated", level=0, src=src, dst=i, dist=d, accepted=accepted, best_k_worst=worst)
