"""What the released Squeezed Attention code does otherwise, and a mistake that centroids invite."""

from __future__ import annotations

import torch
from torch import Tensor

from tutor.attention.dense import logits
from tutor.attention.methods.squeezed import Index, calibrate, scores


def estimate_without_sizes(q: Tensor, centroids: Tensor, counts: Tensor) -> Tensor:
    """log of exp(q·C_i) / sum_j exp(q·C_j), every centroid as if it were one key: many small clusters drown a large one."""
    s = logits(q, centroids, causal=False)
    return torch.where(counts > 0, s - torch.logsumexp(s.masked_fill(counts == 0, float("-inf")), -1, keepdim=True),
                       float("-inf"))


def window_is_kept(threshold: float, queries: int) -> bool:
    """The window as a cluster of its own with score 1 / queries, compared like all others: a long question drops it."""
    return 1 / queries > threshold


def two_flat_lookups(index: Index, q: Tensor, coarse_threshold: float, sparsity: float) -> Tensor:
    """The released simulation of two levels: both are looked up flat, with all keys in the denominator, and and-ed."""
    top, _ = scores(index.coarse, q)
    low, _ = scores(index, q)
    parents = index.parents.repeat_interleave(q.shape[1] // index.parents.shape[1], 1)[:, :, None]
    (fine,) = calibrate([index], sparsity)
    return (top.exp() > coarse_threshold).gather(3, parents.expand(*q.shape[:3], -1)) & (low.exp() > fine)
