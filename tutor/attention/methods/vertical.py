"""Vertical: the columns that the last queries read most, for every query.

Idea        Some keys are read by everybody. Let the last 64 queries vote with their attention, and keep the columns
            with the most votes for all rows. What one row needs alone is lost: this shows how far fashion goes.
Rule        vote_j = mean of A_rj over the last 64 query rows r; keep(i, j) is true for the k columns with the largest
            vote (ties to the lower index) and for the query's own key, so that no row is empty.
Cost        scored = the causal pairs of the voting rows; loaded at most k + 1 per row.
Paper       none; a control in the manner of SnapKV's voting (Li et al. 2024), for a prefill.
Differs     SnapKV evicts from a cache before decoding: it pools the votes of neighbouring keys and always keeps the
            voting rows' own keys; neither is done here. A key among the last 64 can be voted for only by the rows
            after it, so the newest keys are underrated.
See also    vertical_slash (adds diagonals), oracle_topk; tests/attention/test_baselines.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import causal_pairs, check_qkv, positions, probs
from tutor.attention.selection import Selection, Selector, finish, need, top_k
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder

VOTERS = 64     # the last query rows, whose attention is looked at


@method("vertical", "attention", "Vertical columns", flags=("selector", "monotone"),
        grid=tuple({"k": k} for k in (64, 128, 256, 512, 1024)))
@dataclass(frozen=True)
class Vertical(Selector):
    """The `k` columns with the largest mean attention of the last 64 queries, and each query's own key."""

    k: int = 256

    def __post_init__(self):
        need(self.k, 1, "k", "without a column only the own key is left")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        pos = positions(q, k, pos_q)
        votes = probs(q[:, :, -VOTERS:], k, pos_q=pos[-VOTERS:]).mean(2)                    # (B, Hq, S)
        columns = top_k(votes, self.k)[:, :, None]                                         # (B, Hq, 1, S)
        own = torch.arange(k.shape[2]) == pos[:, None]                                     # (T, S)
        scored = q.shape[0] * q.shape[1] * causal_pairs(pos[-VOTERS:], k.shape[2])
        return finish(Selection.from_mask(columns | own, q, k, pos_q=pos_q), scored=scored, trace=trace)

    def full(self, keys: int) -> Vertical:
        return replace(self, k=keys)
