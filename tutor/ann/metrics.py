"""How good an answer is: recall, recall by threshold, attention mass; and which settings are worth having.

Idea        The truth is a list of ids, but two rows at the same distance are equally right, and for attention what
            counts is not the number of keys found but the softmax weight they carry. Three measures, one per question.
Paper       Aumüller, Bernhardsson and Faithfull, ANN-Benchmarks (threshold recall, Pareto frontier).
            [aumuller2020annbenchmarks]
"""

from __future__ import annotations

import numpy as np


def recall(ids: np.ndarray, truth: np.ndarray) -> float:
    """Mean share of the true ids that were returned: `|ids ∩ truth| / k`, over rows of `(nq, k)`; -1 never counts."""
    ids, truth = _rows(ids, truth)
    hits = sum(len(np.intersect1d(found[found >= 0], true)) for found, true in zip(ids, truth))
    return hits / truth.size


def threshold_recall(ids: np.ndarray, dist: np.ndarray, true_dist: np.ndarray, eps: float = 1e-3) -> float:
    """Share of returned rows whose true distance is at most the k-th true distance + `eps`: ties do not punish.

    Args:
        ids: `(nq, k)` returned ids.
        dist: `(nq, N)` true distances of all rows, computed by the judge and not by the index.
        true_dist: `(nq, k)` distances of the exact answer, ascending.

    Raises:
        ValueError: a row returns one id twice.
    """
    ids, true_dist = _rows(ids, true_dist)
    hits = 0
    for found, row, best in zip(ids, np.atleast_2d(dist), true_dist):
        found = found[found >= 0]
        if len(np.unique(found)) != len(found):
            raise ValueError(f"an answer holds one id twice: {found.tolist()}")
        hits += int((row[found] <= best[-1] + eps).sum())
    return hits / true_dist.size


def mass(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Softmax weight of the returned rows: `sum over ids of softmax(logits)`, per query.

    Args:
        ids: `(nq, k)`, -1 padded. logits: `(nq, N)`, for attention `q·k / sqrt(d)`.

    Returns:
        `(nq,)` in [0, 1].
    """
    logits = np.atleast_2d(np.asarray(logits, np.float64))
    weights = np.exp(logits - logits.max(1, keepdims=True))                    # (nq, N)
    weights /= weights.sum(1, keepdims=True)
    ids = np.atleast_2d(ids)
    picked = np.take_along_axis(weights, np.maximum(ids, 0), axis=1)           # (nq, k)
    return np.where(ids >= 0, picked, 0).sum(1)


def pareto(cost: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Indices of settings that no other beats, by rising cost: cheaper or better than every one before them."""
    cost, quality = np.asarray(cost, float), np.asarray(quality, float)
    chosen, best = [], -np.inf
    for i in np.lexsort((-quality, cost)):
        if quality[i] > best:
            chosen.append(i)
            best = quality[i]
    return np.asarray(chosen, dtype=np.int64)


def cost_at(cost: np.ndarray, quality: np.ndarray, target: float) -> float:
    """Cost at which the frontier reaches `target` quality, by linear interpolation; `inf` when it never does."""
    front = pareto(cost, quality)
    x, y = np.asarray(cost, float)[front], np.asarray(quality, float)[front]
    if not len(y) or y[-1] < target:
        return float("inf")
    return float(np.interp(target, y, x))


def _rows(ids: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ids, truth = np.atleast_2d(ids), np.atleast_2d(truth)
    if len(ids) != len(truth):
        raise ValueError(f"{len(ids)} answers {ids.shape} but {len(truth)} rows of truth {truth.shape}")
    return ids, truth
