"""k-means: cut vectors into cells, each the property of its nearest centre.

Idea        Put every vector with its nearest centre, move every centre to the mean of its vectors, repeat. Each half of
            the step can only lower the total squared distance, so it settles.
Rule        assign: label_i = argmin_j ||x_i - c_j||²  (ties to the lower j)
            balanced: one row after the other moves to argmin_j ||x_i - c_j||² + balance · (other rows in cell j)
            update: c_j = weighted mean of its members; spherical: scaled to length 1, and assign by the largest x·c.
            seed:   k-means++: each next seed is a row drawn with probability ∝ weight × squared distance to the seeds.
            empty:  an empty cell takes half of the heaviest one: of its members, those lying farthest towards the one
                    that is farthest from the centre. That never raises the objective.
Cost        N·C distances per step; at most `iters` steps; stops when no label changes.
Paper       Lloyd's algorithm with the seeding of Arthur and Vassilvitskii 2007 (unverified: read in secondary sources).
Differs     SPANN's balanced clustering charges the counts of the step before to all rows at once; then cells swap their
            rows for ever unless the charge is small. Moving one row at a time lowers distance + balance · (pairs of
            rows that share a cell) at every move, so any charge settles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tutor.ann.base import as_rows, pairwise, prepare
from tutor.cost import Cost

BLOCK = 8192


@dataclass(frozen=True)
class KMeans:
    """A clustering.

    Attributes:
        centroids: `(C, d)`, of the dtype of the rows; of length 1 if spherical.
        labels: `(N,)` int64, the cell of every row.
        counts: `(C,)` int64 members per cell (rows, not weights).
        objective: `(steps + 1,)` float64, what every step lowers: weighted squared distance to the own centre
            (spherical: of unit vectors, so 2 - 2 cos), plus balance times the pairs of rows that share a cell.
        converged: no label changed in the last step.
        cost: `build_dots`, distances computed.
    """

    centroids: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    objective: np.ndarray
    converged: bool
    cost: Cost


def kmeans(X: Any, k: int, *, iters: int = 25, init: str = "k-means++", seed: int = 0, weights: Any = None,
           spherical: bool = False, balance: float = 0.0, progress: bool = False) -> KMeans:
    """Cluster the rows of `X (N, d)` into `k` cells.

    Args:
        iters: most update steps; 0 leaves the seeds as centres.
        init: "k-means++" or "random" (distinct rows).
        weights: `(N,)` >= 0, importance of each row; all ones by default.
        spherical: cluster directions: rows and centres have length 1.
        balance: what sharing a cell costs a row, per other member, in units of squared distance.

    Raises:
        ValueError: k outside [1, N], unknown init, bad weights, or a zero row when spherical.
    """
    X = as_rows(X, "X")
    N = len(X)
    if not 1 <= k <= N:
        raise ValueError(f"k must be in [1, {N}], the number of rows; got {k}")
    if init not in ("k-means++", "random"):
        raise ValueError(f"init must be 'k-means++' or 'random'; got {init!r}")
    if balance < 0 or iters < 0:
        raise ValueError(f"balance and iters must be >= 0; got balance={balance}, iters={iters}")
    w = np.ones(N) if weights is None else np.asarray(weights, np.float64)
    if w.shape != (N,) or not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise ValueError(f"weights must be {N} finite numbers >= 0, not all 0; got shape {w.shape}")
    rng = np.random.default_rng(seed)
    X = prepare(X, "cosine") if spherical else X
    origin = np.zeros(X.shape[1], X.dtype) if spherical else X.mean(0)
    X = X - origin                                   # a shift changes no distance; it saves digits of the product form

    if init == "random":
        C = X[np.sort(rng.choice(N, k, replace=False))]
        dots = 0
    else:
        C, dots = _plus_plus(X, k, w, rng), N * (k - 1)
    labels, gap = assign(X, C)
    if balance:
        labels, gap = _assign_balanced(X, C, labels, w, balance)
    objective = [_objective(labels, gap, w, balance)]
    converged = False
    for _ in tqdm(range(iters), desc="k-means", disable=not progress):
        labels = _fill_empty(X, C, labels, w)
        C = _means(X, labels, w, C, spherical)
        before = labels
        labels, gap = _assign_balanced(X, C, labels, w, balance) if balance else assign(X, C)
        objective.append(_objective(labels, gap, w, balance))
        dots += N * k
        if np.array_equal(before, labels):
            converged = True
            break
    return KMeans(C + origin, labels, np.bincount(labels, minlength=k), np.asarray(objective), converged,
                  Cost(build_dots=dots + N * k))


def assign(X: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid `(N,)` of every row, and the squared distance to it `(N,)` float64; ties to the lower index."""
    blocks = range(0, len(X), BLOCK)
    labels = np.concatenate([pairwise(X[start:start + BLOCK], centroids).argmin(1) for start in blocks])
    return labels, _gap(X, centroids, labels)


def _assign_balanced(X: np.ndarray, C: np.ndarray, labels: np.ndarray, w: np.ndarray,
                     balance: float) -> tuple[np.ndarray, np.ndarray]:
    """One pass over the rows in order: each leaves its cell and joins the one that is cheapest now."""
    labels = labels.copy()
    counts = np.bincount(labels, minlength=len(C))
    for start in range(0, len(X), BLOCK):
        D = w[start:start + BLOCK, None] * pairwise(X[start:start + BLOCK], C)                 # (block, C)
        for i, row in enumerate(D, start):
            counts[labels[i]] -= 1
            labels[i] = np.argmin(row + balance * counts)
            counts[labels[i]] += 1
    return labels, _gap(X, C, labels)


def _gap(X: np.ndarray, C: np.ndarray, labels: np.ndarray) -> np.ndarray:
    diff = X - C[labels]                                                       # by subtraction: exact to rounding
    return np.einsum("nd,nd->n", diff, diff, dtype=np.float64)


def _objective(labels: np.ndarray, gap: np.ndarray, w: np.ndarray, balance: float) -> float:
    counts = np.bincount(labels)
    return float(w @ gap + balance * (counts * (counts - 1)).sum() / 2)


def _plus_plus(X: np.ndarray, k: int, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    chosen = [int(rng.choice(len(X), p=w / w.sum()))]
    gap = np.full(len(X), np.inf)                                              # squared distance to the nearest seed
    for _ in range(k - 1):
        diff = X - X[chosen[-1]]
        gap = np.minimum(gap, np.einsum("nd,nd->n", diff, diff, dtype=np.float64))
        odds = w * gap
        if odds.sum() > 0:
            chosen.append(int(rng.choice(len(X), p=odds / odds.sum())))
        else:                                                                  # distinct rows ran out: any unused one
            chosen.append(int(np.setdiff1d(np.arange(len(X)), chosen)[0]))
    return X[chosen]


def _means(X: np.ndarray, labels: np.ndarray, w: np.ndarray, old: np.ndarray, spherical: bool) -> np.ndarray:
    """Weighted mean of each cell, `(C, d)`; a cell without weight keeps its old centre."""
    k = len(old)
    order = np.argsort(labels, kind="stable")
    members = np.bincount(labels, minlength=k)
    starts = np.cumsum(members) - members
    held = members > 0
    sums = np.zeros((k, X.shape[1]))
    sums[held] = np.add.reduceat((X * w[:, None])[order], starts[held], axis=0)
    size = np.linalg.norm(sums, axis=1) if spherical else np.bincount(labels, w, minlength=k)
    C = old.copy()
    C[size > 0] = sums[size > 0] / size[size > 0, None]
    return C


def _fill_empty(X: np.ndarray, C: np.ndarray, labels: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Labels in which each empty cell has taken half of the cell that was heaviest (of two members at least)."""
    labels = labels.copy()
    for cell in np.flatnonzero(np.bincount(labels, minlength=len(C)) == 0):
        rows = np.bincount(labels, minlength=len(C))
        weight = np.where(rows >= 2, np.bincount(labels, w, minlength=len(C)), -1)
        members = np.flatnonzero(labels == weight.argmax())
        offset = X[members] - X[members].mean(0)                               # (m, d)
        along = offset @ offset[np.einsum("nd,nd->n", offset, offset).argmax()]
        labels[members[np.argsort(-along, kind="stable")[:len(members) // 2]]] = cell
    return labels
