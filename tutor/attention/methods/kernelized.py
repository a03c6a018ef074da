"""Kernelized attention with relative positions: random features for the dot products, one FFT for the positions.

Idea        exp(q·k) is the mean of phi(q)·phi(k) over random features, so the sum over keys can be taken once for all
            queries. A bias b of the distance j - i alone multiplies each pair by c = e^b: a Toeplitz matrix, which an
            FFT multiplies by in n log n. The features' variance is e to the squared norm: so queries and keys are
            normalised, and the bias gives back the sharpness that this takes away.
Rule        phi(x) = exp(-|x|^2 / 2) / sqrt(m) [exp(w_1·x), ..., exp(w_m·x)], w_r ~ N(0, I); E phi(x)·phi(y) = exp(x·y)
            o_i = sum_j c_{j-i} phi(q_i)·phi(k_j) v_j / sum_j c_{j-i} phi(q_i)·phi(k_j);  causal: c_t = 0 for t > 0
            X_j = phi(k_j) v_j^T and phi(k_j); Y_i = sum_j c_{j-i} X_j = irfft(rfft(h) rfft(X)), h[t mod L] = c_{-t},
            L >= 2n - 1; then o_i = phi(q_i) Y_i. Plain (PRF): x = q / D^{1/4}. Normalised (NPRF): q / |q|, k / |k|.
Cost        n m (D + Dv) for the features and contractions, (Dv + 1) m FFTs of length L; direct: n^2 (m + Dv).
            Memory n m for one column of v at a time (all columns at once: n m Dv).
Paper       Luo et al. 2021, sections 3.1 (FFT) and 3.2 (normalisation); section numbers unverified. The features are
            those of Choromanski et al. 2020. Var phi(x)·phi(y) = (e^{|x+y|^2} - 1) e^{2 x·y} / m.
Differs     Written from the formulas: no maintained official code was found. Exponents are shifted before they are
            raised (per query row, one constant for all keys of a head, the largest bias), which cancels in the ratio and
            is added back to the log-sum-exp. Keys beyond the queries (T < S) are seen by position S - T + t.
See also    fftconv (the FFT itself), lightning (a fading state in place of features), tests/attention/test_kernelized.py
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv, stack_groups
from tutor.attention.partial import Partial
from tutor.catalog import method
from tutor.cost import Cost

WIDE = math.log(1e8)            # a bias that spans more than this is beyond what an FFT's rounding forgives


# --------------------------------------------------------------------------------------------------- the features

def directions(m: int, d: int, *, orthogonal: bool = False, generator: torch.Generator | None = None,
               dtype: torch.dtype = torch.float64) -> Tensor:
    """Random directions w `(m, d)`, each N(0, I).

    Args:
        orthogonal: directions of a group of d are perpendicular, with the lengths of Gaussian vectors: less variance.
    """
    if m < 1 or d < 1:
        raise ValueError(f"m and d must be >= 1 (features, width); got m={m}, d={d}")
    w = torch.randn(m, d, generator=generator, dtype=dtype)
    if not orthogonal:
        return w
    lengths = w.norm(dim=1, keepdim=True)                                                  # chi with d degrees
    groups = [torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=dtype)) for _ in range(-(-m // d))]
    turned = [q * r.diagonal().sign() for q, r in groups]                                  # uniform over rotations
    return torch.cat([q.T for q in turned])[:m] * lengths


def log_prf(x: Tensor, w: Tensor) -> Tensor:
    """Logarithms of the positive random features: `(..., d), (m, d) -> (..., m)`."""
    if w.ndim != 2 or w.shape[0] < 1 or w.shape[1] != x.shape[-1]:
        raise ValueError(f"w must have shape (m, d) with m >= 1 and d = {x.shape[-1]}; got {tuple(w.shape)}. "
                         "Draw it with directions(m, d)")
    return x @ w.T.to(x) - x.square().sum(-1, keepdim=True) / 2 - math.log(len(w)) / 2


def prf(x: Tensor, w: Tensor) -> Tensor:
    """Positive random features `(..., m)` of x `(..., d)` along w `(m, d)`: E prf(x)·prf(y) = exp(x·y).

    Scaled attention has x = q / D^{1/4}. Raised to e as it is: for long vectors shift `log_prf` first.
    """
    return log_prf(x, w).exp()


def normalised(x: Tensor, eps: float = 1e-12) -> Tensor:
    """x / |x|; a vector shorter than eps is divided by eps, so zero stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=eps)


def variance(x: Tensor, y: Tensor, m: int) -> Tensor:
    """Var of prf(x)·prf(y) with m independent directions: (e^{|x+y|^2} - 1) e^{2 x·y} / m."""
    return torch.expm1((x + y).square().sum(-1)) * torch.exp(2 * (x * y).sum(-1)) / m


def features_needed(norm: float, error: float, cosine: float = 0.0) -> float:
    """How many features give exp(x·y) a relative standard error, for |x| = |y| = norm at an angle of that cosine.

    |x + y|^2 = 2 norm^2 (1 + cosine); m = (e^{|x+y|^2} - 1) / error^2.
    """
    if norm < 0 or error <= 0 or not -1 <= cosine <= 1:
        raise ValueError(f"need norm >= 0, error > 0 and cosine in [-1, 1]; got {norm}, {error}, {cosine}")
    exponent = 2 * norm**2 * (1 + cosine)
    return math.expm1(exponent) / error**2 if exponent < 700 else math.inf


# --------------------------------------------------------------------------------------------- the Toeplitz matrix

def toeplitz(c: Tensor) -> Tensor:
    """The matrix `(..., n, n)` whose entry (i, j) is c_{j-i}, from `c (..., 2n-1)` with c_t at index t + n - 1."""
    n = (c.shape[-1] + 1) // 2
    i = torch.arange(n, device=c.device)
    return c[..., i - i[:, None] + n - 1]


def circulant(c: Tensor, length: int | None = None) -> Tensor:
    """First column h `(..., L)` of the circulant that holds the Toeplitz matrix: h[t mod L] = c_{-t}, zeros between.

    Args:
        c: `(..., 2n-1)`, c_t at index t + n - 1.
        length: L >= 2n - 1; the next power of two unless given.
    """
    n = (c.shape[-1] + 1) // 2
    length = 1 << (2 * n - 2).bit_length() if length is None else length
    if length < 2 * n - 1:
        raise ValueError(f"length must be >= 2n - 1 = {2 * n - 1}, or distances wrap around; got {length}")
    h = c.new_zeros(*c.shape[:-1], length)
    h[..., :n] = c[..., :n].flip(-1)                                                       # t = 0 .. n-1: c_0 .. c_{-(n-1)}
    if n > 1:
        h[..., -(n - 1):] = c[..., n:].flip(-1)                                            # t = -(n-1) .. -1: c_{n-1} .. c_1
    return h


def toeplitz_multiply(c: Tensor, x: Tensor, *, engine: str = "torch") -> Tensor:
    """Y_i = sum_j c_{j-i} X_j by FFT: `c (..., 2n-1)`, `x (..., n, r) -> (..., n, r)`; leading axes broadcast.

    Args:
        engine: "torch" (torch.fft) or "monarch" (the small matrix products of `fftconv`).
    """
    n = x.shape[-2]
    if c.shape[-1] != 2 * n - 1:
        raise ValueError(f"c must hold one factor per distance, 2n - 1 = {2 * n - 1}; got {c.shape[-1]}")
    h, x = circulant(c), x.transpose(-1, -2)                                               # (..., L), (..., r, n)
    length = h.shape[-1]
    if engine == "torch":
        y = torch.fft.irfft(torch.fft.rfft(h).unsqueeze(-2) * torch.fft.rfft(x, length), length)
    elif engine == "monarch":
        from tutor.attention.methods.fftconv import factorise, monarch_fft, monarch_ifft

        factors = factorise(length, 1 if length < 256 else 2)
        product = monarch_fft(h, factors).unsqueeze(-2) * monarch_fft(x, factors, length=length)
        y = monarch_ifft(product, factors).real
    else:
        raise ValueError(f"engine must be 'torch' or 'monarch'; got {engine!r}")
    return y[..., :n].transpose(-1, -2)


# ------------------------------------------------------------------------------------------------------ attention

@method("kernelized", "attention", "Kernelized attention with relative positions", paper="luo2021kernelized",
        flags=("attends", "linear", "estimator"),
        grid=({"m": 16}, {"m": 64}, {"m": 256}))
@dataclass(frozen=True)
class Kernelized:
    """Random-feature attention with a bias of the distance.

    Attributes:
        m: features; the standard error falls as 1 / sqrt(m).
        normalise: unit queries and keys (NPRF); False: the plain features of softmax attention (PRF).
        orthogonal: perpendicular directions.
    """

    m: int = 64
    normalise: bool = True
    orthogonal: bool = False

    def __post_init__(self):
        if self.m < 1:
            raise ValueError(f"m must be >= 1 (features); got {self.m}")

    def scaled(self, x: Tensor) -> Tensor:
        """What the kernel exp(x·y) is taken of: unit vectors, or x / D^{1/4}."""
        return normalised(x) if self.normalise else x / x.shape[-1] ** 0.25

    def attend(self, q: Tensor, k: Tensor, v: Tensor, b: Tensor | None = None, *, causal: bool = True,
               w: Tensor | None = None, generator: torch.Generator | None = None, how: str = "fft",
               engine: str = "torch", dtype: torch.dtype = torch.float64) -> Partial:
        """Estimated attention; lse is the logarithm of the estimated sum of exp(q·k + b).

        Args:
            q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`, T <= S.
            b: bias `(2S-1,)` or `(Hq, 2S-1)` of the distance j - i, at index j - i + S - 1; None: no bias, which needs
                no FFT but only sums (running sums if causal).
            w: directions `(m, D)`; drawn with `generator` unless given.
            how: "fft", or "direct" for the T x S matrix of estimated weights.
            engine: which FFT, see `toeplitz_multiply`.
        """
        check_qkv(q, k, v, every_row=True)
        if how not in ("fft", "direct"):
            raise ValueError(f"how must be 'fft' or 'direct'; got {how!r}")
        c, top = _factors(b, q.shape[1], k.shape[2], causal, how, dtype)                   # (Hq or 1, 2S-1) or None
        if w is None:
            w = directions(self.m, q.shape[3], orthogonal=self.orthogonal, generator=generator)
        log_q, log_k = (log_prf(self.scaled(x.to(dtype)), w) for x in (q, k))              # (B, Hq, T, m), (B, Hkv, S, m)
        shift_q, shift_k = log_q.amax(-1, keepdim=True), log_k.amax((-1, -2), keepdim=True)
        phi_q, phi_k = (log_q - shift_q).exp(), (log_k - shift_k).exp()
        ones = torch.ones(*v.shape[:-1], 1, dtype=dtype, device=v.device)
        columns = torch.cat([v.to(dtype), ones], -1)                                       # the last one is the denominator
        if how == "direct":
            sums = _direct(phi_q, phi_k, columns, c, causal)                               # (B, Hq, T, Dv + 1)
        else:
            sums = _summed(phi_q, phi_k, columns, _mixer(c, q.shape[1] // k.shape[1], causal, engine))
        groups, total = q.shape[1] // k.shape[1], sums[..., -1:]
        if how == "fft" and c is not None:                                                 # an FFT rounds to eps of all keys
            rounding = phi_q @ phi_k.sum(2)[..., None].repeat_interleave(groups, 1) * torch.finfo(dtype).eps
            if lost := int((total <= rounding).sum()):
                warnings.warn(f"{lost} of {total.numel()} rows weigh less than the rounding of the FFT and are returned "
                              "as empty: the features span too many orders of magnitude. Normalise, or use how='direct'",
                              stacklevel=2)
                total = torch.where(total <= rounding, 0.0, total)
        o = torch.where(total > 0, sums[..., :-1] / torch.where(total > 0, total, 1.0), 0.0)
        return Partial(o, (total.log() + shift_q + shift_k.repeat_interleave(groups, 1))[..., 0] + top)

    def cost(self, q: Tensor, k: Tensor, v: Tensor, *, biased: bool = True, how: str = "fft") -> Cost:
        """Operations: features, then sums by FFT (5 L log2 L each, real: half), by running sums, or pair by pair."""
        (batch, hq, t, d), (hkv, s), dv, m = q.shape, k.shape[1:3], v.shape[3], self.m
        flops = 2 * m * d * (hq * t + hkv * s)
        if how == "direct":
            return Cost(flops=batch * (flops + hq * t * s * 2 * (m + dv + 1)))
        length = 1 << (2 * s - 2).bit_length()
        one = 5 * length * (length.bit_length() - 1) // 2                                  # one real FFT of length L
        sums = (hkv + hq) * one + 3 * hq * length if biased else 2 * hkv * s               # per feature and column of v
        return Cost(flops=batch * (flops + m * (dv + 1) * (sums + 2 * hq * t)))


def _factors(b: Tensor | None, heads: int, s: int, causal: bool, how: str, dtype: torch.dtype) -> tuple:
    """e^b, its largest allowed entry taken out, as `(Hq or 1, 2S-1)`; and that entry's logarithm."""
    if b is None:
        return None, 0.0
    if b.shape not in ((2 * s - 1,), (heads, 2 * s - 1)):
        raise ValueError(f"b must hold one bias per distance j - i, shape (2S-1,) = ({2 * s - 1},) or "
                         f"(Hq, 2S-1) = ({heads}, {2 * s - 1}); got {tuple(b.shape)}")
    b = b.to(dtype).reshape(-1, 2 * s - 1)
    if causal:
        b = b.masked_fill(torch.arange(2 * s - 1, device=b.device) > s - 1, float("-inf"))
    top = b.amax(-1, keepdim=True)
    allowed = b > float("-inf")
    if how == "fft" and float((top - b)[allowed].max()) > WIDE:
        warnings.warn(f"the bias spans a factor of e^{float((top - b)[allowed].max()):.0f}; an FFT rounds relative to the "
                      "largest factor, so weak distances drown. Use how='direct', or clip b", stacklevel=3)
    return (b - top).exp(), top


def _direct(phi_q: Tensor, phi_k: Tensor, columns: Tensor, c: Tensor | None, causal: bool) -> Tensor:
    """The definition, with its T x S matrix."""
    groups, t, s = phi_q.shape[1] // phi_k.shape[1], phi_q.shape[2], phi_k.shape[2]
    weights = phi_q @ phi_k.repeat_interleave(groups, 1).transpose(-1, -2)                 # (B, Hq, T, S)
    if c is not None:
        weights = weights * toeplitz(c)[:, s - t:]                                         # rows of the last T positions
    elif causal:
        weights = weights.tril(s - t)
    return weights @ columns.repeat_interleave(groups, 1)


def _mixer(c: Tensor | None, groups: int, causal: bool, engine: str) -> Callable[[Tensor], Tensor]:
    """What sums `(B, Hkv, S, m)` over keys for every position: `(B, Hq, S, m)`, or 1 in place of S."""
    if c is None:
        return lambda x: (x.cumsum(2) if causal else x.sum(2, keepdim=True)).repeat_interleave(groups, 1)
    c = c.expand(groups, -1) if len(c) == 1 else c.unflatten(0, (-1, groups))              # (G, 2S-1) or (Hkv, G, 2S-1)
    return lambda x: toeplitz_multiply(c, x.unsqueeze(2), engine=engine).flatten(1, 2)     # keys transformed once a KV head


def _summed(phi_q: Tensor, phi_k: Tensor, columns: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """phi(q_i) · sum_j c_{j-i} phi(k_j) v_j, one column of v after the other: memory n m, not n m Dv."""
    t, out = phi_q.shape[2], []
    for column in columns.unbind(-1):                                                      # (B, Hkv, S)
        y = mix(phi_k * column[..., None])                                                 # (B, Hq, S or 1, m)
        out.append((phi_q * y[:, :, -t:]).sum(-1))
    return torch.stack(out, -1)


def exact(q: Tensor, k: Tensor, v: Tensor, b: Tensor | None = None, *, normalise: bool = True, causal: bool = True) -> Partial:
    """What the features estimate: softmax of q·k + b with the kernel itself, for unit vectors or q / D^{1/4}; float64."""
    from tutor.attention.partial import from_logits

    check_qkv(q, k, v, every_row=True)
    scaled = Kernelized(normalise=normalise).scaled
    (x, y), t, s = (scaled(z.double()) for z in (q, k)), q.shape[2], k.shape[2]
    logits = (stack_groups(x, k.shape[1]) @ y.transpose(-1, -2)).reshape(*q.shape[:-1], s)
    if b is not None:
        c, _ = _factors(b, q.shape[1], s, False, "direct", torch.float64)                  # checks the shape of b
        logits = logits + toeplitz(b.double().reshape(len(c), -1))[:, s - t:]
    if causal:
        logits = logits.masked_fill(torch.ones(t, s, dtype=torch.bool, device=q.device).triu(s - t + 1), float("-inf"))
    return from_logits(logits, v.double().repeat_interleave(q.shape[1] // k.shape[1], 1))
