"""Famous mistakes around MInference, each a few lines, shown on the page where it teaches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor.attention.dense import positions, probs
from tutor.attention.methods.vertical_slash import slash_sums


def lines_without_mask(q: Tensor, k: Tensor, last_q: int = 64) -> tuple[Tensor, Tensor]:
    """Columns and slashes of the last rows, the causal mask forgotten: keys ahead of a row take part in its softmax."""
    pos = positions(q, k)[-last_q:]
    a = probs(q[:, :, -last_q:], k, causal=False)
    return a.sum(2), slash_sums(a, pos)


def slashes_by_row_number(q: Tensor, k: Tensor, last_q: int = 64) -> Tensor:
    """Offsets counted from the row's number and not its position: right while T = S, shifted by S - T in a chunk."""
    pos = positions(q, k)[-last_q:]
    a = probs(q[:, :, -last_q:], k, pos_q=pos)
    number = torch.arange(q.shape[2])[-last_q:]
    back = number[:, None] - torch.arange(k.shape[2])
    weight = torch.where(back >= 0, a, 0.0)
    return torch.zeros_like(a[:, :, 0]).index_add(-1, back.clamp(min=0).flatten(), weight.flatten(2))


def padded_means(x: Tensor, side: int) -> Tensor:
    """The published pooling: `side - length % side` zeros are added, a whole block of them when nothing is missing."""
    pad = side - x.shape[2] % side
    x = torch.nn.functional.pad(x, (0, 0, 0, pad))
    return x.unflatten(2, (-1, side)).mean(3)


def published_winner(best: str) -> tuple[str, int, int]:
    """The end of the published search (version 1): whatever won, a vertical-slash with these budgets is written."""
    return {"stream_llm": ("vertical_and_slash", 100, 800), "block_sparse": ("vertical_and_slash", 1000, 6096)}[best]


def columns_counted_twice(starts: list[int], columns: list[int], tile: int, logits: Tensor, v: Tensor) -> Tensor:
    """One query's output when a column that lies in a tile is gathered again: its weight counts double."""
    keys = [j for start in starts for j in range(start, start + tile)] + columns
    keys = torch.tensor([j for j in keys if j < len(logits)])
    weight = torch.exp(logits[keys] - logits[keys].max())
    return (weight @ v[keys]) / weight.sum() if len(keys) else torch.full(v.shape[1:], -math.inf)
