"""Record a search as a trace: the map it happens on, the truth it is judged by, and every distance it measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tutor import catalog
from tutor.ann.base import Index, distances, nearest, prepare
from tutor.ann.hnsw import HNSW
from tutor.ann.ivf import IVF
from tutor.trace import Recorder, Trace, schema_of

SCHEMA = "ann.search/1"


class Layout:
    """A fixed 2-D map of `X (N, d)`: the first two principal components of the centred rows.

    The sign of each axis is chosen so that its largest loading is positive: the same rows give the same map.
    Further points (queries, centroids) are placed by `layout(Q)`.
    """

    def __init__(self, X: np.ndarray):
        X = np.asarray(X, np.float64)
        self.mean = X.mean(0)
        _, _, axes = np.linalg.svd(X - self.mean, full_matrices=False)
        axes = axes[:2]
        axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1))
        self.axes = np.zeros((2, X.shape[1]))
        self.axes[:len(axes)] = axes                             # one-dimensional rows lie on a line

    def __call__(self, Q: np.ndarray) -> np.ndarray:
        """Positions `(n, 2)` float32 of rows `Q (n, d)`."""
        return ((np.asarray(Q, np.float64) - self.mean) @ self.axes.T).astype(np.float32)


def record(index: Index, q: Any, k: int, *, subject: dict | None = None, layout: Layout | None = None,
           max_edges: int = 6000, **effort: int) -> Trace:
    """Search once for `q (d,)` and return the story as a trace of schema "ann.search/1".

    Events on level 0 speak of rows, on higher levels of rows of an upper floor (graphs) or of centroids (IVF).
    `best_k_worst` is the worst distance among the results held (the beam, or the best k), nan while not full.
    `n_correct` counts true neighbours met on level 0 so far; -1 on other levels.

    Args:
        subject: added to the trace's subject, e.g. `{"labels": [...]}`.
        max_edges: the lowest floor's edges are stored only if there are no more.
        effort: `ef=…` or `nprobe=…`, passed to `index.search`.
    """
    recorder = Recorder(SCHEMA, method=method_name(index), params={"k": k, **effort},
                        subject={**(subject or {}), "k": k, "metric": index.metric, **effort})
    result = index.search(np.asarray(q), k, trace=recorder, **effort)
    X = index.X
    query = prepare(np.asarray(q, X.dtype)[None], index.metric, "q")[0]
    layout = layout or Layout(X)
    every = distances(query, X, index.metric)                                  # (N,)
    truth, _ = nearest(np.arange(len(X)), every, k)
    arrays = {"xy": layout(X), "query_xy": layout(query[None])[0], "truth": truth.astype(np.int32),
              "result": result.ids[0].astype(np.int32), "true_dist": every.astype(np.float32)}
    if isinstance(index, IVF):
        arrays |= {"cell": index.cell.astype(np.int32), "centroid_xy": layout(index.centroids[:, :X.shape[1]])}
    base = index.layers[0] if isinstance(index, HNSW) else getattr(index, "adj", None)
    if base is not None:
        edges = np.column_stack([np.repeat(np.arange(len(base)), [len(row) for row in base]), np.concatenate(base)])
        edges = np.unique(np.sort(edges, axis=1), axis=0)                      # drawn once, whichever way it points
        if len(edges) <= max_edges:
            arrays["edges"] = edges.astype(np.int32)
    trace = recorder.finish(**arrays)
    return replace(trace, events={**trace.events, "n_correct": _found(trace, truth)})


def method_name(index: Index) -> str:
    """Name under which the class of `index` is in the catalog, or its class name."""
    for entry in catalog.REGISTRY.values():
        if entry.build is type(index):
            return entry.name
    return type(index).__name__


def _found(trace: Trace, truth: np.ndarray) -> np.ndarray:
    """True neighbours met on level 0 up to each event, `(events,)` int32; -1 on events of other levels."""
    kinds = schema_of(SCHEMA).kinds
    on_base = trace.events["level"] == 0
    met = on_base & np.isin(trace.events["kind"], [kinds.index("entered"), kinds.index("evaluated")])
    dst = trace.events["dst"]
    seen: set[int] = set()
    found = np.full(len(dst), -1, np.int32)
    true = set(truth.tolist())
    for i in range(len(dst)):
        if met[i] and int(dst[i]) in true:
            seen.add(int(dst[i]))
        if on_base[i]:
            found[i] = len(seen)
    return found
