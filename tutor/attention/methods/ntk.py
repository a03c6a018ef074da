"""NTK-Attention: a prefix of any length as one matrix and one vector.

Idea        A long prefix that every query reads costs a product with each of its keys. Replace the exponential of a dot
            product by a product of features, and the prefix sums up once: whatever its length, a query then meets one
            matrix. A trained prefix need never have been tokens at all: matrix and vector can be learned as they are.
Rule        exp(tau q·k) ~ phi(q)·phi(k);  Z = sum_j phi(k_j) v_j^T,  z = sum_j phi(k_j) over the prefix
            o = (sum_own exp(tau q·k) v + phi(q) Z) / (sum_own exp(tau q·k) + phi(q)·z)
            As a merge, which cannot overflow: prefix partial (phi(q) Z / phi(q)·z, log phi(q)·z), own tokens exact.
Features    elu(x) + 1 of each coordinate of x = q / D^{1/4} (published code), or positive random features. The theory takes
            polynomials instead (for those see tensor).
Cost        R Dv + R numbers a KV head, whatever the prefix; own tokens as in dense attention.
Paper       Liang et al. 2024 (Toward Infinite-Long Prefix in Transformer), section 3 (section number unverified).
Differs     The published demo divides by exp of the largest logit and overflows with it; the merge does not. elu + 1 is
            no estimate of the exponential: with it, Z and z made from a real prefix are poor, and are meant to be trained;
            `fit` does it by least squares against the prefix itself, tutor/attention/prefix_tuning.py on a task. Rows of
            the prefix read it exactly.
See also    kernelized (random features), lightning (a state that fades), tutor/attention/partial.py (the merge),
            tutor/kernels/prefix.py (own tokens and prefix in one pass on a GPU)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tutor.attention import dense
from tutor.attention.dense import causal_pairs, check_qkv, positions, stack_groups
from tutor.attention.methods.kernelized import directions, log_prf
from tutor.attention.partial import Partial, merge
from tutor.attention.selection import need
from tutor.catalog import method
from tutor.cost import Cost

LogFeatures = Callable[[Tensor], Tensor]      # log phi: (..., D) -> (..., R); features are positive


def log_elu(x: Tensor) -> Tensor:
    """log(elu(x) + 1): log(1 + x) above zero, x itself below."""
    return torch.where(x > 0, torch.log1p(x.clamp(min=0)), x)


@dataclass(frozen=True)
class Summary:
    """What is left of a prefix; all of it is multiplied by `e^shift`. Summaries of consecutive prefixes add.

    Attributes:
        z: `(B, H, R, Dv)`; k: `(B, H, R)`, never negative; shift: `(B, H)`. H is Hkv or Hq.
    """

    z: Tensor
    k: Tensor
    shift: Tensor

    def __post_init__(self):
        if self.z.shape[:-1] != self.k.shape or self.k.shape[:-1] != self.shift.shape:
            raise ValueError(f"z (B, H, R, Dv), k (B, H, R) and shift (B, H) disagree: {tuple(self.z.shape)}, "
                             f"{tuple(self.k.shape)}, {tuple(self.shift.shape)}")
        if bool((self.k < 0).any()):
            raise ValueError("k must not be negative, or phi(q)·k is no weight; train any vector and pass k.abs()")

    def __add__(self, other: Summary) -> Summary:
        shift = torch.maximum(self.shift, other.shift)
        mine, theirs = (torch.exp(x.shift - shift)[..., None] for x in (self, other))
        return Summary(mine[..., None] * self.z + theirs[..., None] * other.z, mine * self.k + theirs * other.k, shift)

    @property
    def floats(self) -> int:
        """Numbers held per head (the shift can be multiplied in)."""
        return self.k.shape[-1] * (self.z.shape[-1] + 1)


def summarise(k: Tensor, v: Tensor, phi: LogFeatures = log_elu, *, scale: float | None = None) -> Summary:
    """Sum up a prefix `k (B, Hkv, M, D)`, `v (B, Hkv, M, Dv)`; no rows give zeros."""
    logs = phi(k * _root(k, scale))                                                        # (B, Hkv, M, R)
    shift = logs.amax((-2, -1)) if k.shape[2] else logs.new_zeros(k.shape[:2])             # (B, Hkv)
    weights = torch.exp(logs - shift[..., None, None])
    return Summary(weights.transpose(-1, -2) @ v, weights.sum(-2), shift)


def read(q: Tensor, summary: Summary, phi: LogFeatures = log_elu, *, scale: float | None = None) -> Partial:
    """The prefix as queries `q (B, Hq, T, D)` see it: a partial, to be merged with the own tokens."""
    heads = summary.k.shape[1]
    if q.shape[1] % heads:
        raise ValueError(f"a summary of {heads} heads does not fit {q.shape[1]} query heads; summarise per KV or query head")
    logs = stack_groups(phi(q * _root(q, scale)), heads)                                   # (B, H, G*T, R)
    if logs.shape[-1] != summary.k.shape[-1]:
        raise ValueError(f"phi gives {logs.shape[-1]} features, the summary has {summary.k.shape[-1]}: use one phi for both")
    peak = logs.amax(-1, keepdim=True)                                                     # (B, H, G*T, 1)
    features = torch.exp(logs - peak)
    weight = features @ summary.k[..., None]                                               # (B, H, G*T, 1), >= 0
    o = features @ summary.z / torch.where(weight > 0, weight, 1.0)
    o = torch.where(weight > 0, o, 0.0)
    lse = torch.log(weight) + peak + summary.shift[..., None, None]                        # log 0 = -inf: no prefix
    return Partial(o.reshape(*q.shape[:-1], -1), lse.reshape(q.shape[:-1]))


def ntk_attend(q: Tensor, k: Tensor, v: Tensor, summary: Summary, phi: LogFeatures = log_elu, *, causal: bool = True,
               scale: float | None = None, pos_q: Tensor | None = None) -> Partial:
    """Own tokens exactly, a prefix by its summary. `q, k, v` are of the own tokens; every row sees the whole prefix."""
    own = dense.attend(q, k, v, causal=causal, scale=scale, dtype=q.dtype, pos_q=pos_q)
    return merge(own, read(q, summary, phi, scale=scale))


def fit(q: Tensor, k: Tensor, v: Tensor, phi: LogFeatures = log_elu, *, own: Partial | None = None,
        scale: float | None = None, ridge: float = 1e-2, steps: int = 500) -> Summary:
    """Z and z for queries like `q`, by least squares on numerators and denominators of the real prefix.

    Each row is weighed by its whole attention, so that the errors are those of the merged output. The denominator must not
    be negative: z is found by multiplicative steps, which keep it positive; Z in closed form.

    Args:
        q: `(B, Hq, T, D)`, queries to learn from, all after the prefix `k (B, Hkv, M, D)`, `v (B, Hkv, M, Dv)`.
        own: exact attention of those queries to their own tokens; none unless given.
        ridge: how much of the mean square of the features is added to the normal equations.
        steps: multiplicative steps for z.
    """
    need(ridge, 0, "ridge")
    need(steps, 1, "steps")
    heads = k.shape[1]
    prefix = dense.attend(q, k, v, causal=False, scale=scale)                              # float64
    whole = prefix if own is None else merge(prefix, Partial(own.o.double(), own.lse.double()))
    logs = stack_groups(phi(q.double() * _root(q, scale)), heads)                          # (B, Hkv, G*T, R)
    lse = stack_groups(whole.lse[..., None], heads)
    share = torch.exp(stack_groups(prefix.lse[..., None], heads) - lse)                    # (B, Hkv, G*T, 1)
    shift = -(logs - lse).amax((-2, -1))                                                   # features become <= 1
    a = torch.exp(logs - lse + shift[..., None, None])                                     # (B, Hkv, G*T, R)
    gram = a.transpose(-1, -2) @ a
    gram = gram + ridge * torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).expand(gram.shape[:-1]))
    z = torch.linalg.solve(gram, a.transpose(-1, -2) @ (share * stack_groups(prefix.o, heads)))
    want = a.transpose(-1, -2) @ share                                                     # (B, Hkv, R, 1), > 0
    weight = want.sum(-2, keepdim=True) / gram.sum((-2, -1))[..., None, None] * torch.ones_like(want)
    for _ in range(steps):
        weight = weight * want / (gram @ weight)
    return Summary(z.to(q.dtype), weight[..., 0].to(q.dtype), shift.to(q.dtype))


@method("ntk", "attention", "NTK-Attention", paper="liang2024infinite", kernel="tutor.kernels.prefix.prefix_attention",
        flags=("attends", "linear", "lossy"), grid=({"prefix": 64}, {"prefix": 512}, {"prefix": 2048}))
@dataclass(frozen=True)
class NTK:
    """The first `prefix` keys summed up, the rest exact.

    Attributes:
        prefix: M, rows that are replaced by their summary, for all queries after them.
        features: 0 for elu + 1 (as many as the head is wide); else so many positive random features.
        seed: of the random features.
    """

    prefix: int = 512
    features: int = 0
    seed: int = 0

    def __post_init__(self):
        need(self.prefix, 0, "prefix")
        need(self.features, 0, "features", "0 means elu + 1")

    def phi(self, d: int) -> LogFeatures:
        """log phi for heads of width d."""
        if not self.features:
            return log_elu
        w = directions(self.features, d, generator=torch.Generator().manual_seed(self.seed))
        return lambda x: log_prf(x, w)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None,
               pos_q: Tensor | None = None) -> Partial:
        """`q (B, Hq, T, D)`, `k (B, Hkv, S, D)`, `v (B, Hkv, S, Dv)`; rows inside the prefix are computed exactly."""
        check_qkv(q, k, v)
        pos, m = positions(q, k, pos_q), min(self.prefix, k.shape[2])
        dtype = q.dtype
        q, k, v = (x.to(torch.float64 if dtype == torch.float64 else torch.float32) for x in (q, k, v))
        phi = self.phi(q.shape[-1])
        own = dense.attend(q, k[:, :, m:], v[:, :, m:], causal=causal, scale=scale, dtype=q.dtype, pos_q=pos - m)
        far = read(q, summarise(k[:, :, :m], v[:, :, :m], phi, scale=scale), phi, scale=scale)
        early = pos < m
        if causal and bool(early.any()):                                    # rows of the prefix see only a part of it
            near = dense.attend(q[:, :, early], k[:, :, :m], v[:, :, :m], scale=scale, dtype=q.dtype, pos_q=pos[early])
            o, lse = far.o.clone(), far.lse.clone()
            o[:, :, early], lse[:, :, early] = near.o, near.lse
            far = Partial(o, lse)
        part = merge(own, far)
        return Partial(part.o.to(dtype), part.lse)

    def cost(self, q: Tensor, k: Tensor, v: Tensor) -> Cost:
        """Rows read, products with random directions, and the bytes of the summary in float32."""
        check_qkv(q, k, v)
        (b, hq, t, d), (hkv, s) = q.shape, k.shape[1:3]
        pos, m, r = positions(q, k), min(self.prefix, s), self.features or d
        pairs = causal_pairs(pos, s)
        unread = m * int((pos >= m).sum())                                  # late rows read no row of the prefix
        return Cost(loaded=b * hq * (pairs - unread), pairs=b * hq * pairs, scored=b * self.features * (hq * t + hkv * m),
                    state_bytes=4 * b * hkv * r * (v.shape[3] + 1))


def _root(x: Tensor, scale: float | None) -> float:
    """Square root of the scale: both sides of a product of features carry it."""
    scale = 1 / math.sqrt(x.shape[-1]) if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale must be > 0, it is split between queries and keys; got {scale}")
    return math.sqrt(scale)
