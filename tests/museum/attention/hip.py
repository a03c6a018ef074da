"""Mistakes that a search by halving invites."""

from __future__ import annotations

from collections.abc import Callable

import torch


def dead_halves_score_zero(score: Callable[[int, int], float], blocks: int, slots: int) -> list[int]:
    """HiP for one query, but an empty half scores 0, what a masked load returns: it beats every key that scores below.

    `score(a, b)` is what the representative of blocks [a, b) scores. Returns the blocks held at the end, -1 for an
    empty half that took a slot.
    """
    groups = [(blocks * i // slots, blocks * (i + 1) // slots) for i in range(slots)]
    while any(b - a > 1 for a, b in groups):
        halves = [half for a, b in groups for half in ((a, a + (b - a) // 2), (a + (b - a) // 2, b))]
        order = torch.tensor([score(a, b) if b > a else 0.0 for a, b in halves]).sort(descending=True, stable=True)
        groups = [halves[i] for i in sorted(order.indices[:slots].tolist())]
    return [a if b > a else -1 for a, b in groups]
