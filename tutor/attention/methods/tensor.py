"""Tensor attention: a query attends to pairs of keys; exact in cubic time, by a polynomial in linear time.

Idea        A logit of three rows instead of two: a query asks "which two tokens together?". All pairs are S1·S2 columns, so
            exact attention is cubic. If logits are small, a polynomial of low degree is as good as the exponential, and a
            polynomial of a product factors: the sum over pairs becomes a product of two sums over single keys.
Rule        s_{i,j1,j2} = sum_c q_ic k1_{j1 c} k2_{j2 c} / D;  A = softmax over all pairs;  value of a pair v1_{j1} * v2_{j2}
            exp(x) ~ sum_{m<=g} c_m x^m. One column for each multi-index a, |a| <= g:
            U1_ia = c_|a| (|a|!/a!) D^-|a| q_i^a;  U2_ja = k1_j^a;  U3_ja = k2_j^a
            numerator U1 [(U2^T V1) * (U3^T V2)], denominator U1 [(U2^T 1) * (U3^T 1)]: no pair is ever formed.
Cost        exact T S1 S2 (D + Dv); polynomial (T + S1 + S2) r Dv with r = C(D + g, g) columns: for small D only.
Paper       Alman and Song 2024, section 3 (entries below o((log n)^(1/3)) make it near linear; above, no algorithm is truly
            subcubic unless SETH fails; numbering unverified). The task Match3 is from Sanford, Hsu and Telgarsky 2023.
Differs     No official code exists. Coefficients are Taylor's or interpolate at Chebyshev points of [-bound, bound]. The
            dot products are divided by D, not by sqrt(D), as in the paper. A theory result: no kernel.
See also    kernelized (the same factoring with random features), ntk (a polynomial map in its theory)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutor.attention.partial import Partial, from_logits
from tutor.attention.selection import need
from tutor.catalog import method
from tutor.cost import Cost

COLUMNS = 20_000      # the most columns a feature map may have
PAIRS = 1 << 22       # logits of pairs held at a time


def kron_rows(a: Tensor, b: Tensor) -> Tensor:
    """Row-pair product: `(..., S1, X), (..., S2, X) -> (..., S1 * S2, X)`, row (j1, j2) is `a_j1 * b_j2`, j2 the faster."""
    return (a[..., :, None, :] * b[..., None, :, :]).flatten(-3, -2)


def rank(d: int, degree: int) -> int:
    """Monomials of at most `degree` in d variables: C(d + degree, degree)."""
    return math.comb(d + degree, degree)


def exponents(d: int, degree: int) -> Tensor:
    """Every multi-index a with |a| <= degree, int64 `(rank, d)`, by total degree."""
    if rank(d, degree) > COLUMNS:
        raise ValueError(f"degree {degree} in width {d} needs C({d + degree}, {degree}) = {rank(d, degree)} columns, more than "
                         f"{COLUMNS}; use fewer dimensions (8 or less), a lower degree, or method='exact'")
    levels = [[(0,) * d]]
    for _ in range(degree):                                # raise one exponent at or after the last that is not zero
        levels.append([a[:c] + (a[c] + 1,) + a[c + 1:] for a in levels[-1]
                       for c in range(max((i for i, e in enumerate(a) if e), default=0), d)])
    return torch.tensor([a for level in levels for a in level], dtype=torch.int64).reshape(-1, d)


def monomials(x: Tensor, a: Tensor) -> Tensor:
    """`x (..., n, d)`, `a (r, d) -> (..., n, r)`: the product over c of x_c to the power a_c."""
    out = x.new_ones(*x.shape[:-1], len(a))
    for c in range(x.shape[-1]):
        powers = torch.stack([x[..., c] ** p for p in range(int(a[:, c].max()) + 1)], -1)   # (..., n, degree + 1)
        out = out * powers[..., a[:, c]]
    return out


def coefficients(degree: int, basis: str = "taylor", bound: float = 1.0) -> Tensor:
    """c_0 .. c_degree of a polynomial that stands for exp: Taylor at 0, or through the Chebyshev points of [-bound, bound]."""
    if basis == "taylor":
        return torch.tensor([1 / math.factorial(m) for m in range(degree + 1)], dtype=torch.float64)
    through = np.polynomial.Chebyshev.interpolate(np.exp, degree, domain=[-bound, bound])
    c = through.convert(kind=np.polynomial.Polynomial).coef
    return torch.from_numpy(np.pad(c, (0, degree + 1 - len(c))))


@method("tensor", "attention", "Tensor (Kronecker) attention", paper="alman2024kronecker", flags=("attends", "lossy"),
        grid=({"degree": 2}, {"degree": 4}, {"degree": 6}))
@dataclass(frozen=True)
class TensorAttention:
    """Attention to pairs of keys.

    Attributes:
        method: "exact" or "poly".
        degree: g, of the polynomial.
        basis: "taylor" or "chebyshev" (a smaller degree for the same error, if `bound` is right).
        bound: of the logits, for Chebyshev points.
    """

    method: str = "exact"
    degree: int = 4
    basis: str = "taylor"
    bound: float = 1.0

    def __post_init__(self):
        if self.method not in ("exact", "poly"):
            raise ValueError(f"method must be 'exact' or 'poly'; got {self.method!r}")
        if self.basis not in ("taylor", "chebyshev"):
            raise ValueError(f"basis must be 'taylor' or 'chebyshev'; got {self.basis!r}")
        need(self.degree, 0, "degree")
        if not self.bound > 0:
            raise ValueError(f"bound must be > 0, the largest absolute logit; got {self.bound}")

    def attend(self, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor) -> Partial:
        """Every query reads every pair of keys; no mask.

        Args:
            q: `(B, H, T, D)`; k1, v1: `(B, H, S1, D)`, `(B, H, S1, Dv)`; k2, v2: `(B, H, S2, D)`, `(B, H, S2, Dv)`.

        Raises:
            ValueError: shapes disagree, too many columns, or the polynomial makes a row's denominator not positive.
        """
        _check(q, k1, k2, v1, v2)
        return self._exact(q, k1, k2, v1, v2) if self.method == "exact" else self._poly(q, k1, k2, v1, v2)

    def _exact(self, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor) -> Partial:
        values, parts = kron_rows(v1, v2), []                                              # (B, H, S1*S2, Dv)
        pairs = kron_rows(k1, k2).transpose(-1, -2) / q.shape[-1]                          # (B, H, D, S1*S2)
        rows = max(1, PAIRS // max(1, pairs.shape[-1] * q.shape[0] * q.shape[1]))
        for some in q.split(rows, 2):
            parts.append(from_logits(some @ pairs, values))
        return Partial(torch.cat([part.o for part in parts], 2), torch.cat([part.lse for part in parts], 2))

    def features(self, q: Tensor, k1: Tensor, k2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U1 `(B, H, T, r)`, U2 `(B, H, S1, r)`, U3 `(B, H, S2, r)`: their products over columns sum to the polynomial."""
        d = q.shape[-1]
        a = exponents(d, self.degree)                                                      # (r, D)
        total = a.sum(-1)
        log_factorial = torch.lgamma(torch.arange(self.degree + 1, dtype=torch.float64) + 1)
        ways = torch.exp(log_factorial[total] - log_factorial[a].sum(-1))                  # |a|! / a!
        factor = coefficients(self.degree, self.basis, self.bound)[total] * ways / float(d) ** total
        return monomials(q, a) * factor.to(q), monomials(k1, a), monomials(k2, a)

    def _poly(self, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor) -> Partial:
        u1, u2, u3 = self.features(q, k1, k2)
        total = u1 @ (u2.sum(-2) * u3.sum(-2))[..., None]                                  # (B, H, T, 1)
        if not bool((total > 0).all()):
            raise ValueError(f"the polynomial of degree {self.degree} gives a denominator of {float(total.min()):.3g}: the "
                             "logits are too large for it. Use an even or a higher degree, smaller entries, or method='exact'")
        o = u1 @ ((u2.transpose(-1, -2) @ v1) * (u3.transpose(-1, -2) @ v2)) / total
        return Partial(o, total.log()[..., 0])

    def cost(self, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor) -> Cost:
        """Multiply-adds of the matrix products, twice; `pairs` counts the (query, pair of keys) logits of the exact form."""
        (b, h, t, d), s1, s2, dv = q.shape, k1.shape[2], k2.shape[2], v1.shape[3]
        logits = b * h * t * s1 * s2
        if self.method == "exact":
            return Cost(flops=2 * logits * (d + dv), pairs=logits)
        return Cost(flops=2 * b * h * rank(d, self.degree) * (dv * (t + s1 + s2) + t), pairs=logits)


# ------------------------------------------------------------------------------------------------------------ Match3

def match3_exact(x: Tensor, modulus: int) -> Tensor:
    """bool `(n,)`: for token i, are there j1, j2 (any, also equal) with x_i + x_j1 + x_j2 = 0 modulo `modulus`?"""
    return ((x[:, None, None] + x[:, None] + x) % modulus == 0).flatten(1).any(-1)


def match3_weights(x: Tensor, modulus: int, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """q, k1, k2 `(1, 1, n, 4)` whose tensor logits are beta cos(2 pi (x_i + x_j1 + x_j2) / modulus), float64."""
    angle = 2 * math.pi * x.double() / modulus
    c, s = angle.cos(), angle.sin()
    rows = [torch.stack(columns, -1)[None, None] for columns in ([c, -c, -s, -s], [c, s, s, c], [c, s, c, s])]
    return 4 * beta * rows[0], rows[1], rows[2]                                            # 4 undoes the division by D


def match3(x: Tensor, modulus: int, *, beta: float | None = None, method: TensorAttention | None = None) -> Tensor:
    """bool `(n,)`: what one tensor attention says of Match3, by a threshold on its log-sum-exp.

    A matching pair alone gives lse >= beta; without one, lse <= 2 log n + beta cos(2 pi / modulus). The threshold lies half
    way; `beta` is large enough for a gap of 1 unless given.
    """
    n, near = len(x), math.cos(2 * math.pi / modulus)
    beta = (2 * math.log(n) + 1) / (1 - near) if beta is None else beta
    rows = match3_weights(x, modulus, beta)
    lse = (method or TensorAttention()).attend(*rows, *[torch.ones_like(rows[1])] * 2).lse[0, 0]
    return lse > (beta + 2 * math.log(n) + beta * near) / 2


def _check(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor) -> None:
    for name, x in (("q", q), ("k1", k1), ("k2", k2), ("v1", v1), ("v2", v2)):
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"{name} must be floating point with four axes (B, H, length, width); got {x.dtype} of shape "
                             f"{tuple(x.shape)}")
        if x.shape[:2] != q.shape[:2]:
            raise ValueError(f"{name} and q differ in batch or heads: {tuple(x.shape[:2])} and {tuple(q.shape[:2])}. Grouped "
                             "heads are not defined here: repeat the keys")
    if not q.shape[3] == k1.shape[3] == k2.shape[3] or v1.shape[3] != v2.shape[3]:
        raise ValueError(f"q, k1 and k2 must share a width, and v1 and v2; got {q.shape[3]}, {k1.shape[3]}, {k2.shape[3]} and "
                         f"{v1.shape[3]}, {v2.shape[3]}")
    for name, k, v in (("1", k1, v1), ("2", k2, v2)):
        if k.shape[2] != v.shape[2]:
            raise ValueError(f"k{name} and v{name} must have one length; got {k.shape[2]} and {v.shape[2]}")
