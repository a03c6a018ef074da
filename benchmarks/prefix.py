"""What does a compressed prefix cost on a GPU, and how soon is it cheaper than its rows? Causal forward, batch 1; see _gpu.py.

Beside the one pass: our flash kernel merged with a summary that torch reads, the own rows alone, our flash kernel over prefix
and own rows, and torch's own attention over the same, whose mask is aligned bottom-right as ours and knows no groups.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from _gpu import Benchmark, normal

from tutor.attention.methods.ntk import Summary, ntk_attend, read, summarise
from tutor.attention.partial import merge
from tutor.kernels import flash
from tutor.kernels.flash import flash_attention
from tutor.kernels.prefix import prefix_attention, roofline


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    """q; keys and values of the prefix and, behind it, of the own tokens; M; the summary of the prefix in float32."""
    b, hq, hkv, t, s, d, m = shape
    q, k, v = normal(dtype, device, (b, hq, t, d), *[(b, hkv, m + s, d)] * 2)
    return q, k, v, m, summarise(k[:, :, :m].float(), v[:, :, :m].float())


def own(q, k, v, m) -> tuple:
    return q, k[:, :, m:], v[:, :, m:]


def ours(q, k, v, m, summary):
    return lambda: prefix_attention(*own(q, k, v, m), summary)


def rule(dtype, q, k, v, m, summary):
    return ntk_attend(*(x.to(dtype) for x in own(q, k, v, m)), Summary(*(x.to(dtype) for x in vars(summary).values())))


def two_passes(q, k, v, m, summary):
    half = Summary((summary.z / m).to(q), (summary.k / m).to(q), summary.shift + math.log(m))      # long sums pass float16
    return lambda: merge(flash_attention(*own(q, k, v, m)), read(q, half))


def sdpa_rows(q, k, v, m, summary):
    from torch.nn.attention.bias import causal_lower_right

    wide, bias = [x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v)], causal_lower_right(q.shape[2], k.shape[2])
    return lambda: F.scaled_dot_product_attention(q, *wide, attn_mask=bias)


def floor_of_rows(shape: tuple, dtype: str, card: str) -> dict:
    b, hq, hkv, t, s, d, m = shape
    return {"rows_floor_ms": 1e3 * flash.roofline(b, hq, hkv, t, s + m, d, dtype=dtype, on=card).seconds}


BENCHMARK = Benchmark(
    name="prefix",
    question="attention with a compressed prefix in one pass, and with its rows",
    columns=("B", "Hq", "Hkv", "T", "S", "D", "M"),                       # M: rows of the prefix
    shapes=[(1, 32, 8, 4096, 4096, 128, 512), (1, 32, 8, 4096, 4096, 128, 4096), (1, 32, 8, 4096, 4096, 128, 65536),
            (1, 32, 8, 4096, 4096, 64, 4096), (1, 9, 3, 1024, 1024, 64, 4096), (1, 32, 8, 1, 1024, 128, 65536)],
    small=[(1, 4, 2, 63, 63, 64, 40), (2, 2, 1, 17, 50, 128, 9)],
    inputs=inputs,
    ours={"prefix": ours},
    rule=rule,
    floor=lambda shape, **on: roofline(*shape[:6], **on),
    beside={"two_passes": two_passes,
            "no_prefix": lambda q, k, v, m, _: lambda: flash_attention(*own(q, k, v, m)),
            "rows": lambda q, k, v, *_: lambda: flash_attention(q, k, v), "sdpa_rows": sdpa_rows},
    also=floor_of_rows,
)

if __name__ == "__main__":
    BENCHMARK.main()
