"""Model chain: a cheaper model writes the next gamma tokens, one by one.

Idea        Most tokens are easy; a small model gets them right. It may be another model, or the target itself with most
            of its layers left out (`layers=`), which needs no second set of weights.
Rule        x_1 ~ q(·|text), x_2 ~ q(·|text, x_1), … x_gamma; q is warped as the target is, and each q_i is kept: the
            verifier needs the distribution that the token was really drawn from.
Cost        gamma draft forwards per step, of one row each (two rows for the first after a full acceptance: the last
            token drafted was never fed).
Paper       Leviathan et al. 2023, section 2 [leviathan2023speculative]; Chen et al. 2023 [chen2023sampling].
Differs     the draft has a cache of its own, even where it shares layers with the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutor.catalog import method
from tutor.cost import Cost
from tutor.speculative.chooser import Chooser, RandomChooser
from tutor.speculative.draft.base import check_budget
from tutor.speculative.tree import TokenTree
from tutor.speculative.verify.base import Verdict
from tutor.speculative.warp import PLAIN, Warp


class ModelDrafter:
    """What drafters with a model share: its cache, which always holds a prefix of the committed text.

    Attributes:
        model: any decoder with `forward` and `new_cache`.
        layers: run these layers only (self-speculation when `model` is the target); None runs all.
        warp: how the draft's logits become q; None: as the target's.
    """

    model: Any
    layers: Sequence[int] | None
    warp: Warp | None

    @property
    def tokenizer(self) -> Any:
        return getattr(self.model, "tokenizer", None)

    def reset(self, prompt: Sequence[int], *, warp: Warp = PLAIN, chooser: Chooser | None = None,
              prefill: Any = None) -> None:
        self.cost = Cost()
        self._warp, self._chooser = self.warp or warp, chooser or RandomChooser(stream=1)
        self._cache = self.model.new_cache()
        self._held, self._base = 0, 0            # rows that are committed text; the root's position

    def _forward(self, tokens: Sequence[int], logits: str, tree: TokenTree | None = None) -> Tensor | None:
        """Append rows to the draft's cache; logits of "all" rows or the "last", `(T or 1, V)`, or "none"."""
        self.cost += Cost(draft_forwards=1)
        layers = None if self.layers is None else list(self.layers)
        places = {} if tree is None else {"positions": tree.positions(self._base), "tree_mask": tree.mask()}
        ids = torch.tensor([list(tokens)])
        out = self.model.forward(ids, cache=self._cache, layers=layers, logits=logits, **places)
        return None if logits == "none" else out.logits[0]

    def _catch_up(self, context: Sequence[int]) -> None:
        """Feed committed tokens that the draft has not seen, the pending one excepted."""
        self._base = len(context) - 1
        if self._held < self._base:
            self._forward(context[self._held:self._base], "none")
            self._held = self._base


@method("model_chain", "speculative", "Chain from a draft model", paper="chen2023sampling",
        flags=("lossless", "drafter"), grid=tuple({"gamma": g} for g in (1, 2, 4, 6)))
@dataclass
class ModelChain(ModelDrafter):
    """A path of `gamma` sampled tokens with their distributions."""

    model: Any
    gamma: int = 4
    layers: Sequence[int] | None = None
    warp: Warp | None = None

    name = "model_chain"

    def __post_init__(self):
        if self.gamma < 0:
            raise ValueError(f"gamma must be >= 0 tokens (0 is autoregressive decoding); got {self.gamma}")

    def propose(self, context: Sequence[int], pending: int, budget: int) -> TokenTree:
        check_budget(budget)
        self._base = len(context) - 1
        feed = list(context[self._held:])            # the pending token, and whatever the draft has not seen before it
        drafted, dists = [], []
        for _ in range(min(self.gamma, budget)):
            dists.append(self._warp(self._forward(feed, "last")[0]))                # (V,)
            drafted.append(self._chooser.draw(dists[-1]))
            feed = drafted[-1:]
        return TokenTree.chain(pending, drafted, torch.stack(dists) if dists else None)

    def observe(self, tree: TokenTree, logits: Tensor, verdict: Verdict, *, hidden: Tensor | None = None) -> None:
        """Keep the rows of the accepted prefix: they are committed text now."""
        self._held = min(self._cache.seen, self._base + len(verdict.path))
        self._cache.truncate(self._held)
