"""Policy: what a cache forgets, as score ∘ budget ∘ select ∘ merge over its rows and one observation.

A method subclasses `Policy`, is a frozen dataclass of its parameters, and usually states one thing: `score`. The cache
calls it after a layer's attention, never before, so that every row is attended at least once by its own query.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tutor.kvcache.budgets import Budget, Uniform
from tutor.kvcache.rows import Rows
from tutor.kvcache.select import Keep, keep_top
from tutor.model.cache import Observation


class Policy:
    """Base of all policies.

    Class attributes:
        name: catalog name.
        phases: when rows may go: "prefill" (a call with several new rows) and "decode" (one new row).
        columns: names of per-row accumulators; the cache stores them as float32, starts them at 0, moves them with
            their rows, and counts them in `state_nbytes`.
        evicts: False for the policy that keeps everything (such a cache can roll back).
        rerotate: True when keys are kept unrotated and turned to their slot in the cache as they are handed out.
        shares: how a layer's and a head's rows follow from the budget.
    """

    name: ClassVar[str] = ""
    phases: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    columns: ClassVar[tuple[str, ...]] = ()
    evicts: ClassVar[bool] = True
    rerotate: bool = False
    shares: Budget = Uniform()

    @property
    def least(self) -> int:
        """The smallest budget the policy can work with: its protected rows and one more."""
        return 1

    def update(self, rows: Rows, observation: Observation) -> dict[str, Tensor]:
        """New values `(B, Hkv, S)` of the policy's columns after this call's attention."""
        return {}

    def score(self, rows: Rows, observation: Observation, budget: int) -> Tensor:
        """Importance of each row, larger stays longer, `+inf` always stays.

        A pure function: `(B, Hkv, S)`, or `(1, 1, S)` for all heads alike. `budget` is the mean number of rows per
        head that this layer may keep.
        """
        raise NotImplementedError(f"{type(self).__name__} must define score(rows, observation, budget)")

    def choose(self, rows: Rows, observation: Observation, budget: int) -> Keep:
        """Score, share the budget among heads, select."""
        scores = self.score(rows, observation, budget)
        return keep_top(scores, self.shares.head_rows(scores, budget), rows.pos)

    def merge(self, rows: Rows, keep: Keep) -> Rows | None:
        """Kept rows that took evicted ones in, `(B, Hkv, C)` in the order of `keep.idx`; None: what goes is lost."""
        return None
