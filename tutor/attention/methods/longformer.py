"""Longformer: a window with holes, and a few global tokens that see and are seen by all.

Idea        A window that skips every second key looks twice as far back for the same price. A few tokens are global:
            every query reads them and they read everything, so that any two tokens are two steps apart.
Rule        keep(i, j) is true when p_i - j is one of 0, dilation, ..., (window - 1) dilation; or j is a global token;
            or p_i is one, and then its row reads every key before it.
Cost        scored 0; loaded at most window + |globals| per row, and p_i + 1 in a global row.
Paper       Beltagy et al. 2020, Longformer, section 3.1 (sliding, dilated and global attention).
Differs     causal: the band looks back only and global rows read what came before. One projection for all: the paper
            gives global tokens queries and keys of their own. Default sizes are ours: their autoregressive models grow
            the window from layer to layer and dilate two heads only (sizes unverified).
See also    window, streaming (dilation 1, globals at the start), bigbird; tests/attention/test_baselines.py
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


@method("longformer", "attention", "Dilated window and globals (Longformer)", paper="beltagy2020longformer",
        flags=("selector", "rowwise", "monotone"), grid=tuple({"window": w} for w in (60, 124, 252, 508, 1020)))
@dataclass(frozen=True)
class Longformer(Selector):
    """Every `dilation`-th of the last `window * dilation` keys, and the tokens at the positions `globals`."""

    window: int = 252
    dilation: int = 2
    globals: tuple[int, ...] = (0, 1, 2, 3)

    def __post_init__(self):
        need(self.window, 1, "window", "a query reads at least its own key")
        need(self.dilation, 1, "dilation", "1 is a window without holes")
        if self.globals and min(self.globals) < 0:
            raise ValueError(f"globals must be positions >= 0 in the text; got {self.globals}")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        pos, keys = positions(q, k, pos_q), torch.arange(k.shape[2])
        chosen = torch.tensor(self.globals, dtype=torch.long)
        back = pos[:, None] - keys                                                         # (T, S) how far back
        band = (back >= 0) & (back % self.dilation == 0) & (back < self.window * self.dilation)
        read_by_all, read_all = torch.isin(keys, chosen), torch.isin(pos, chosen)          # (S,) columns, (T,) rows
        mask = band | read_by_all | read_all[:, None]
        return finish(Selection.from_mask(mask, q, k, pos_q=pos_q), trace=trace)

    def full(self, keys: int) -> Longformer:
        return replace(self, window=keys, dilation=1)
