"""Select: from scores and counts to the rows that stay, with one rule for ties on every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keep:
    """A decision that can be replayed.

    Attributes:
        idx: slots that stay, ascending in position, -1 padded: `(B, Hkv, C)`, or `(1, 1, C)` for all heads alike.
        counts: how many stay, of idx's leading shape.
        scores: what they were judged by, `(…, S)`; padding has `-inf`.
    """

    idx: Tensor
    counts: Tensor
    scores: Tensor

    @property
    def mask(self) -> Tensor:
        """True where a row stays, `(…, S)`."""
        n = self.scores.shape[-1]
        kept = torch.zeros((*self.scores.shape[:-1], n + 1), dtype=torch.bool, device=self.idx.device)
        slot = torch.where(self.idx < 0, n, self.idx)
        return kept.scatter_(-1, slot, True)[..., :-1]


def keep_top(scores: Tensor, counts: Tensor, pos: Tensor) -> Keep:
    """Keep the `counts` rows of highest score; of equal ones the later original position stays.

    Args:
        scores: `(B, Hkv, S)`, or `(1, 1, S)` when one judgement serves all heads; `+inf` protects a row.
        counts: rows to keep, of the scores' leading shape; a head that has fewer keeps what it has.
        pos: positions, broadcastable to the scores; -1 is padding and never kept.

    Raises:
        ValueError: a score is NaN, or more rows are protected than may stay.
    """
    if torch.isnan(scores).any():
        raise ValueError("scores contain NaN; a policy must return a number for every row (look for NaN in q, k)")
    scores, pos = torch.broadcast_tensors(scores, pos)
    counts = torch.minimum(counts.expand(pos.shape[:-1]), (pos >= 0).sum(-1))
    scores = scores.masked_fill(pos < 0, float("-inf"))
    protected = torch.isposinf(scores).sum(-1)
    if (protected > counts).any():
        raise ValueError(f"budget of {int(counts.min())} rows is below the {int(protected.max())} protected rows; "
                         "raise the budget or protect fewer rows")
    width = int(counts.max()) if counts.numel() else 0
    latest_first = pos.argsort(dim=-1, descending=True)                            # positions of a head are distinct
    order = scores.gather(-1, latest_first).argsort(dim=-1, descending=True, stable=True)[..., :width]
    best = latest_first.gather(-1, order)                                          # (…, C), best first
    unused = torch.arange(width, device=best.device) >= counts[..., None]
    place = pos.gather(-1, best).masked_fill(unused, torch.iinfo(pos.dtype).max)
    place, by_position = place.sort(dim=-1, stable=True)
    idx = best.gather(-1, by_position).masked_fill(place == torch.iinfo(pos.dtype).max, -1)
    return Keep(idx, counts, scores)
