"""Budgets: how many rows each layer, and each head of it, may keep.

A budget answers twice: `layer_rows` before any score is known (it may depend on the depth), `head_rows` after (it may
look at the scores of all heads of the layer). Budgets count rows per KV head, sinks and recent window included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Budget(Protocol):
    def layer_rows(self, budget: int, layer: int, n_layers: int) -> int:
        """Mean rows per head of a layer, from the budget `C` of the whole cache."""

    def head_rows(self, scores: Tensor, rows: int) -> Tensor:
        """Rows of each head, integers of the leading shape of the scores, `(B, Hkv, S)` or `(1, 1, S)`."""


@dataclass(frozen=True)
class Uniform:
    """Every head of every layer keeps the same number of rows."""

    def layer_rows(self, budget: int, layer: int, n_layers: int) -> int:
        return budget

    def head_rows(self, scores: Tensor, rows: int) -> Tensor:
        return torch.full(scores.shape[:-1], rows, device=scores.device)
