"""What a convolution by FlashFFTConv costs: its plan, the operations of its products, and a model of the time they take.

Idea        More and smaller factors mean fewer operations, but factors below 16 leave the matrix units idle, and each
            stage that does not fit on the chip is a pass through slow memory. The best order trades the three.
Rule        Forward and inverse: sum_i 16 N N_i operations, N the length of the complex transform; a classic FFT does
            10 N log2 N. Time (form unverified): B H sum_i [16 N N_i / gamma(N_i) + 4 N / omega(i)], gamma the rate of
            the matrix units where N_i >= 16, else the general one; omega the bandwidth of the memory that holds stage i.
Paper       Fu et al. 2024, section 3.2 (number unverified). The factors up to 32 768 are those of the published code; the
            passes through slow memory above it are ours.
See also    tutor/attention/methods/fftconv.py (the transform), tests/attention/test_fft_cost.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

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


def check_factors(factors: tuple[int, ...], length: int | None, keep: tuple[int, ...] | None) -> int:
    """The product N of the factors; a `ValueError` unless it is `length` and `keep` fits them."""
    n = math.prod(factors)
    if not factors or min(factors) < 1 or (length is not None and n != length):
        raise ValueError(f"factors must be >= 1 and their product the length{f' {length}' if length else ''}; got {factors}")
    if keep is not None and (len(keep) != len(factors) or not all(1 <= r <= f for r, f in zip(keep, factors))):
        raise ValueError(f"keep must give 1 to N_i indices for each of the factors {factors}; got {keep}")
    return n


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
    total = check_factors(chosen.factors, None, keep)
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
