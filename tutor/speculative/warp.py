"""Warp: from logits to the distribution that decoding promises to sample from.

Temperature, then top-k, then top-p. The warped distribution *is* the target law p (and, for a draft, q): every lossless
claim of this family is about it. Temperature 0 is a one-hot at the largest logit, ties to the lower id, so that greedy
decoding needs no code of its own. Float64 throughout: the verifiers compare ratios of small numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Warp:
    """`Warp(temperature, top_k, top_p)(logits)` gives probabilities.

    Attributes:
        temperature: divides the logits; 0 keeps the largest only.
        top_k: keep the k largest (0: all); ties at the boundary go to the lower ids.
        top_p: keep the smallest set of most probable tokens whose mass reaches top_p, the crossing token included.

    >>> Warp(temperature=0)(torch.tensor([1.0, 3.0, 3.0])).tolist()
    [0.0, 1.0, 0.0]
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be >= 0 (0 is greedy); got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 keeps all); got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 keeps all); got {self.top_p}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def __call__(self, logits: Tensor) -> Tensor:
        """logits `(..., V)` of any float dtype -> float64 probabilities `(..., V)`."""
        if bool(logits.isnan().any()):
            raise ValueError("logits hold NaN; the model's forward pass went wrong before sampling")
        if self.greedy:
            one_hot = torch.zeros(logits.shape, dtype=torch.float64)
            return one_hot.scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)     # argmax: first of equal maxima
        logits = logits.double() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(~_largest(logits, self.top_k), float("-inf"))
        p = torch.softmax(logits, -1)
        if self.top_p < 1:
            value, order = torch.sort(p, dim=-1, descending=True, stable=True)
            inside = value.cumsum(-1) - value < self.top_p                         # mass of the more probable ones
            p = p * torch.zeros_like(inside).scatter_(-1, order, inside)
            p = p / p.sum(-1, keepdim=True)
        return p


def _largest(x: Tensor, k: int) -> Tensor:
    """bool like x: its k largest entries, ties at the boundary to the lower index."""
    threshold = x.topk(k, -1).values[..., -1:]
    above, equal = x > threshold, x == threshold
    room = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


PLAIN = Warp()
GREEDY = Warp(temperature=0.0)


class WarpedRows:
    """Distributions of the rows of one forward pass, warped when first asked for.

    A verifier reads only the rows it walks through; warping 49 152 entries of every other row would cost more than it
    saves. Anything with `rows[i] -> (V,)`, a plain tensor included, serves a verifier as well.
    """

    def __init__(self, logits: Tensor, warp: Warp):
        self.logits, self.warp = logits, warp              # (M, V)
        self._rows: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, row: int) -> Tensor:
        if row not in self._rows:
            self._rows[row] = self.warp(self.logits[row])
        return self._rows[row]
