"""Sinks and window (StreamingLLM): keep the first rows and the last ones, forget the middle.

Idea        Softmax must put its weight somewhere. Models put what they do not need on the first positions; take those
            away and the weight falls on rows that mean something. So keep a few first rows for ever, beside a window.
Rule        score_j = +inf for pos_j < n_sink, else pos_j. With `rerotate`, keys are stored before RoPE, and the row in
            slot i of n is turned to position i (here: to the query's position minus n - 1 - i, which is the same by
            RoPE's relativity), so no distance ever exceeds the cache and the stream may be endless.
Cost        O(1) a step, C rows per head, no bookkeeping; rerotating turns n rows per layer and step.
Paper       Xiao et al. 2024, section 3.2: four sinks, positions within the cache. [xiao2024streamingllm]
Differs     nothing in the rule. Queries keep their absolute position and the keys follow them, where the paper numbers
            both from the start of the cache: the same distances. `rerotate=False` (not in the paper) keeps original
            phases: right for distances inside the window, but sinks drift away until they leave the trained range.
See also    window (n_sink = 0), h2o (scores instead of places).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutor.catalog import method
from tutor.kvcache.policy import Policy
from tutor.kvcache.rows import Rows
from tutor.model.cache import Observation


@method("sinks_window", "kvcache", "Attention sinks and window (StreamingLLM)", paper="xiao2024streamingllm",
        flags=("query_free", "layer_shared"))
@dataclass(frozen=True)
class SinksWindow(Policy):
    """The first `n_sink` rows and the last `C - n_sink`.

    Args:
        n_sink: first rows kept for ever.
        rerotate: positions inside the cache (the paper), or original ones.
    """

    name: ClassVar[str] = "sinks_window"
    n_sink: int = 4
    rerotate: bool = True

    def __post_init__(self):
        if self.n_sink < 0:
            raise ValueError(f"n_sink must be >= 0; got {self.n_sink}")

    @property
    def least(self) -> int:
        return self.n_sink + 1

    def score(self, rows: Rows, observation: Observation, budget: int) -> Tensor:
        pos = rows.pos.double()                          # (1, 1, S): one judgement for all heads
        return pos.masked_fill((rows.pos >= 0) & (rows.pos < self.n_sink), float("inf"))
