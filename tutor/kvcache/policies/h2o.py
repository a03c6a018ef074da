"""H2O, heavy-hitter oracle: keep the rows that received the most attention, and the latest ones.

Idea        A few rows collect most of the attention, and those that have collected much go on collecting.
Rule        acc_j += Σ_i A_ij over the new queries i (mean over the query heads that share the row). The latest
            share `recent` of the budget stays; the rest goes to the largest acc. An evicted row's sum is forgotten.
Cost        one sum per row and head (4 B), and per step the attention's column sums, O(C·D) once more.
Paper       Zhang et al. 2023, section 4 (algorithm 1): heavy hitters and recent tokens, half each. [zhang2023h2o]
Differs     Sums are kept per KV head, so a group of query heads shares one row (the paper's models have no groups).
            Official evaluation code only masks rows, which stay in memory, fixes both shares from the first prompt's
            length, lets a decision take effect one step later and wants a batch of one; here rows go at once, for real.
Known bias  An early row has been summed over more queries than a late one, so the score favours age.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutor.catalog import method
from tutor.kvcache.policy import Policy
from tutor.kvcache.rows import Rows, column_sums
from tutor.model.cache import Observation


@method("h2o", "kvcache", "Heavy-hitter oracle (H2O)", paper="zhang2023h2o")
@dataclass(frozen=True)
class H2O(Policy):
    """Accumulated attention decides, half of the budget is for the latest rows.

    Args:
        recent: share of the budget that the latest rows hold.
    """

    name: ClassVar[str] = "h2o"
    columns: ClassVar[tuple[str, ...]] = ("acc",)
    recent: float = 0.5

    def __post_init__(self):
        if not 0 <= self.recent < 1:
            raise ValueError(f"recent must be in [0, 1); got {self.recent}")

    @property
    def least(self) -> int:
        return 2

    def update(self, rows: Rows, observation: Observation) -> dict[str, Tensor]:
        return {"acc": rows.state["acc"] + column_sums(observation)}               # (B, Hkv, S)

    def score(self, rows: Rows, observation: Observation, budget: int) -> Tensor:
        newest = rows.pos.amax(-1, keepdim=True)                                   # (1 or B, 1 or Hkv, 1)
        latest = rows.pos > newest - int(budget * self.recent)
        return rows.state["acc"].masked_fill(latest, float("inf"))
