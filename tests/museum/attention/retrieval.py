"""Ways to join static and retrieved keys, and to wire them, that look right and are not. Each bends one line."""

from __future__ import annotations

import torch
from torch import Tensor

from tutor.attention.partial import Partial


def merge_by_average(*parts: Partial) -> Tensor:
    """Averages the outputs as if every part held the same weight: a few poor keys then speak as loud as the best ones."""
    return sum(part.o for part in parts) / len(parts)


def lse_without_maximum(logits: Tensor) -> Tensor:
    """Sums exponentials before anything is subtracted, as a public port does: a logit of 89 is infinite in float32."""
    return torch.log(torch.exp(logits).sum(-1))


def merge_overlapping(static: Tensor, retrieved: Tensor, logits: Tensor, v: Tensor) -> Tensor:
    """Merges two bool masks `(S,)` without making them disjoint: a key in both is counted twice."""
    weights = torch.exp(logits - logits.max()) * (static.to(v.dtype) + retrieved.to(v.dtype))
    return (weights / weights.sum()) @ v


def nearest_by_inner_product(keys: Tensor, i: int, n: int) -> list[int]:
    """Neighbours of a key by inner product: where keys share a large mean, every key names the same few long ones."""
    scores = keys @ keys[i]
    scores[i] = float("-inf")
    return scores.topk(n).indices.tolist()
