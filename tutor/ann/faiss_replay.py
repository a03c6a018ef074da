"""faiss's own HNSW graph, walked by our search: the same answers, the same count of distances.

Idea        faiss keeps its HNSW in plain arrays. Read them, and the graph of a production library can be walked step by
            step, drawn and questioned.
Rule        node i's floors lie in `neighbors[offsets[i]:offsets[i+1]]`, floor l of it between the two bounds
            `cum_nneighbor_per_level[l:l+2]`, padded with -1. `levels[i]` counts floors from 1.
Cost        ndist = faiss's own `ndis` + 1 per query: faiss does not count the distance to the entry point.
Paper       Douze et al. 2024 (the library); Malkov and Yashunin 2020 (the graph). [douze2024faiss]
Differs     faiss links in parallel by default: with several threads two builds differ, replays of one build do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tutor.ann.hnsw import HNSW
from tutor.catalog import method


def from_faiss(index: Any) -> HNSW:
    """An `HNSW` that walks the graph of a `faiss.IndexHNSWFlat` (L2 or inner product).

    Raises:
        ValueError: not such an index, or an empty one.
    """
    import faiss

    if not isinstance(index, faiss.IndexHNSWFlat):
        raise ValueError(f"index must be a faiss.IndexHNSWFlat; got {type(index).__name__}"
                         " (pass faiss.downcast_index(index) if it was read from a file)")
    if index.ntotal == 0:
        raise ValueError("index is empty; add vectors to it first")
    metrics = {faiss.METRIC_L2: "l2", faiss.METRIC_INNER_PRODUCT: "ip"}
    if index.metric_type not in metrics:
        raise ValueError(f"index has faiss metric {index.metric_type}; L2 and inner product can be replayed")
    hnsw, array = index.hnsw, lambda vector: faiss.vector_to_array(vector).astype(np.int64)
    neighbours, offsets, bounds = array(hnsw.neighbors), array(hnsw.offsets), array(hnsw.cum_nneighbor_per_level)
    levels = array(hnsw.levels) - 1
    layers: list = [[None] * index.ntotal] + [{} for _ in range(hnsw.max_level)]
    for i in range(index.ntotal):
        for level in range(levels[i] + 1):
            row = neighbours[offsets[i] + bounds[level]:offsets[i] + bounds[level + 1]]
            layers[level][i] = row[row >= 0]
    replay = HNSW(M=max(2, hnsw.nb_neighbors(1)), ef_construction=hnsw.efConstruction, repair=False)
    replay.X, replay.metric = index.reconstruct_n(0, index.ntotal), metrics[index.metric_type]
    replay.layers, replay.levels, replay.entry, replay.repaired = layers, levels, int(hnsw.entry_point), 0
    return replay


@method("faiss_replay", "ann", "faiss's HNSW, replayed", paper="douze2024faiss", flags=("graph", "peer"),
        grid=tuple({"ef": ef} for ef in (10, 20, 40, 80, 160, 320, 640)))
@dataclass(eq=False)
class FaissHNSW(HNSW):
    """faiss builds the graph, `HNSW.search` walks it.

    Attributes:
        M, ef_construction: as in faiss. heuristic, fill, repair and seed belong to our own build and are not used.
        threads: build threads; one makes the graph the same every time.
        peer: after build, the `faiss.IndexHNSWFlat` itself.
    """

    M: int = 32
    ef_construction: int = 40
    repair: bool = False
    threads: int = 1

    def _build(self, progress: bool) -> None:
        import faiss

        kind = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        peer = faiss.IndexHNSWFlat(self.X.shape[1], self.M, kind)
        peer.hnsw.efConstruction = self.ef_construction
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self.threads)
        try:
            peer.add(self.X.astype(np.float32))
        finally:
            faiss.omp_set_num_threads(before)
        replay = from_faiss(peer)
        self.peer, self.repaired = peer, 0
        self.layers, self.levels, self.entry = replay.layers, replay.levels, replay.entry
