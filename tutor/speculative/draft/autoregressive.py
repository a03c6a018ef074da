"""Autoregressive: propose nothing.

Idea        The baseline as a special case: a tree that is its root alone makes each step one forward pass of one row.
Rule        tree = {pending}; the verifier draws one token from the target.
Cost        one target forward, one row, per token.
Paper       none.
Differs     `autoregress` is the same thing once more as a plain loop that shares no code with trees, verifiers or
            compaction: the yardstick of every comparison.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tutor.catalog import method
from tutor.speculative.chooser import Chooser, RandomChooser
from tutor.speculative.draft.base import FreeDrafter, check_budget
from tutor.speculative.tree import TokenTree
from tutor.speculative.warp import PLAIN, Warp


@method("autoregressive", "speculative", "Autoregressive decoding", flags=("lossless", "drafter", "baseline"))
class Autoregressive(FreeDrafter):
    """One token per forward pass."""

    name = "autoregressive"

    def propose(self, context: Sequence[int], pending: int, budget: int) -> TokenTree:
        check_budget(budget)
        return TokenTree.root(pending)


@torch.inference_mode()
def autoregress(target, prompt: Sequence[int], *, max_new: int, warp: Warp = PLAIN, chooser: Chooser | None = None,
                eos: Sequence[int] = ()) -> tuple[list[int], list[float]]:
    """Plain decoding: `(new tokens, gaps)`, the end token included; a gap is the difference of the two largest logits.

    A gap tells a real disagreement between two greedy decoders from a tie that rounding broke either way.
    """
    chooser = chooser or RandomChooser()
    cache, feed, new, gaps = target.new_cache(), list(prompt), [], []
    while len(new) < max_new and not (new and new[-1] in eos):
        logits = target.forward(torch.tensor([feed]), cache=cache).logits[0, -1]     # (V,)
        top = logits.topk(2).values
        gaps.append(float(top[0] - top[1]))
        token = chooser.draw(warp(logits), len(prompt) + len(new))
        new.append(token)
        feed = [token]
    return new, gaps
