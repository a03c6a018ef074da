"""Data and indexes that the tests of this family share."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

import numpy as np

import tutor.ann
from tutor import catalog
from tutor.ann import graph
from tutor.ann.base import Index, distances, prepare


def registered() -> list[catalog.Method]:
    """Every index class of the family that is in the catalog."""
    for module in pkgutil.iter_modules(tutor.ann.__path__, "tutor.ann."):
        importlib.import_module(module.name)
    return [m for key, m in sorted(catalog.REGISTRY.items())
            if key.startswith("ann.") and isinstance(m.build, type) and issubclass(m.build, Index)]


def gaussian(N: int = 300, d: int = 12, nq: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Base `(N, d)` and queries `(nq, d)`, isotropic."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, d)).astype(np.float32), rng.standard_normal((nq, d)).astype(np.float32)


def clustered(N: int = 1000, clusters: int = 20, d: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows `(N, d)` in tight clusters, in random order, and the cluster of each `(N,)`."""
    rng = np.random.default_rng(seed)
    label = rng.integers(clusters, size=N)
    centres = 4 * rng.standard_normal((clusters, d))
    return (centres[label] + 0.1 * rng.standard_normal((N, d))).astype(np.float32), label


def brute(X: np.ndarray, Q: np.ndarray, metric: str) -> np.ndarray:
    """All distances `(nq, N)` in float64 from the definition, written without the package."""
    X, Q = np.asarray(X, np.float64), np.asarray(Q, np.float64)
    if metric == "l2":
        return np.asarray([[((q - x) ** 2).sum() for x in X] for q in Q])
    if metric == "cosine":
        X = X / np.sqrt((X ** 2).sum(1, keepdims=True))
        Q = Q / np.sqrt((Q ** 2).sum(1, keepdims=True))
        return 1 - Q @ X.T
    return -(Q @ X.T)


@lru_cache(maxsize=32)
def built(name: str, metric: str = "l2", N: int = 300) -> Index:
    """One index over `gaussian(N)`, shared by tests that do not change it."""
    entry = next(m for m in registered() if m.name == name)
    return entry.build().build(gaussian(N)[0], metric)


def full(index: Index) -> dict[str, int]:
    """The effort with which an index misses nothing."""
    return {index.effort: len(index.X)} if index.effort else {}


def within_reach(index: Index, q: np.ndarray) -> np.ndarray:
    """Rows that a search for `q` can arrive at: all of them, but for a graph that nobody repaired."""
    if not hasattr(index, "layers"):
        return np.ones(len(index.X), bool)
    landing, _, _ = index._descend(q, 0)
    return graph.reachable(index.layers[0], landing, len(index.X))


def own_distances(index: Index, q: np.ndarray) -> np.ndarray:
    return distances(prepare(q[None], index.metric)[0], index.X, index.metric)
