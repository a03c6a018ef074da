"""Oracle top-k: score every key, read the k best. The bound that no selector of k keys can pass.

Idea        Suppose choosing were free. Then the best k keys of a row are the k with the largest logits, and the mass
            they hold is the most that any method reading k keys can hold.
Rule        keep(i) = the k largest s_ij over j <= p_i, ties to the lower index; a row of k keys or fewer is dense.
Cost        scored = all causal pairs, which is why it is an oracle and not a method; loaded min(k, p_i + 1) per row.
Paper       none; the yardstick of the sparse-attention papers.
Differs     None. Logits are computed in float64.
See also    oracle_topp (a share of the mass instead of a number), random_k; tests/attention/test_patterns.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import causal_pairs, logits, positions
from tutor.attention.selection import Selection, Selector, finish, need, top_k
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder

ROWS = 128     # query rows whose logits are held at a time


@method("oracle_topk", "attention", "Oracle top-k", flags=("selector", "rowwise", "monotone", "oracle"),
        grid=tuple({"k": k} for k in (16, 64, 128, 256, 512, 1024)))
@dataclass(frozen=True)
class OracleTopK(Selector):
    """The `k` keys with the largest logits of each row."""

    k: int = 256

    def __post_init__(self):
        need(self.k, 1, "k", "a query reads at least one key")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        pos = positions(q, k, pos_q)
        kept = [top_k(logits(some, k, pos_q=at), self.k) for some, at in zip(q.split(ROWS, 2), pos.split(ROWS))]
        scored = q.shape[0] * q.shape[1] * causal_pairs(pos, k.shape[2])
        return finish(Selection.from_mask(torch.cat(kept, 2), q, k, pos_q=pos_q), scored=scored, trace=trace)

    def full(self, keys: int) -> OracleTopK:
        return replace(self, k=keys)
