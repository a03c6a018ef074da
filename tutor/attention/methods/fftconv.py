"""FlashFFTConv: a long convolution as a few small matrix products.

Idea        A convolution is a product in the frequency domain. Written as small dense DFT matrices, the FFT does more
            operations than the classic one, but of the kind that matrix units do ten times as fast, and few enough
            steps to keep everything on the chip. Padding, gating and dropped frequencies are parts of the matrices
            that are never multiplied.
Rule        N = N1 N2, a = x.reshape(N1, N2): a <- F_N1 a; a <- a * exp(-2 pi i k1 n2 / N); a <- a F_N2; then
            X[k1 + N1 k2] = a[k1, k2]. Order p does the same to each row of length N2. A convolution never sorts the
            frequencies: u and h are permuted alike, multiplied, and inverted with conjugate matrices (/ N).
            Causal: N >= L + taps - 1, the rows of a that hold padding are not multiplied, nor computed at the end.
            Gated: y = post * ((u * pre) conv h). Partial: the first taps of h only. Frequency-sparse: keep[i] indices of
            axis i, half at each end; whole rows and columns of the products are skipped.
            Real trick: z = x_even + i x_odd of length N/2; X_k = (Z_k + conj Z_-k)/2 - i/2 e^{-2 pi i k/N} (Z_k - conj Z_-k).
Cost        Forward and inverse: sum_i 16 N N_i operations, N the length of the complex transform; a classic FFT does
            10 N log2 N. The plan of factors and a model of the time: tutor/attention/fft_cost.py.
Paper       Fu et al. 2024, sections 3.1 (Monarch), 3.2 (cost model) and 3.3 (partial, frequency-sparse); section
            numbers unverified.
Differs     Kept frequencies lie at both ends of an axis, so that low means low and real stays (nearly) real: the real
            part is taken, and a kept frequency whose mirror image is dropped counts half.
See also    kernelized (a Toeplitz matrix is a convolution), tutor/kernels/monarch.py, tests/attention/test_fftconv.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutor.attention.fft_cost import (
    INNER,
    LONGEST,
    MACHINES,
    SHORTEST,
    Machine,
    Operations,
    Plan,
    best_order,
    check_factors,
    factorise,
    operations,
    plan,
    seconds,
)
from tutor.catalog import method
from tutor.cost import Cost

__all__ = ["INNER", "MACHINES", "FFTConv", "Machine", "Operations", "Plan", "best_order", "dft_matrix", "factorise",
           "frequencies", "kept", "low_pass", "monarch_fft", "monarch_ifft", "operations", "plan", "real_fft", "real_ifft",
           "seconds", "twiddle"]

# ------------------------------------------------------------------------------------------------- the transform

def dft_matrix(n: int) -> Tensor:
    """F_n `(n, n)`, complex128: exp(-2 pi i k t / n). The product k t is reduced modulo n first: no angle is large."""
    k = torch.arange(n)
    return torch.polar(torch.ones(n, n, dtype=torch.float64), -2 * math.pi * (k[:, None] * k % n).double() / n)


def twiddle(n1: int, n2: int) -> Tensor:
    """exp(-2 pi i k1 t2 / (n1 n2)) `(n1, n2)`, complex128: what a two-dimensional DFT lacks to be a DFT of n1 n2."""
    angle = (torch.arange(n1)[:, None] * torch.arange(n2)).double() / (n1 * n2)
    return torch.polar(torch.ones(n1, n2, dtype=torch.float64), -2 * math.pi * angle)


def frequencies(factors: tuple[int, ...]) -> Tensor:
    """The frequency `(N,)` in each slot of the permuted order: k1 + N1 (k2 + N2 (k3 + ...)), slots row by row."""
    f = torch.zeros(1, dtype=torch.int64)
    for n in reversed(factors):
        f = (torch.arange(n)[:, None] + n * f).flatten()
    return f


def monarch_fft(x: Tensor, factors: tuple[int, ...], *, length: int | None = None, permuted: bool = True,
                keep: tuple[int, ...] | None = None) -> Tensor:
    """DFT of length N along the last axis by small matrix products.

    Args:
        x: `(..., L)`, real or complex, L <= N; zeros behind are implied and not multiplied.
        factors: N_1 .. N_p with product N.
        length: N, to be checked against the factors.
        permuted: leave the frequencies in the order of `frequencies(factors)`; False sorts them.
        keep: indices kept on each axis (`kept`); the rest is not computed, and the result is `(..., prod(keep))`.

    Returns:
        Complex `(..., N)`; complex128 for float64 and complex128, else complex64.
    """
    n = check_factors(factors, length, keep)
    if x.shape[-1] > n:
        raise ValueError(f"x has {x.shape[-1]} entries, the factors {factors} make {n}; choose a longer plan")
    dtype = torch.complex128 if x.dtype in (torch.float64, torch.complex128) else torch.complex64
    spectrum = _forward(x if x.is_complex() else x.to(dtype), factors, keep)
    if not permuted and keep is None:
        return torch.empty_like(spectrum).index_copy_(-1, frequencies(factors).to(x.device), spectrum)
    return spectrum


def monarch_ifft(spectrum: Tensor, factors: tuple[int, ...], *, rows: int | None = None, permuted: bool = True,
                 keep: tuple[int, ...] | None = None) -> Tensor:
    """Inverse of `monarch_fft`, complex `(..., N)`.

    Args:
        spectrum: `(..., N)`, or `(..., prod(keep))` of the kept frequencies; the others are zero.
        rows: compute only the first rows of the N_1 x N_2.. grid: `(..., rows * N / N_1)`.
    """
    n = check_factors(factors, None, keep)
    if spectrum.shape[-1] != (n if keep is None else math.prod(keep)):
        raise ValueError(f"spectrum has {spectrum.shape[-1]} entries, factors {factors} and keep {keep} make "
                         f"{n if keep is None else math.prod(keep)}")
    if not permuted:
        spectrum = spectrum[..., frequencies(factors).to(spectrum.device)]
    return _inverse(spectrum, factors, keep, rows) / n


def kept(n: int, count: int) -> Tensor:
    """The `count` indices of an axis of n that are nearest to zero, counted around the circle; ascending."""
    return torch.cat([torch.arange(-(-count // 2)), torch.arange(n - count // 2, n)])


def _forward(x: Tensor, factors: tuple[int, ...], keep: tuple[int, ...] | None) -> Tensor:
    """x `(..., L)` to `(..., prod(keep))`: a DFT over the first axis, a twiddle, and the rest of each row."""
    n1, n2 = factors[0], math.prod(factors[1:])
    rows = -(-x.shape[-1] // n2)                                                           # rows that are not all padding
    a = torch.nn.functional.pad(x, (0, rows * n2 - x.shape[-1])).unflatten(-1, (rows, n2))
    k1 = slice(None) if keep is None else kept(n1, keep[0])
    a = dft_matrix(n1)[k1, :rows].to(x) @ a                                                # (..., k1, n2)
    if len(factors) == 1:
        return a.squeeze(-1)
    a = a * twiddle(n1, n2)[k1].to(x)
    return _forward(a, factors[1:], keep and keep[1:]).flatten(-2)


def _inverse(spectrum: Tensor, factors: tuple[int, ...], keep: tuple[int, ...] | None, rows: int | None) -> Tensor:
    """The mirror image of `_forward`, without the factor 1/N."""
    n1, n2 = factors[0], math.prod(factors[1:])
    k1 = slice(None) if keep is None else kept(n1, keep[0])
    a = spectrum.unflatten(-1, (-1, spectrum.shape[-1] // (n1 if keep is None else keep[0])))
    if len(factors) > 1:
        a = _inverse(a, factors[1:], keep and keep[1:], None) * twiddle(n1, n2)[k1].conj().to(spectrum)
    return (dft_matrix(n1)[k1, :rows].conj().T.to(spectrum) @ a).flatten(-2)


def real_fft(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """DFT of length N = 2 prod(factors) of real x `(..., L)`, L <= N, from one complex transform of length N/2.

    Returns the frequencies 0 .. N/2, sorted, `(..., N/2 + 1)`.
    """
    half = check_factors(factors, None, None)
    x = torch.nn.functional.pad(x, (0, x.shape[-1] % 2))
    z = monarch_fft(torch.complex(x[..., ::2], x[..., 1::2]), factors, permuted=False)
    z = torch.cat([z, z[..., :1]], -1)                                                     # Z_{N/2} = Z_0
    mirror = z.flip(-1).conj()                                                             # conj Z_{-k}
    return (z + mirror) / 2 - 0.5j * _half_turns(half).to(z) * (z - mirror)


def real_ifft(spectrum: Tensor, factors: tuple[int, ...], *, rows: int | None = None) -> Tensor:
    """Inverse of `real_fft`: `(..., N/2 + 1)` to real `(..., N)`, or to the entries of the first rows."""
    half = check_factors(factors, spectrum.shape[-1] - 1, None)
    mirror = spectrum.flip(-1).conj()
    z = (spectrum + mirror) / 2 + 0.5j * _half_turns(half).conj().to(spectrum) * (spectrum - mirror)
    z = monarch_ifft(z[..., :half], factors, permuted=False, rows=rows)                    # even entries + i odd entries
    return torch.stack([z.real, z.imag], -1).flatten(-2)


def _half_turns(half: int) -> Tensor:
    """e^{-2 pi i k / N} for k = 0 .. N/2."""
    k = torch.arange(half + 1, dtype=torch.float64)
    return torch.polar(torch.ones_like(k), -math.pi * k / half)


# ------------------------------------------------------------------------------------------------- the convolution

@method("fftconv", "attention", "FlashFFTConv", paper="fu2024flashfftconv", flags=("convolution", "exact"),
        kernel="tutor.kernels.monarch.fft_conv", grid=({"order": 1}, {"order": 2}, {"order": 3}))
@dataclass(frozen=True)
class FFTConv:
    """A long convolution.

    Attributes:
        order: p, the number of factors; None: the table of `plan`.
        causal: y_t = sum_{s <= t} h_{t-s} u_s; False: circular, of the input's own length.
        taps: use only the first taps of the filter (partial convolution).
        keep: frequencies kept on each axis (frequency-sparse). Mind: a filter whose frequencies were dropped rings on both
            sides, so that an output sees a little of what follows it.
    """

    order: int | None = None
    causal: bool = True
    taps: int | None = None
    keep: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.taps is not None and self.taps < 1:
            raise ValueError(f"taps must be >= 1; got {self.taps}")

    def plan(self, length: int, taps: int) -> Plan:
        """Circular length and factors for an input `length` long and a filter of `taps`."""
        taps = min(taps, self.taps or taps)
        n = 1 << (length + taps - 2).bit_length() if self.causal else length
        if self.order is not None:
            return Plan(n, factorise(n, self.order))
        if not SHORTEST <= n <= LONGEST:                                                   # beyond the table
            return Plan(n, factorise(n, 2 if n >= 4 else 1))
        chosen = plan(n)
        return Plan(n, factorise(n, 2)) if chosen.real and self.keep is not None else chosen

    def conv(self, u: Tensor, h: Tensor, *, pre: Tensor | None = None, post: Tensor | None = None,
             truncate: bool = False) -> Tensor:
        """y = post * ((u * pre) conv h), `(B, H, L)`, in the dtype of u (half precision is computed in float32).

        Args:
            u, pre, post: `(B, H, L)`.
            h: `(H, taps)`.
            truncate: cut a filter longer than the input instead of refusing it.
        """
        length = u.shape[-1]
        if u.ndim != 3 or h.ndim != 2 or h.shape[0] != u.shape[1] or 0 in (*u.shape, *h.shape):
            raise ValueError(f"u must be (B, H, L) and h (H, taps), none empty; got {tuple(u.shape)} and {tuple(h.shape)}")
        for name, gate in (("pre", pre), ("post", post)):
            if gate is not None and gate.shape != u.shape:
                raise ValueError(f"{name} must have the shape of u, {tuple(u.shape)}; got {tuple(gate.shape)}")
        h = h[:, :self.taps]
        if h.shape[1] > length and not truncate:
            raise ValueError(f"the filter is longer than the input: {h.shape[1]} taps, {length} entries. Causal outputs never "
                             "read the rest: pass truncate=True, or taps=")
        h = h[:, :length]
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        x = u.to(dtype) if pre is None else u.to(dtype) * pre.to(dtype)
        y = self._convolved(x, h.to(dtype), self.plan(length, h.shape[1]))
        return (y if post is None else y * post.to(dtype)).to(u.dtype)

    def _convolved(self, x: Tensor, h: Tensor, chosen: Plan) -> Tensor:
        length, factors = x.shape[-1], chosen.factors
        rows = -(-length // (chosen.n // factors[0]))                                      # rows of the grid that hold outputs
        if chosen.real:
            return real_ifft(real_fft(x, factors) * real_fft(h, factors), factors, rows=rows)[..., :length]
        product = monarch_fft(x, factors, length=chosen.n, keep=self.keep) * monarch_fft(h, factors, keep=self.keep)
        return monarch_ifft(product, factors, keep=self.keep, rows=rows).real[..., :length]

    def cost(self, u: Tensor, h: Tensor) -> Cost:
        """Operations of the products that run, the filter's own transform left out (it is made once), and bytes of u and y."""
        batch, heads, length = u.shape
        ran = operations(self.plan(length, h.shape[1]), length, keep=self.keep).ran
        moved = u.numel() * u.element_size()
        return Cost(flops=batch * heads * ran, bytes_read=moved + h.numel() * h.element_size(), bytes_written=moved)


def low_pass(h: Tensor, n: int, bins: int) -> Tensor:
    """h `(H, taps)` with all but the first `bins` of its n/2 + 1 real frequencies set to zero: `(H, n)`, ringing included.

    This is how the published code thins a spectrum (bins = half the kept length).
    """
    if not 1 <= bins <= n // 2 + 1:
        raise ValueError(f"bins must be in [1, n/2 + 1] = [1, {n // 2 + 1}]; got {bins}")
    spectrum = torch.fft.rfft(h, n)
    spectrum[..., bins:] = 0
    return torch.fft.irfft(spectrum, n)
