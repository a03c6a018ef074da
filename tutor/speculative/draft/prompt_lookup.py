"""Prompt lookup: the text so far is the draft model.

Idea        Summaries, edits and answers repeat their prompt. If the last few tokens occurred before, what followed them
            then is a good guess for what follows now.
Rule        For size in (3, 2, 1): find an earlier occurrence of the last `size` tokens; propose the next 10 that follow
            it. No model, no training, no state.
Cost        O(S · size) comparisons per step (a vectorised scan), no forward pass; up to 11 rows to verify.
Paper       Saxena 2023, a note with code, no paper. [saxena2023pld]
Differs     the newest occurrence is taken (`match="last"`), the note takes the oldest (`match="first"`); and a match
            near the end of the text proposes the few tokens it has, where the note skips it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutor.catalog import method
from tutor.speculative.draft.base import FreeDrafter, check_budget
from tutor.speculative.tree import TokenTree


@method("prompt_lookup", "speculative", "Prompt lookup decoding", paper="saxena2023pld", flags=("lossless", "drafter"),
        grid=tuple({"length": n} for n in (2, 4, 7, 10, 15)))
@dataclass
class PromptLookup(FreeDrafter):
    """A chain copied from an earlier occurrence of the last tokens; deterministic, verified by `match`.

    Attributes:
        sizes: lengths of the suffix to look for, tried in this order.
        length: how many following tokens to propose.
        match: "last" or "first" of the earlier occurrences.
        shortest: refuse a match with fewer followers than this.
    """

    sizes: tuple[int, ...] = (3, 2, 1)
    length: int = 10
    match: str = "last"
    shortest: int = 1

    name = "prompt_lookup"

    def __post_init__(self):
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must hold at least one length >= 1; got {self.sizes}")
        if self.length < 1:
            raise ValueError(f"length must be >= 1 token; got {self.length}")
        if self.match not in ("last", "first"):
            raise ValueError(f"match must be 'last' or 'first'; got {self.match!r}")
        if not 1 <= self.shortest <= self.length:
            raise ValueError(f"shortest must be in [1, length={self.length}]; got {self.shortest}")

    def propose(self, context: Sequence[int], pending: int, budget: int) -> TokenTree:
        check_budget(budget)
        return TokenTree.chain(pending, self.find(context)[:budget])

    def find(self, context: Sequence[int]) -> list[int]:
        """The tokens that followed the chosen occurrence, at most `length`; empty if there is none."""
        text = np.asarray(context)
        for size in self.sizes:
            if len(text) <= size:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], size)      # without the suffix itself
            starts = np.flatnonzero((windows == text[-size:]).all(1)) + size          # first follower of each
            starts = starts[len(text) - starts >= self.shortest]
            if len(starts):
                start = int(starts[-1] if self.match == "last" else starts[0])
                return text[start:start + self.length].tolist()
        return []
