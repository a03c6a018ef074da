"""Variants of HyperAttention as seen in published code. Each changes one thing, and each is measurably worse or wrong."""

from __future__ import annotations

import torch

from tutor.attention.methods.hyper import Hyper
from tutor.attention.partial import from_logits


class GrayForward(Hyper):
    """The PyTorch code: a bin's rank is its own Gray code, not its place in the code; neighbours differ in several bits."""

    def rank(self, bins):
        return bins ^ (bins >> 1)


class CountedTwice(Hyper):
    """The CUDA path: sampled keys of the row's own block are kept, so the block is read exactly and estimated as well."""

    def _sampled(self, q, k, v, bq, scale, drawn):
        place = drawn.place[0, 0]
        logits = scale * (q @ k[:, :, place][:, :, None].transpose(-1, -2))
        return from_logits(logits + torch.log(torch.tensor(k.shape[2] / self.samples)), v[:, :, place][:, :, None])


class LeadingColumns(Hyper):
    """A Triton revision: the first keys in place of random ones, and no weight."""

    def _sampled(self, q, k, v, bq, scale, drawn):
        drawn = torch.arange(min(self.samples, k.shape[2]))
        logits = scale * (q @ k[:, :, drawn][:, :, None].transpose(-1, -2))
        own = torch.arange(q.shape[3])[:, None] // bq == drawn // self.block
        return from_logits(logits.masked_fill(own, float("-inf")), v[:, :, drawn][:, :, None])
