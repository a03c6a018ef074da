"""What the released TokenSelect code does otherwise, and mistakes that a vote invites."""

from __future__ import annotations

import torch
from torch import Tensor


def heads_dealt_in_turn(summary: Tensor, k: Tensor) -> Tensor:
    """The released scoring kernel lets query head h read KV head `h mod Hkv`; the model's heads stand in groups, `h // G`.

    `(B, Hq, C, D)`, `(B, Hkv, S, D)` -> raw dot products `(B, Hq, C, S)`.
    """
    dealt = torch.arange(summary.shape[1]) % k.shape[1]
    return summary @ k[:, dealt].transpose(-1, -2)


def softmax_after_the_sum(logits: Tensor) -> Tensor:
    """Sum the logits of all heads first, then take the softmax: it no longer matters, the loudest head decides.

    `(B, Hq, C, S)` -> `(B, C, S)`.
    """
    return torch.softmax(logits.sum(1), -1)


def cached_branch(query: Tensor, last: Tensor) -> Tensor:
    """The comparison of the released selection cache, which is off by default: both queries are flat `(Hq * D,)`, but
    torch compares along axis 1 unless told otherwise, and there is none. It raises `IndexError`.
    """
    return torch.cosine_similarity(last, query)
