"""Oracle top-p: score every key, read the heaviest until they hold a share p of the mass.

Idea        A fixed number of keys is too many for a row that looks at one word and too few for one that averages a
            page. Ask for a share of the mass instead, and let each row take as many keys as it needs.
Rule        sort A_i descending (ties to the lower index); keep the shortest prefix whose sum is >= p; at least one key.
            p = 1 keeps every allowed key.
Cost        scored = all causal pairs (an oracle); loaded differs from row to row, and its mean is the finding.
Paper       none; the name follows nucleus sampling.
Differs     None. Probabilities are computed in float64.
See also    oracle_topk; tests/attention/test_patterns.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import causal_mask, causal_pairs, positions, probs
from tutor.attention.methods.oracle_topk import ROWS
from tutor.attention.selection import Selection, Selector, finish
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


@method("oracle_topp", "attention", "Oracle top-p", flags=("selector", "rowwise", "monotone", "oracle"),
        grid=tuple({"p": p} for p in (0.5, 0.8, 0.9, 0.95, 0.99)))
@dataclass(frozen=True)
class OracleTopP(Selector):
    """The heaviest keys that together hold the share `p` of each row."""

    p: float = 0.95

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f"p must be in (0, 1]; got {self.p}. It is the share of the mass that is kept")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        pos = positions(q, k, pos_q)
        kept = [self._nucleus(probs(some, k, pos_q=at), causal_mask(at, k.shape[2]))
                for some, at in zip(q.split(ROWS, 2), pos.split(ROWS))]
        scored = q.shape[0] * q.shape[1] * causal_pairs(pos, k.shape[2])
        return finish(Selection.from_mask(torch.cat(kept, 2), q, k, pos_q=pos_q), scored=scored, trace=trace)

    def _nucleus(self, a: Tensor, allowed: Tensor) -> Tensor:
        """bool `(B, Hq, T, S)` from probabilities of the same shape."""
        if self.p == 1:
            return allowed.expand(a.shape)
        heavy, order = a.sort(dim=-1, descending=True, stable=True)
        before = heavy.cumsum(-1) - heavy                                  # mass of the heavier keys; 0 for the first
        return torch.zeros_like(a, dtype=torch.bool).scatter(-1, order, before < self.p)

    def full(self, keys: int) -> OracleTopP:
        return replace(self, p=1.0)
