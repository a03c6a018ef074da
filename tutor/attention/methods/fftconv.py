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
            10 N log2 N. Time (form unverified): B H sum_i [16 N N_i / gamma(N_i) + 4 N / omega(i)], gamma the rate of
            the matrix units where N_i >= 16, else the general one; omega the bandwidth of the memory that holds stage i.
Paper       Fu et al. 2024, sections 3.1 (Monarch), 3.2 (cost model) and 3.3 (partial, frequency-sparse); section
            numbers unverified.
Differs     The factors up to 32 768 are those of the published code; the passes through slow memory above it are ours.
            Kept frequencies lie at both ends of an axis, so that low means low and real stays (nearly) real: the real
            part is taken, and a kept frequency whose mirror image is dropped counts half.
See also    kernelized (a Toeplitz matrix is a convolution), tutor/kernels/monarch.py, tests/attention/test_fftconv.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tutor.catalog import method
from tutor.cost import Cost

# Complex lengths that are transformed on the chip: the published code's factors.
INNER = {256: (16, 16), 1024: (32, 32), 4096: (16, 16, 16), 8192: (32, 16, 16), 16384: (16, 32, 32), 32768: (32, 32, 32)}
SHORTEST, LONGEST = 256, 4_194_304


class Plan(NamedTuple):
    """How a real convolution of circular length n is done.

    Attributes:
        n: circular length, padding included.
        factors: N_1 .. N_p, of the complex transform: its product is n, or n/2 with the real trick.
        real: whether even and odd entries are packed as one complex sequence of half the length.
        outer: how many leading factors are passes through slow memory.
    """

    n: int
    factors: tuple[int, ...]
    real: bool = False
    outer: int = 0

    @property
    def order(self) -> int:
        return len(self.factors)


def plan(n: int) -> Plan:
    """The table of factors for a power of two from 256 to 4 194 304."""
    if not SHORTEST <= n <= LONGEST or n & (n - 1):
        raise ValueError(f"n must be a power of two from {SHORTEST} to {LONGEST}; got {n}. Pad to the next one, or choose "
                         "factors of your own with factorise(n, order)")
    if n in INNER:
        return Plan(n, INNER[n])
    if n // 2 in INNER and n < 4096:
        return Plan(n, INNER[n // 2], real=True)
    outer: tuple[int, ...] = ()
    while n // math.prod(outer) > 32768:
        rest = n // math.prod(outer)
        outer += (32,) if rest > 16 * 32768 else (16,)
    return Plan(n, outer + INNER[n // math.prod(outer)], outer=len(outer))


def factorise(n: int, order: int) -> tuple[int, ...]:
    """n, a power of two, as `order` factors as equal as can be, the larger ones first."""
    bits = n.bit_length() - 1
    if n < 1 or n & (n - 1) or not 1 <= order <= max(bits, 1):
        raise ValueError(f"n must be a power of two and order in [1, {max(bits, 1)}]; got n={n}, order={order}")
    return tuple(2 ** (bits // order + (i < bits % order)) for i in range(order))


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
    n = _checked(factors, length, keep)
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
    n = _checked(factors, None, keep)
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


def _checked(factors: tuple[int, ...], length: int | None, keep: tuple[int, ...] | None) -> int:
    n = math.prod(factors)
    if not factors or min(factors) < 1 or (length is not None and n != length):
        raise ValueError(f"factors must be >= 1 and their product the length{f' {length}' if length else ''}; got {factors}")
    if keep is not None and (len(keep) != len(factors) or not all(1 <= r <= f for r, f in zip(keep, factors))):
        raise ValueError(f"keep must give 1 to N_i indices for each of the factors {factors}; got {keep}")
    return n


def real_fft(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """DFT of length N = 2 prod(factors) of real x `(..., L)`, L <= N, from one complex transform of length N/2.

    Returns the frequencies 0 .. N/2, sorted, `(..., N/2 + 1)`.
    """
    half = _checked(factors, None, None)
    x = torch.nn.functional.pad(x, (0, x.shape[-1] % 2))
    z = monarch_fft(torch.complex(x[..., ::2], x[..., 1::2]), factors, permuted=False)
    z = torch.cat([z, z[..., :1]], -1)                                                     # Z_{N/2} = Z_0
    mirror = z.flip(-1).conj()                                                             # conj Z_{-k}
    return (z + mirror) / 2 - 0.5j * _half_turns(half).to(z) * (z - mirror)


def real_ifft(spectrum: Tensor, factors: tuple[int, ...], *, rows: int | None = None) -> Tensor:
    """Inverse of `real_fft`: `(..., N/2 + 1)` to real `(..., N)`, or to the entries of the first rows."""
    half = _checked(factors, spectrum.shape[-1] - 1, None)
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


# --------------------------------------------------------------------------------------- operations and the machine

class Operations(NamedTuple):
    """Operations of the matrix products, forward and inverse, of one sequence: those that run, and those of full matrices."""

    ran: int
    full: int

    @property
    def skipped(self) -> float:
        """Share that padding and dropped frequencies save."""
        return 1 - self.ran / self.full


def operations(chosen: Plan, length: int | None = None, *, keep: tuple[int, ...] | None = None) -> Operations:
    """Count the products of a convolution of `length` entries in a circle of `chosen.n` (default: no padding).

    A complex multiply-add is 8 operations: full = sum_i 16 N N_i.
    """
    total = _checked(chosen.factors, None, keep)
    length = total if length is None else -(-length // (2 if chosen.real else 1))
    rows = -(-length // (total // chosen.factors[0]))
    ran, left, blocks = 0, total, 1
    for i, n in enumerate(chosen.factors):
        left //= n
        held = n if keep is None else keep[i]
        ran += 16 * blocks * held * (rows if i == 0 else n) * left
        blocks *= held
    return Operations(ran, sum(16 * total * n for n in chosen.factors))


@dataclass(frozen=True)
class Machine:
    """What the cost model knows of hardware: operations/s, bytes/s and bytes.

    Attributes:
        matrix: rate of the matrix units, for factors >= 16.
        general: rate of everything else.
        slow, fast: bandwidth of the large memory and of the memory on the chip.
        chip: bytes of the chip's memory that one sequence may take.
    """

    name: str
    matrix: float
    general: float
    slow: float
    fast: float
    chip: int

    def __post_init__(self):
        for name in ("matrix", "general", "slow", "fast", "chip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0; got {getattr(self, name)}")


MACHINES = {m.name: m for m in (
    Machine("A100, as the paper measured it (unverified)", 234e12, 17.6e12, 1.35e12, 9.5e12, 163_840),
    Machine("H100 SXM, data sheet", 989e12, 67e12, 3.35e12, 132 * 128 * 1.755e9, 232_448),     # 128 bytes a cycle and core
    Machine("no matrix units", 17.6e12, 17.6e12, 1.35e12, 9.5e12, 163_840),
)}


def seconds(chosen: Plan, machine: Machine, *, batch: int = 1, heads: int = 1) -> float:
    """The cost model: batch heads sum_i [16 N N_i / gamma(N_i) + 4 N / omega(i)]. A model, not a measurement.

    Stage i works on sequences of N_i .. N_p entries of 4 bytes (complex, half precision): on the chip if one fits.
    """
    n, total = math.prod(chosen.factors), 0.0
    for i, factor in enumerate(chosen.factors):
        rate = machine.matrix if factor >= 16 else machine.general
        fits = 4 * math.prod(chosen.factors[i:]) <= machine.chip
        total += 16 * n * factor / rate + 4 * n / (machine.fast if fits else machine.slow)
    return batch * heads * total


def best_order(n: int, machine: Machine) -> int:
    """The order that the cost model chooses for a complex transform of n, a power of two; the lower one if equal."""
    return min(range(1, max(n.bit_length(), 2)), key=lambda p: seconds(Plan(n, factorise(n, p)), machine))
