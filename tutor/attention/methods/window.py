"""Window: read the last keys only.

Idea        What was just said matters most, so each query looks back a fixed distance and no further.
Rule        keep(i, j) is true when p_i - window < j <= p_i: the window counts the query's own key.
Cost        scored 0; loaded min(window, p_i + 1) per row; time and memory no longer grow with the text.
Paper       Beltagy et al. 2020, Longformer, section 3.1 (their band is two-sided in encoders).
Differs     causal, one-sided; no dilation, no global tokens.
See also    streaming (adds the first keys), tests/attention/test_patterns.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv, positions
from tutor.attention.selection import Selection, Selector, finish, need
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


def window_mask(pos: Tensor, keys: int, window: int) -> Tensor:
    """bool `(T, S)`: the last `window` keys up to each position."""
    return torch.arange(keys) > pos[:, None] - window


@method("window", "attention", "Sliding window", flags=("selector", "rowwise", "monotone"),
        grid=tuple({"window": w} for w in (64, 128, 256, 512, 1024)))
@dataclass(frozen=True)
class Window(Selector):
    """The last `window` keys."""

    window: int = 256

    def __post_init__(self):
        need(self.window, 1, "window", "a query reads at least its own key")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        near = window_mask(positions(q, k, pos_q), k.shape[2], self.window)                # (T, S)
        return finish(Selection.from_mask(near, q, k, pos_q=pos_q), trace=trace)

    def full(self, keys: int) -> Window:
        return replace(self, window=keys)
