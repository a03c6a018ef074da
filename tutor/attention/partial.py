"""Partial attention: an output over some of the keys, and the log-sum-exp that lets it be joined with the rest.

Idea        Softmax attention over a set of keys is a weighted mean. Cut the set in two, average each half on its own,
            remember each half's total weight, and the two averages combine into the whole, exactly.
Rule        lse = logaddexp(lse_1, lse_2);  o = exp(lse_1 - lse) o_1 + exp(lse_2 - lse) o_2.
            Identity (0, -inf). Associative and commutative over *disjoint* key sets.
Why         FlashAttention folds this over tiles, Flash-Decoding over splits, LeanAttention over uneven ranges,
            retrieval methods over static and fetched keys. It is written once, here, and everything else calls it.
Paper       Dao et al. 2022, section 3.1 (the online softmax); Milakov and Gimelshein 2018 for the recurrence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Partial:
    """Attention over a subset of keys.

    Attributes:
        o: normalised output over the subset, `(B, Hq, T, Dv)`; zeros where the subset is empty.
        lse: log-sum-exp of the scaled logits over the subset, `(B, Hq, T)`; `-inf` where it is empty.
    """

    o: Tensor
    lse: Tensor

    def __post_init__(self):
        if self.o.shape[:-1] != self.lse.shape:
            raise ValueError(f"o {tuple(self.o.shape)} and lse {tuple(self.lse.shape)} disagree: "
                             "lse must be o's shape without its last axis")


def empty_like(q: Tensor, dv: int | None = None) -> Partial:
    """The identity of `merge` for queries `q (B, Hq, T, D)`: zeros and `-inf`."""
    o = q.new_zeros(*q.shape[:-1], dv or q.shape[-1])
    return Partial(o, q.new_full(q.shape[:-1], float("-inf")))


def from_logits(logits: Tensor, v: Tensor) -> Partial:
    """Softmax-weighted mean of values from masked logits, with the maximum subtracted before anything is raised to e.

    Args:
        logits: `(..., T, S)`, scaled, `-inf` where a key is not allowed.
        v: `(..., S, Dv)`, broadcastable to the leading axes of `logits`.
    """
    if logits.shape[-1] == 0:                                              # no keys: the identity
        return Partial(logits @ v, logits.new_full(logits.shape[:-1], float("-inf")))
    m = finite(logits.amax(dim=-1))                                        # (..., T)
    weights = torch.exp(logits - m[..., None])                             # (..., T, S), the largest is 1
    total = weights.sum(dim=-1)                                            # (..., T), 0 for an empty row
    o = (weights @ v) / torch.where(total > 0, total, 1.0)[..., None]
    return Partial(o, m + torch.log(total))                                # log 0 = -inf marks the empty row


def merge(*parts: Partial) -> Partial:
    """Join partials over disjoint key sets.

    Raises:
        ValueError: no part given, or shapes differ.
    """
    if not parts:
        raise ValueError("merge needs at least one Partial; use empty_like(q) for the empty set")
    shapes = {tuple(part.o.shape) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"parts have different shapes {sorted(shapes)}; merge only partials of the same queries")
    if len(parts) == 1:
        return parts[0]
    lses = torch.stack([part.lse for part in parts])                       # (P, B, Hq, T)
    lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - finite(lse))                                # all parts empty: every weight is 0
    o = sum(weight[..., None].to(part.o.dtype) * part.o for weight, part in zip(weights, parts))
    return Partial(o, lse)


def finite(x: Tensor) -> Tensor:
    """`x` with 0 in place of `-inf`, so that `-inf - finite(x)` stays `-inf` and never becomes NaN."""
    return torch.where(x == float("-inf"), torch.zeros_like(x), x)
