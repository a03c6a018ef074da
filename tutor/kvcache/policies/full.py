"""Full: forget nothing.

Idea        The reference that every policy is measured against.
Rule        keep every row.
Cost        2 · L · Hkv · D · bytes per token, for ever: 23 040 B a token for 30 layers of 3 heads of 64 in bf16.
Paper       none.
Differs     nothing to differ from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutor.catalog import method
from tutor.kvcache.policy import Policy
from tutor.kvcache.rows import Rows
from tutor.model.cache import Observation


@method("full", "kvcache", "Full cache", flags=("exact",))
@dataclass(frozen=True)
class Full(Policy):
    """Keeps every row; its cache can roll back."""

    name: ClassVar[str] = "full"
    evicts: ClassVar[bool] = False

    def score(self, rows: Rows, observation: Observation, budget: int) -> Tensor:
        """All rows are worth the same."""
        return rows.pos.new_zeros(rows.pos.shape, dtype=rows.k.dtype)              # (1 or B, 1 or Hkv, S)
