"""The Monarch FFT and its convolution as they are easily got wrong."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutor.attention.methods.fftconv import dft_matrix, monarch_fft, twiddle


def without_twiddle(x: Tensor, n1: int, n2: int) -> Tensor:
    """The twiddle forgotten: a two-dimensional DFT of the grid, which is no DFT of the sequence. Sorted order."""
    a = dft_matrix(n1) @ x.unflatten(-1, (n1, n2)).to(torch.complex128) @ dft_matrix(n2)
    return a.transpose(-1, -2).flatten(-2)


def read_row_by_row(x: Tensor, n1: int, n2: int) -> Tensor:
    """The right grid, read out row by row: slot k1 N2 + k2 holds frequency k1 + N1 k2 and is taken for its own number."""
    a = dft_matrix(n1) @ x.unflatten(-1, (n1, n2)).to(torch.complex128) * twiddle(n1, n2)
    return (a @ dft_matrix(n2)).flatten(-2)


def wraps_around(u: Tensor, h: Tensor) -> Tensor:
    """A circle of the input's own length: what runs over the end comes back at the beginning, so the past sees the future."""
    factors = (u.shape[-1],)
    return torch.fft.ifft(monarch_fft(u, factors) * monarch_fft(h, factors)).real


def unscaled_inverse(spectrum: Tensor, n1: int, n2: int) -> Tensor:
    """Divided by N_1 and not by N: every output is N_2 times too large."""
    a = (spectrum.unflatten(-1, (n1, n2)) @ dft_matrix(n2).conj()) * twiddle(n1, n2).conj()
    return (dft_matrix(n1).conj() @ a).flatten(-2) / n1


def single_precision_angles(n: int) -> Tensor:
    """k t / n in float32, not reduced modulo n first: at k t = 10^6 the angle's whole turns eat its digits. F_n."""
    k = torch.arange(n, dtype=torch.float32)
    angle = -2 * math.pi * (k[:, None] * k / n)
    return torch.polar(torch.ones_like(angle), angle)
