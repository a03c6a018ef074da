"""How close is the centroid look-up of Squeezed Attention to its roofline, and to plain torch? See _gpu.py.

There are a twentieth as many centroids as keys in the prefix, whose bytes stand beside: what dense decoding reads, and the
look-up tries to save. A question of several tokens asks together.
"""

from __future__ import annotations

import math

import torch
from _gpu import Benchmark, normal

from tutor.attention.dense import logits
from tutor.kernels.centroids import centroid_select, roofline
from tutor.kernels.roofline import BYTES

FRAC = 0.05


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    """q, centroids and counts of one text; the threshold; whether its tokens ask together."""
    hq, hkv, t, prefix, d = shape
    c = int(FRAC * prefix)
    counts = torch.randint(0, 40, (1, hkv, c), generator=torch.Generator(device).manual_seed(1), device=device)
    return *normal(dtype, device, (1, hq, t, d), (1, hkv, c, d)), counts, 1 / (math.e * prefix), t > 1


def ours(q, centroids, counts, threshold, together):
    return lambda: centroid_select(q, centroids, counts, threshold, together=together)


def plainly(q, centroids, counts, threshold, together, dtype=None):
    """The rule in torch, as a user would write it: what is kept, the log-sum-exp, and the mean share if all ask together."""
    s = logits(q, centroids, causal=False, dtype=dtype or q.dtype)
    n = counts.repeat_interleave(q.shape[1] // counts.shape[1], 1)[:, :, None].to(s.dtype)
    lse = torch.logsumexp(s + n.log(), -1)
    e = torch.where(n > 0, torch.exp(s - lse[..., None]), 0.0)
    e = e.mean(2, keepdim=True) if together else e
    return e > threshold, lse, e if together else None


def floor(shape: tuple, **on):
    hq, hkv, t, prefix, d = shape
    return roofline(1, hq, hkv, t, int(FRAC * prefix), d, together=t > 1, **on)


BENCHMARK = Benchmark(
    name="centroids",
    question="centroid look-up against its roofline and plain torch",
    columns=("Hq", "Hkv", "T", "prefix", "D"),
    shapes=[(32, 8, 1, 32768, 128), (32, 8, 1, 131072, 128), (32, 8, 128, 32768, 128), (32, 8, 128, 131072, 128),
            (9, 3, 1, 8192, 64)],
    small=[(6, 2, 17, 1300, 64), (6, 2, 1, 1300, 64)],
    inputs=inputs,
    ours={"centroids": ours},
    rule=lambda dtype, *given: plainly(*given, dtype=dtype),
    floor=floor,
    beside={"torch": lambda *given: lambda: plainly(*given)},
    also=lambda shape, dtype, _: {"prefix_bytes": 2 * shape[1] * shape[3] * shape[4] * BYTES[dtype]},
)

if __name__ == "__main__":
    BENCHMARK.main()
