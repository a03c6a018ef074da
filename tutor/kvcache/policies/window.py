"""Window: keep the latest rows.

Idea        Language is mostly local: predict the next word from the last few hundred.
Rule        score_j = pos_j, so the oldest row goes first.
Cost        O(1) a step, C rows per head, no bookkeeping.
Paper       folklore; the window attention that Xiao et al. 2024 (section 1, figure 1) show to collapse.
Differs     rows keep their original positions.
See also    sinks_window, which adds the first rows back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutor.catalog import method
from tutor.kvcache.policy import Policy
from tutor.kvcache.rows import Rows
from tutor.model.cache import Observation


@method("window", "kvcache", "Sliding window", flags=("query_free", "layer_shared"))
@dataclass(frozen=True)
class Window(Policy):
    """The last `C` rows."""

    name: ClassVar[str] = "window"

    def score(self, rows: Rows, observation: Observation, budget: int) -> Tensor:
        return rows.pos.double()                         # (1, 1, S): one judgement for all heads
