"""Streaming (A-shape): read the first few keys and the last ones.

Idea        A softmax must put its weight somewhere. Trained models park what they do not need on the first tokens,
            the sinks; a window without them throws away most of the normalisation. Keep both ends, skip the middle.
Rule        keep(i, j) is true when j < sinks, or p_i - window < j <= p_i.
Cost        scored 0; loaded at most sinks + window per row.
Paper       Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks, sections 3.1 and 3.2;
            Jiang et al. 2024, MInference, section 3, calls the mask A-shape.
Differs     a mask over original positions. The paper's cache renumbers what it holds to 0, 1, 2, ...: that is
            `tutor.kvcache`'s sinks-and-window policy. Their default of 2000 recent tokens is unverified.
See also    window, tests/attention/test_patterns.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv, positions
from tutor.attention.methods.window import window_mask
from tutor.attention.selection import Selection, Selector, finish, need
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


@method("streaming", "attention", "Sinks and window (A-shape)", paper="xiao2024streamingllm",
        flags=("selector", "rowwise", "monotone"),
        grid=tuple({"sinks": 4, "window": w} for w in (60, 124, 252, 508, 1020)))
@dataclass(frozen=True)
class Streaming(Selector):
    """The first `sinks` keys and the last `window`."""

    sinks: int = 4
    window: int = 252

    def __post_init__(self):
        need(self.sinks, 0, "sinks")
        need(self.window, 1, "window", "a query reads at least its own key")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        near = window_mask(positions(q, k, pos_q), k.shape[2], self.window)                # (T, S)
        first = torch.arange(k.shape[2]) < self.sinks                                      # (S,)
        return finish(Selection.from_mask(near | first, q, k, pos_q=pos_q), trace=trace)

    def full(self, keys: int) -> Streaming:
        return replace(self, window=keys)
