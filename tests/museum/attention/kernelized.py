"""Kernelized attention as it is easily got wrong. Each differs from the method by what its docstring says."""

from __future__ import annotations

import torch
from torch import Tensor

from tutor.attention.methods.kernelized import log_prf


def wraps_around(c: Tensor, x: Tensor) -> Tensor:
    """A circulant of length n in place of 2n - 1: the end of the text is treated as lying before its beginning."""
    n = x.shape[-2]
    h = c[..., :n].flip(-1)                                                  # c_0, c_-1 ... c_{-(n-1)}: all that fits
    return torch.fft.irfft(torch.fft.rfft(h)[..., None] * torch.fft.rfft(x, dim=-2), n, dim=-2)


def transposed(c: Tensor) -> Tensor:
    """h[t] = c_t in place of c_{-t}: every distance changes its sign, the past and the future change places."""
    n = (c.shape[-1] + 1) // 2
    h = c.new_zeros(*c.shape[:-1], 1 << (2 * n - 2).bit_length())
    h[..., :n] = c[..., n - 1:]
    if n > 1:
        h[..., -(n - 1):] = c[..., :n - 1]
    return h


def shifted_key_by_key(k: Tensor, w: Tensor) -> Tensor:
    """Each key's own largest exponent is taken out, not one constant: it does not cancel, and long keys lose their weight."""
    exponents = log_prf(k, w)
    return (exponents - exponents.amax(-1, keepdim=True)).exp()


def without_the_norm(x: Tensor, w: Tensor) -> Tensor:
    """The factor exp(-|x|^2 / 2) forgotten: the mean is exp(|x + y|^2 / 2), so the softmax of other logits."""
    return (x @ w.T).exp() / len(w) ** 0.5
