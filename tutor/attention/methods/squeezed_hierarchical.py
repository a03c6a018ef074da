"""Squeezed Attention on two levels: ask a few clusters of clusters first, then only the centroids below the good ones.

Idea        With 5 % of the keys as centroids, a long prefix has many of them, and each query meets them all. So the
            centroids are clustered, too; a group that is not worth its keys is dropped with everything below it.
Rule        level 1   clusters of the centroids, as many as 1 % of the keys; keep a group when its e > T1
            level 2   of the centroids below kept groups, keep those with e > T2; e's denominator counts only the keys
                      below kept groups (`squeezed` says what e is, and the rest of the rule)
Cost        scored: groups, and centroids below the kept ones. The rest as in `squeezed`.
Paper       Hooper et al. 2024, Squeezed Attention, section 4.3; the 1 % of level 1 and the section number unverified;
            its code's percentile for level 1 is 0.7.
Differs     T2 is calibrated with the denominator that the look-up uses; the code calibrates it with that of all keys.
            A group's centroid is the mean of the keys below it (unverified).
See also    squeezed, tests/museum/attention/squeezed.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tutor.attention.methods.squeezed import Index, Squeezed, calibrate
from tutor.attention.selection import need
from tutor.catalog import method


@method("squeezed_hierarchical", "attention", "Squeezed Attention, two levels", paper="hooper2024squeezed",
        kernel="tutor.kernels.centroids.centroid_select", flags=("selector",),
        grid=tuple({"sparsity": p, "coarse_sparsity": c} for p, c in ((0.9, 0.7), (0.7, 0.5), (0.5, 0.3))))
@dataclass(frozen=True)
class SqueezedHierarchical(Squeezed):
    """`coarse_frac` groups per clustered key; `coarse_sparsity` and `coarse_threshold` are those of level 1."""

    coarse_frac: float = 0.01
    coarse_sparsity: float = 0.5
    coarse_threshold: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.coarse_frac <= self.frac:
            raise ValueError(f"coarse_frac must be in (0, frac = {self.frac}]; got {self.coarse_frac}")
        if not 0 <= self.coarse_sparsity <= self.sparsity:
            raise ValueError(f"coarse_sparsity must be in [0, sparsity = {self.sparsity}]: what level 1 leaves out stays "
                             f"out; got {self.coarse_sparsity}")
        if (self.threshold is None) != (self.coarse_threshold is None):
            raise ValueError("give both threshold and coarse_threshold, or neither")
        need(0 if self.coarse_threshold is None else self.coarse_threshold, 0, "coarse_threshold")

    def _levels(self) -> dict:
        return super()._levels() | {"coarse_frac": self.coarse_frac}

    def thresholds(self, index: Index) -> tuple[float, ...]:
        if self.threshold is not None:
            return self.coarse_threshold, self.threshold
        self._need_observed(index)
        return calibrate([index], self.coarse_sparsity, self.sparsity, share_heads=self.share_heads)

    def full(self, keys: int) -> SqueezedHierarchical:
        return replace(self, threshold=0.0, coarse_threshold=0.0)
