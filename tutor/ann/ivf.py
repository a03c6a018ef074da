"""IVF: file the rows in lists by their nearest centroid, then open only the lists nearest to the query.

Idea        k-means cuts space into cells. A query's neighbours mostly live in its own cell and a few next to it, so the
            other lists stay closed. How many to open is decided per search, without building again.
Rule        measure all centroids; open the `nprobe` nearest lists; scan every row in them.
Cost        ndist = nlist + rows in the opened lists; nlists = nprobe.
Paper       Jégou, Douze and Schmid 2011, section IV (the inverted file, here without codes). [jegou2011pq]
Differs     lists are stored contiguously in list order (CSR), rows included.

For "l2" the cells are k-means cells and lists are ranked by the distance to their centroid. For "cosine" the clustering
is spherical. For "ip" `coarse` chooses: "mean" clusters the rows by L2 and ranks lists by q·centroid, "spherical"
clusters directions, "lift" clusters rows padded to one length (`tutor.ann.mips`), which is L2 through and through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tutor.ann.base import Answer, Index, Result, distances, nearest, record_scan
from tutor.ann.kmeans import kmeans
from tutor.ann.mips import lift
from tutor.catalog import method
from tutor.cost import Cost

if TYPE_CHECKING:
    from tutor.trace import Recorder

COARSE = ("mean", "spherical", "lift")


@method("ivf", "ann", "Inverted file (IVF-Flat)", paper="jegou2011pq", flags=("nested",),
        grid=tuple({"nprobe": n} for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)))
@dataclass(eq=False)
class IVF(Index):
    """Inverted lists over full-precision rows.

    Attributes:
        nlist: number of lists; None: the whole number nearest to 4 sqrt(N), at most N.
        coarse: how "ip" rows are clustered, one of "mean", "spherical", "lift".
        iters: k-means steps. seed: of its seeding.
        ids, offsets: after build, list j holds rows `ids[offsets[j]:offsets[j+1]]`, stored in `rows` in that order.
        centroids: `(nlist, d)`, `(nlist, d + 1)` for "lift".
    """

    nlist: int | None = None
    coarse: str = "mean"
    iters: int = 25
    seed: int = 0
    effort = "nprobe"

    def __post_init__(self):
        if self.nlist is not None and self.nlist < 1:
            raise ValueError(f"nlist must be >= 1; got {self.nlist}")
        if self.coarse not in COARSE:
            raise ValueError(f"coarse must be one of {COARSE}; got {self.coarse!r}")

    def _build(self, progress: bool) -> None:
        N = len(self.X)
        nlist = min(N, round(4 * N ** 0.5)) if self.nlist is None else self.nlist
        lifted = self.metric == "ip" and self.coarse == "lift"
        spherical = self.metric == "cosine" or (self.metric == "ip" and self.coarse == "spherical")
        cells = kmeans(lift(self.X) if lifted else self.X, nlist, iters=self.iters, seed=self.seed, spherical=spherical,
                       progress=progress)
        self.centroids, self.build_cost = cells.centroids, cells.cost
        self.ids = np.argsort(cells.labels, kind="stable")                     # by list, then by id
        self.offsets = np.concatenate([[0], np.cumsum(cells.counts)])
        self.rows = self.X[self.ids]
        self.cell = cells.labels

    def search(self, q: Any, k: int, *, nprobe: int = 8, trace: Recorder | None = None, pad: bool = False) -> Result:
        """The `k` nearest rows among those of the `nprobe` nearest lists (all, if there are no more).

        Lists that hold fewer than k rows together leave ids of -1 at the end.
        """
        if nprobe < 1:
            raise ValueError(f"nprobe must be >= 1; got {nprobe}")
        return self._answer(q, k, trace, pad, nprobe=nprobe)

    def _search_one(self, q: np.ndarray, k: int, trace: Recorder | None, nprobe: int) -> Answer:
        to_lists = self._rank(q)                                               # (nlist,)
        opened, _ = nearest(np.arange(len(to_lists)), to_lists, min(nprobe, len(to_lists)))
        if trace is not None:
            trace.event("entered", level=1)
            for j, d in enumerate(to_lists.tolist()):                          # level 1: centroids
                trace.event("evaluated", level=1, dst=j, dist=d, accepted=j in opened)
        held = np.empty(0, np.int64), np.empty(0, q.dtype)
        ndist = len(to_lists)
        for j in opened.tolist():
            part = slice(self.offsets[j], self.offsets[j + 1])
            ids, d = self.ids[part], distances(q, self.rows[part], self.metric)
            ndist += len(ids)
            if trace is not None:
                trace.next_step()
                trace.event("opened_list", level=0, dst=j, dist=to_lists[j])
                record_scan(trace, ids, d, held[1], k, src=j)
            held = nearest(np.concatenate([held[0], ids]), np.concatenate([held[1], d]), k)
        return *held, Cost(ndist=ndist, nlists=len(opened))

    def _rank(self, q: np.ndarray) -> np.ndarray:
        if self.metric == "ip" and self.coarse == "lift":
            return distances(np.append(q, 0).astype(q.dtype), self.centroids)
        return distances(q, self.centroids, self.metric)
