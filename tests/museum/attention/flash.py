"""Tiled attention that looks right and is not. Each piece has been written by somebody; each names the line that is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from tutor.attention.partial import Partial


def average_outputs(*parts: Partial) -> Partial:
    """The mean of the outputs: right only where every part holds the same weight."""
    return Partial(sum(part.o for part in parts) / len(parts), torch.logsumexp(torch.stack([part.lse for part in parts]), 0))


def merge_without_guard(*parts: Partial) -> Partial:
    """exp(-inf - -inf) is NaN: a row that saw nothing in any part poisons the output (and, later, the whole batch)."""
    lses = torch.stack([part.lse for part in parts])
    lse = torch.logsumexp(lses, 0)
    weights = torch.exp(lses - lse)                                        # no finite(lse) here
    return Partial(sum(weight[..., None] * part.o for weight, part in zip(weights, parts)), lse)


def softmax_as_written(logits: Tensor, v: Tensor) -> Tensor:
    """exp(s) / sum exp(s), as in a textbook: in float16 e^12 is already infinite, and inf / inf is NaN."""
    weights = torch.exp(logits)
    return (weights / weights.sum(-1, keepdim=True)) @ v


def gradients_without_lse(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor, **options):
    """The gradient that arrives at the log-sum-exp is dropped: right for a whole output, wrong for a part of one."""
    from tutor.attention.methods.flash import flash_backward

    return flash_backward(q, k, v, o, lse, do, None, **options)
