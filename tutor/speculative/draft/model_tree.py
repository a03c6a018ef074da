"""Model tree: a draft model expands a fixed shape <k1, k2, …>, k_d children for each node of depth d.

Idea        One guess per place is a gamble; a second and third guess at the same place cost a row each and no further
            target pass. Spend them where the draft is unsure, here simply: the same number at each depth.
Rule        For every node of depth d draw k_d children from its q, independently (SpecInfer) or each from what the
            earlier ones left over (without replacement, the default). The children of a layer are scored together.
Cost        one draft forward per layer; 1 + k1 + k1·k2 + … rows to verify.
Paper       Miao et al. 2024, section 3, expansion-based construction [miao2024specinfer]; without replacement Chen et
            al. 2024, section 3.2 [chen2024sequoia].
Differs     each draft pass re-reads the tree from its root (a few rows); it does not mask earlier layers in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutor.catalog import method
from tutor.speculative.draft.base import check_budget
from tutor.speculative.draft.model_chain import ModelDrafter
from tutor.speculative.tree import TokenTree
from tutor.speculative.verify.base import Verdict
from tutor.speculative.warp import Warp


@method("model_tree", "speculative", "Static tree from a draft model", paper="miao2024specinfer",
        flags=("lossless", "drafter"), grid=tuple({"shape": s} for s in ((2,), (2, 2), (2, 2, 2), (3, 2, 1, 1))))
@dataclass
class ModelTree(ModelDrafter):
    """A k-ary tree of sampled tokens, verified by `recursive`.

    Without replacement and with the target's temperature 0, q is one-hot and every node has a single child. For greedy
    decoding give the draft a temperature of its own, e.g. `warp=Warp(1.0)`; the text stays the greedy one.
    """

    model: Any
    shape: Sequence[int] = (2, 2, 2)
    replacement: bool = False
    layers: Sequence[int] | None = None
    warp: Warp | None = None

    name = "model_tree"

    def __post_init__(self):
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must hold a number >= 1 of children for each depth; got {tuple(self.shape)}")

    def propose(self, context: Sequence[int], pending: int, budget: int) -> TokenTree:
        check_budget(budget)
        self._catch_up(context)
        tokens, parent, qprob, layer = [pending], [-1], [float("nan")], [0]
        qdist: list[Tensor] = []                                     # of the nodes that have been scored
        for width in self.shape[:budget]:
            self._cache.truncate(self._base)
            logits = self._forward(tokens, "all", TokenTree(torch.tensor(tokens), torch.tensor(parent)))
            below = []
            for node in layer:
                dist = self._warp(logits[node])
                qdist.append(dist)
                for _ in range(width):
                    if float(dist.sum()) <= 0:                       # fewer than `width` possible tokens
                        break
                    token = self._chooser.draw(dist)
                    below.append(len(tokens))
                    tokens.append(token)
                    parent.append(node)
                    qprob.append(float(dist[token]))
                    if not self.replacement:
                        dist = dist.clone()
                        dist[token] = 0
                        dist = dist / dist.sum() if float(dist.sum()) > 0 else dist
            layer = below
        self._scored = len(qdist)
        qdist += [torch.zeros_like(qdist[0])] * len(layer)
        return TokenTree(torch.tensor(tokens), torch.tensor(parent), torch.tensor(qprob, dtype=torch.float64),
                         torch.stack(qdist), self.replacement)

    def observe(self, tree: TokenTree, logits: Tensor, verdict: Verdict, *, hidden: Tensor | None = None) -> None:
        """Keep the accepted path, as far as the draft has scored it (it never fed its last layer)."""
        if len(tree) > 1:
            self._cache.gather(self._base, torch.tensor([node for node in verdict.path if node < self._scored]))
        self._held = self._cache.seen
