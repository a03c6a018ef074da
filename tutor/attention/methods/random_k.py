"""Random k: read k keys drawn blindly. The control that every method has to beat.

Idea        A method that keeps no more mass than blind choice has learned nothing about the query.
Rule        keep(i) = the query's own key and k - 1 others of j < p_i, uniform without replacement.
Cost        scored 0; loaded min(k, p_i + 1) per row.
Paper       none.
Differs     None. Each row's draw depends on the seed and the row's position alone, so that prefill and decode agree,
            and a larger k adds keys to those of a smaller one.
See also    oracle_topk (the other end), tests/attention/test_patterns.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv, positions
from tutor.attention.selection import Selection, Selector, finish, need, top_k
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder


@method("random_k", "attention", "Random keys", flags=("selector", "rowwise", "monotone", "control"),
        grid=tuple({"k": k} for k in (64, 128, 256, 512, 1024)))
@dataclass(frozen=True)
class RandomK(Selector):
    """The query's own key and `k - 1` earlier ones drawn at random; `generator` replaces `seed`."""

    k: int = 256
    seed: int = 0

    def __post_init__(self):
        need(self.k, 1, "k", "a query reads at least its own key")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        (b, hq, t), s, pos = q.shape[:3], k.shape[2], positions(q, k, pos_q)
        seed = self.seed if generator is None else int(torch.randint(2**31, (), generator=generator))
        kept = torch.zeros(b, hq, t, s, dtype=torch.bool)
        for row, p in enumerate(pos.tolist()):
            if p < 0:
                continue                                                   # a row before the first key reads nothing
            own = min(p, s - 1)
            draw = torch.Generator().manual_seed((seed * 2654435761 + p) % 2**32)   # 32 bits are all that torch uses
            score = torch.rand(b, hq, own + 1, generator=draw)
            score[..., own] = 2.0                                         # above every draw: always read
            kept[:, :, row, : own + 1] = top_k(score, self.k)
        return finish(Selection.from_mask(kept, q, k, pos_q=pos_q), trace=trace)

    def full(self, keys: int) -> RandomK:
        return replace(self, k=keys)
