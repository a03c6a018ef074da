"""Two mistakes of decoding in pieces: a program that waits for one that cannot start, and partials added as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutor.attention.methods.lean import Piece


def run_with_flags(pieces: Sequence[Piece], order: Sequence[int], resident: int) -> list[int]:
    """One kernel, in which the host of an output spins until the workers after it have raised their flags.

    Programs start in `order`, `resident` of them at a time; the next starts when one is done. Returns the workers in the
    order in which they finish; fewer than were started means that all places are held by hosts that wait for ever.
    """
    waits = {worker: set() for worker in order}                  # for whose partials the last piece of a worker waits
    for host in (piece for piece in pieces if piece.host and not piece.finishing):
        waits[host.worker] = {piece.worker for piece in pieces if piece.output == host.output and not piece.host}
    started, done, queue = set(), [], list(order)
    while True:
        while queue and len(started) - len(done) < resident:
            started.add(queue.pop(0))                            # its own partial is its first piece: the flag goes up
        ready = [worker for worker in order if worker in started and worker not in done and waits[worker] <= started]
        if not ready:
            return done
        done.append(ready[0])


def merge_without_maximum(logits: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Each piece sums exp(logit - its own maximum); the sums are added as if they were in one unit."""
    top = total = 0.0
    for s, v in zip(logits, values):                             # (..., n), (n, Dv)
        weights = torch.exp(s - s.amax(-1, keepdim=True))
        top, total = top + weights @ v, total + weights.sum(-1, keepdim=True)
    return top / total
