"""What every drafter offers.

A drafter proposes and never accepts. It sees the text so far, proposes a token tree below the pending token, and is
told afterwards what the target computed and what was accepted, from which it may learn (a recycled matrix, a trie) or
take features (trained heads). The engine owns lengths, end of text and compaction of the target's cache; a drafter owns
its private state only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from tutor.cost import Cost
from tutor.speculative.chooser import Chooser, RandomChooser
from tutor.speculative.tree import TokenTree
from tutor.speculative.verify.base import Verdict
from tutor.speculative.warp import PLAIN, Warp


class Drafter(Protocol):
    """`cost`: draft forwards since `reset`. `name`: catalog name."""

    name: str
    cost: Cost

    def reset(self, prompt: Sequence[int], *, warp: Warp, chooser: Chooser, prefill: Any = None) -> None:
        """A new text begins. `warp` is the target's, `chooser` the drafter's own source of randomness, `prefill` the
        target's output over `prompt[:-1]`, hidden states and no logits (None for a prompt of one token)."""

    def propose(self, context: Sequence[int], pending: int, budget: int) -> TokenTree:
        """A tree whose root is `pending` (the last of `context`), at most `budget` >= 1 deep."""

    def observe(self, tree: TokenTree, logits: Tensor, verdict: Verdict, *, hidden: Tensor | None = None) -> None:
        """After each verification: target logits `(M, V)` and last hidden states `(M, width)` of all rows."""


class FreeDrafter:
    """Base of drafters that use no model: nothing to learn, nothing to count."""

    name = ""

    def reset(self, prompt: Sequence[int], *, warp: Warp = PLAIN, chooser: Chooser | None = None,
              prefill: Any = None) -> None:
        self.cost = Cost()
        self.warp, self.chooser = warp, chooser or RandomChooser(stream=1)

    def observe(self, tree: TokenTree, logits: Tensor, verdict: Verdict, *, hidden: Tensor | None = None) -> None:
        """Nothing is learnt."""


def check_budget(budget: int) -> None:
    if budget < 1:
        raise ValueError(f"budget must be >= 1 token; got {budget}. With no room left, verify TokenTree.root(pending)")
