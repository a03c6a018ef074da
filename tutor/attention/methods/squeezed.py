"""Squeezed Attention: cluster the keys of a fixed prefix once, then read only the clusters a question asks for.

Idea        Many questions are asked of one long text. Its keys do not change, so they are clustered beforehand. A
            question meets the centroids first; a centroid tells what its cluster is worth to it, and only the keys of
            clusters that are worth enough are read. One threshold for all layers and heads: a head that looks at little
            reads little.
Rule        build      k-means on the keys of the prefix at length 1; centroid C_i = mean of the keys at their own length
            estimate   e_i = exp(q·C_i / sqrt(D)) / sum_j N_j exp(q·C_j / sqrt(D)): the softmax share of one key of
                       cluster i, if each of the N_j keys of cluster j were its centroid
            calibrate  T = the p-quantile of the keys' e, averaged over the last `window` queries of the prefix, over all
                       layers, heads and keys together: a share p of the keys stays below
            select     keep key j when e of its cluster is > T. Always read: the last `window` keys of the prefix, which
                       are never clustered, and all that follows the prefix.
            A question of several tokens averages e over them. On two levels (`squeezed_hierarchical`), clusters of
            clusters are looked up first, and e's denominator counts the surviving keys only.
Cost        scored: one product per centroid that a row looks at; loaded: the rest of the rule; build_dots: k-means and
            the calibration; index_bytes: centroids, a label a key, a count a cluster.
Paper       Hooper et al. 2024, Squeezed Attention, section 4 (4.1 clustering, 4.2 look-up, 4.3 hierarchical), with the
            defaults of its code: 5 % clusters, window 100, k-means++ with at most 300 steps. Section numbers unverified.
Differs     keys are clustered per KV head, and each query head chooses for itself; `share_heads` averages e over the
            query heads of a KV head (the code knows no grouped heads). `select` calibrates on the layer it is given;
            `calibrate` over many layers gives the paper's one number, passed as `threshold`. The window is read
            without asking: the code gives it a score of 1 / queries. `sinks` reads the first keys, too (0 in the
            paper). And a query *inside* the prefix, which the paper reads densely, is answered as if it were asked
            there: it reads its own last `window` keys, and of the kept clusters the keys up to itself, which alone
            count in e; the centroids have seen the later keys, too.
See also    squeezed_hierarchical, tutor.ann.kmeans, tests/museum/attention/squeezed.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tutor.ann.kmeans import kmeans
from tutor.attention.dense import check_qkv, logits, positions
from tutor.attention.selection import Selection, Selector, finish, need
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


@dataclass(frozen=True, eq=False)
class Index:
    """The clusters of one layer's prefix.

    Attributes:
        centroids: `(B, Hkv, C, D)`, mean of the members; zero for an empty cluster.
        labels: int64 `(B, Hkv, n)`, the cluster of each of the first n keys. counts: `(B, Hkv, C)`, its members.
        window: keys after the n clustered ones that belong to the prefix and are always read.
        observed: `(B, Hq, w, D)`, last queries of the prefix, for the calibration.
        coarse: the level above, an index of the same keys; parents: `(B, Hkv, C)`, the cluster there of each cluster here.
        cost: `build_dots` and `index_bytes`.
    """

    centroids: Tensor
    labels: Tensor
    counts: Tensor
    window: int
    observed: Tensor
    coarse: Index | None = None
    parents: Tensor | None = None
    cost: Cost = Cost()

    @property
    def prefix(self) -> int:
        return self.labels.shape[2] + self.window

    def visible(self, pos: Tensor) -> Tensor:
        """Members of each cluster that a query at `pos (T,)` may see: `(B, Hkv, T, C)`; all of them after the prefix."""
        n, c = self.labels.shape[2], self.counts.shape[2]
        if not len(pos) or int(pos.min()) >= n - 1:
            return self.counts[:, :, None].expand(-1, -1, len(pos), -1)
        member = torch.zeros(*self.labels.shape[:2], n + 1, c, dtype=torch.int32)
        member[:, :, 1:].scatter_(3, self.labels[..., None], 1)
        return member.cumsum_(2)[:, :, (pos + 1).clamp(0, n)]


def build(k: Tensor, observed: Tensor, *, window: int = 100, frac: float = 0.05, coarse_frac: float | None = None,
          iters: int = 300, seed: int = 0) -> Index:
    """Cluster the prefix `k (B, Hkv, P, D)`, but for its last `window` keys, into `frac` times as many clusters.

    Args:
        observed: `(B, Hq, w, D)`, queries of the prefix's last positions.
        coarse_frac: also cluster the centroids, into this share of the keys.
    """
    check_qkv(observed, k)
    n = k.shape[2] - window
    need(window, 0, "window")
    if n < 1:
        raise ValueError(f"the prefix has {k.shape[2]} keys, the window {window}: nothing is left to cluster; "
                         "lengthen the prefix or shorten the window")
    for name, value in (("frac", frac), ("coarse_frac", frac if coarse_frac is None else coarse_frac)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be in (0, 1]; got {value}")
    keys, ones = k[:, :, :n], torch.ones(*k.shape[:2], n, dtype=torch.int64)
    labels, dots = _cluster(keys, ones, max(1, int(frac * n)), iters, seed)
    centroids, counts = _means(keys, ones, labels)
    coarse = parents = None
    if coarse_frac is not None:
        clusters = min(max(1, int(coarse_frac * n)), centroids.shape[2])
        parents, more = _cluster(centroids, counts, clusters, iters, seed)
        tops, members = _means(centroids, counts, parents)
        coarse = Index(tops, parents.gather(2, labels), members, window, observed, cost=_size(tops, parents, members))
        dots += more
    cost = Cost(build_dots=dots) + _size(centroids, labels, counts)
    return Index(centroids, labels, counts, window, observed, coarse, parents, cost if coarse is None else cost + coarse.cost)


def _cluster(x: Tensor, weights: Tensor, clusters: int, iters: int, seed: int) -> tuple[Tensor, int]:
    """Labels `(B, Hkv, n)` of k-means on the directions of `x (B, Hkv, n, D)`, head by head, and the dots it took."""
    unit = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)).flatten(0, 1).numpy()
    cells = [kmeans(rows, clusters, iters=iters, seed=seed, weights=w)
             for rows, w in zip(unit, weights.flatten(0, 1).numpy())]
    labels = torch.from_numpy(np.stack([cell.labels for cell in cells]))
    return labels.reshape(x.shape[:3]), sum(cell.cost["build_dots"] for cell in cells)


def _means(x: Tensor, weights: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean `(B, Hkv, C, D)` of the members of each cluster, and their summed weights `(B, Hkv, C)`."""
    shape = *x.shape[:2], int(labels.max()) + 1
    counts = torch.zeros(shape, dtype=torch.int64).scatter_add(2, labels, weights)
    sums = torch.zeros(*shape, x.shape[3], dtype=torch.float64)
    sums.scatter_add_(2, labels[..., None].expand(x.shape), x.double() * weights[..., None])
    return (sums / counts.clamp(min=1)[..., None]).to(x.dtype), counts


def _size(centroids: Tensor, labels: Tensor, counts: Tensor) -> Cost:
    return Cost(index_bytes=centroids.numel() * centroids.element_size() + 4 * (labels.numel() + counts.numel()))


# --------------------------------------------------------------------------------------------------- asking the index

def estimate(q: Tensor, centroids: Tensor, counts: Tensor) -> Tensor:
    """log e `(B, Hq, T, C)`: what one key of each cluster would weigh; `-inf` where `counts (B, Hq, T, C)` is 0."""
    s = logits(q, centroids, causal=False)                                               # (B, Hq, T, C)
    lse = torch.logsumexp(s + counts.log(), -1, keepdim=True)                            # every member weighs exp(s)
    return torch.where(counts > 0, s - lse, float("-inf"))


def scores(index: Index, q: Tensor, *, pos_q: Tensor | None = None, question: int = 1, share_heads: bool = False,
           alive: Tensor | None = None) -> tuple[Tensor, int]:
    """log e of each cluster for each query row, averaged as asked, `(B, Hq, T, C)`; and how many products it took.

    Args:
        pos_q: `(T,)`, unless all queries follow the prefix.
        question: this many consecutive rows ask together: e is averaged over them.
        share_heads: e is averaged over the query heads of a KV head.
        alive: bool `(B, Hq, T, C)`, clusters that are still in the race; the others have no members here.
    """
    hq, t, hkv = *q.shape[1:3], index.counts.shape[1]
    pos = torch.full((t,), index.prefix) if pos_q is None else pos_q
    counts = index.visible(pos).repeat_interleave(hq // hkv, 1)                          # (B, Hq, T, C)
    counts = counts if alive is None else torch.where(alive, counts, 0)
    log_e = estimate(q, index.centroids, counts)
    if share_heads:
        grouped = log_e.unflatten(1, (hkv, hq // hkv))
        log_e = _log_mean(grouped, 2).expand_as(grouped).flatten(1, 2)
    if question > 1:
        log_e = torch.cat([_log_mean(rows, 2).expand_as(rows) for rows in log_e.split(question, 2)], 2)
    return log_e, int((counts > 0).sum())


def _log_mean(x: Tensor, dim: int) -> Tensor:
    """log of the mean of exp(x)."""
    return torch.logsumexp(x, dim, keepdim=True) - math.log(x.shape[dim])


def _above(log_e: Tensor, threshold: float) -> Tensor:
    """e > T; at T = 0 every cluster with a member passes, however small its e."""
    return log_e > float("-inf") if threshold <= 0 else log_e.exp() > threshold


def lookup(index: Index, q: Tensor, *thresholds: float, **how) -> tuple[Tensor, int]:
    """Clusters to read, bool `(B, Hq, T, C)`, and the products it took; two thresholds (coarse, fine) use two levels.

    `how` goes to `scores`.
    """
    if not 1 <= len(thresholds) <= 2 or (len(thresholds) == 2 and index.coarse is None):
        raise ValueError(f"one threshold for each level of the index, coarse before fine; got {thresholds}")
    alive, dots = None, 0
    if len(thresholds) == 2:
        top, dots = scores(index.coarse, q, **how)
        parents = index.parents.repeat_interleave(q.shape[1] // index.parents.shape[1], 1)[:, :, None]
        alive = _above(top, thresholds[0]).gather(3, parents.expand(*q.shape[:3], -1))    # (B, Hq, T, C)
    log_e, more = scores(index, q, alive=alive, **how)
    return _above(log_e, thresholds[-1]), dots + more


def calibrate(indexes: Sequence[Index], *sparsities: float, share_heads: bool = False) -> tuple[float, ...]:
    """Thresholds that leave out the share `sparsity` of all clustered keys together, for the observed queries.

    One sparsity gives `(T,)`; two, coarse before fine, give the thresholds of both levels. The fine one is taken with
    the denominators that the look-up will use, and keys whose upper cluster failed count as left out.
    """
    for p in sparsities:
        if not 0 <= p <= 1:
            raise ValueError(f"sparsity must be in [0, 1]; got {p}")
    thresholds: tuple[float, ...] = ()
    for level, p in enumerate(sparsities):
        values, members = [], []
        for index in indexes:
            upper, alive = level < len(sparsities) - 1, None
            w = index.observed.shape[2]
            how = {"question": w, "share_heads": share_heads}
            if level:
                top, _ = scores(index.coarse, index.observed, **how)
                parents = index.parents.repeat_interleave(index.observed.shape[1] // index.parents.shape[1], 1)[:, :, None]
                alive = _above(top, thresholds[0]).gather(3, parents.expand(-1, -1, w, -1))
            at = index.coarse if upper else index
            e = scores(at, index.observed, alive=alive, **how)[0][:, :, 0].exp()         # (B, Hq, C)
            values.append(e.flatten())
            members.append(at.counts.repeat_interleave(e.shape[1] // at.counts.shape[1], 1).flatten())
        thresholds += (_quantile(torch.cat(values), torch.cat(members), p),)
    return thresholds


def _quantile(values: Tensor, weights: Tensor, p: float) -> float:
    """The smallest value such that values up to it hold at least the share p of the weight; 0 for p = 0."""
    order = values.argsort(stable=True)
    reached = weights[order].cumsum(0)
    at = int(torch.searchsorted(reached, math.ceil(p * int(reached[-1]) - 1e-9)))
    return float(values[order[at]]) if p > 0 else 0.0


# -------------------------------------------------------------------------------------------------------- the selector

@method("squeezed", "attention", "Squeezed Attention", paper="hooper2024squeezed",
        kernel="tutor.kernels.centroids.centroid_select", flags=("selector", "monotone"),
        grid=tuple({"sparsity": p} for p in (0.9, 0.7, 0.5)))
@dataclass(frozen=True)
class Squeezed(Selector):
    """The first `share` of the keys is the fixed prefix; what follows is read whole.

    Attributes:
        sparsity: share of the clustered keys that the calibration leaves out.
        frac: clusters per clustered key.
        window: keys at the end of the prefix, always read, whose queries calibrate.
        sinks: first keys that are always read, whatever their clusters are worth.
        threshold: one number for all layers and heads, from `calibrate`; None: this layer's own.
        question: consecutive rows that ask together, e.g. all tokens of a question.
        share_heads: the query heads of a KV head choose together.
    """

    sparsity: float = 0.7
    share: float = 0.9
    frac: float = 0.05
    window: int = 100
    sinks: int = 0
    threshold: float | None = None
    question: int = 1
    share_heads: bool = False
    iters: int = 300
    seed: int = 0

    def __post_init__(self):
        for name in ("share", "frac"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1]; got {getattr(self, name)}")
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"sparsity must be in [0, 1]; got {self.sparsity}")
        need(self.window, 1, "window", "a query reads at least its own key")
        need(self.sinks, 0, "sinks")
        need(self.question, 1, "question")
        need(0 if self.threshold is None else self.threshold, 0, "threshold")

    def index(self, q: Tensor, k: Tensor, *, pos_q: Tensor | None = None, seed: int | None = None) -> Index | None:
        """The index of the prefix, to be kept while questions come; None when the prefix is all window."""
        prefix, pos = int(self.share * k.shape[2]), positions(q, k, pos_q)
        if prefix <= self.window:
            return None
        last = (pos >= prefix - self.window) & (pos < prefix)
        return build(k[:, :, :prefix], q[:, :, last], seed=self.seed if seed is None else seed, **self._levels())

    def _levels(self) -> dict:
        return {"window": self.window, "frac": self.frac, "iters": self.iters}

    def thresholds(self, index: Index) -> tuple[float, ...]:
        """What `lookup` compares with, coarse before fine."""
        if self.threshold is not None:
            return (self.threshold,)
        self._need_observed(index)
        return calibrate([index], self.sparsity, share_heads=self.share_heads)

    def _need_observed(self, index: Index) -> None:
        if not index.observed.shape[2]:
            raise ValueError(f"the calibration needs queries at positions {index.prefix - index.window} to "
                             f"{index.prefix - 1}, the last {index.window} of the prefix; pass them too, or a threshold")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None,
               index: Index | None = None) -> tuple[Selection, Cost]:
        """As every selector; `index` reuses one that was built before (its cost is not counted again)."""
        check_qkv(q, k, v)
        seed = None if generator is None else int(torch.randint(2**31, (), generator=generator))
        reused, pos = index is not None, positions(q, k, pos_q)
        index = index or self.index(q, k, pos_q=pos_q, seed=seed)
        if index is None:                                                  # a short text: the window is all of it
            return finish(Selection.from_mask(torch.ones(1, 1, 1, 1, dtype=torch.bool), q, k, pos_q=pos_q), trace=trace)
        kept, dots = lookup(index, q, *self.thresholds(index), pos_q=pos, question=self.question,
                            share_heads=self.share_heads)
        sel = Selection.from_mask(keys_of(index, kept, pos, k.shape[2], self.sinks), q, k, pos_q=pos_q)
        return finish(sel, scored=dots, trace=trace, **({} if reused else dict(index.cost)))

    def full(self, keys: int) -> Squeezed:
        return replace(self, threshold=0.0)


def keys_of(index: Index, kept: Tensor, pos: Tensor, keys: int, sinks: int = 0) -> Tensor:
    """bool `(B, Hq, T, S)`: the members of the kept clusters, the sinks, the window and everything after it."""
    (b, hq, t), n, key = kept.shape[:3], index.labels.shape[2], torch.arange(keys)
    near = key >= (pos + 1).clamp(max=index.prefix)[:, None] - index.window                         # (T, S)
    mask = (near | (key < sinks)).expand(b, hq, t, keys).clone()
    for i, h in ((i, h) for i in range(b) for h in range(hq)):
        labels = index.labels[i, h // (hq // index.labels.shape[1])]                                # (n,)
        mask[i, h, :, :n] |= kept[i, h][:, labels]
    return mask
