"""Random: keep rows by lot.

Idea        The floor of every comparison: a policy that cannot beat lots has learnt nothing about the text.
Rule        score_j = uniform(0, 1) from a hash of (seed, layer, head, pos_j). A row's lot never changes, so what is
            kept at any time is a fair sample of all rows seen so far, and a new row reshuffles no other.
Cost        O(1) a step, C rows per head, no bookkeeping.
Paper       none.
Differs     nothing to differ from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutor.catalog import method
from tutor.kvcache.policy import Policy
from tutor.kvcache.rows import Rows
from tutor.model.cache import Observation


@method("random", "kvcache", "Random eviction", flags=("query_free", "lots"))
@dataclass(frozen=True)
class Random(Policy):
    """A fair sample of all rows seen, another one for each seed, layer and head."""

    name: ClassVar[str] = "random"
    seed: int = 0

    def score(self, rows: Rows, observation: Observation, budget: int) -> Tensor:
        heads = torch.arange(rows.k.shape[1], device=rows.k.device)[:, None]       # (Hkv, 1)
        lots = lot(self.seed, observation.layer, heads, rows.pos)                  # (1 or B, Hkv, S)
        return lots.expand(rows.k.shape[:3])


def lot(seed: int, layer: int, head: Tensor, pos: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) in float64, a pure function of four integers, the same on every device."""
    x = torch.zeros_like(pos, dtype=torch.int64)
    for part in (seed, layer, head, pos):
        x = _mix(x + part + 1)
    return ((x >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """One step of splitmix64: a bijection of 64-bit integers that scatters neighbours."""
    x = x * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)        # a right shift that brings in zeros


def _signed(x: int) -> int:
    return x - (1 << 64)                                 # the same 64 bits, read as a signed integer
