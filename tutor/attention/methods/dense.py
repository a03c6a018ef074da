"""Dense: read every key. The baseline, and the truth when its output is computed in float64.

Idea        Leave out nothing.
Rule        keep(i, j) is true when j <= p_i.
Cost        scored 0 (there is nothing to choose), loaded = all causal pairs.
Paper       none; `tutor.attention.dense` is the arithmetic.
Differs     None.
See also    window, oracle_topk; tests/attention/test_patterns.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv
from tutor.attention.selection import Selection, Selector, finish
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


@method("dense", "attention", "Dense attention", flags=("selector", "rowwise", "exact"), grid=({},))
@dataclass(frozen=True)
class Dense(Selector):
    """Every key that the causal mask allows."""

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        everything = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)                  # (T, S)
        return finish(Selection.from_mask(everything, q, k, pos_q=pos_q), trace=trace)

    def full(self, keys: int) -> Dense:
        return self
