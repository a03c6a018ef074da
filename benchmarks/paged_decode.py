"""How close is a paged TokenSelect step to its roofline, and to dense decoding? See _gpu.py.

Pages lie in random order. A step votes and reads the keys elected; its scores alone, and a step whose vote a selection
cache saves, are timed beside it, and torch's dense attention over keys that lie in order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _gpu import Benchmark, normal

from tutor.attention.dense import attend
from tutor.kernels.paged_decode import paged_attend, paged_decode, paged_scores, roofline

PAPER = (2048, 128, 512)                                                  # k_top, n_init, n_local
PAGE = 16


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    """q, pools, table, lengths of B texts of S keys, and the sizes of the election."""
    b, hq, hkv, s, d, *sizes = shape
    pages = b * -(-s // PAGE)
    table = torch.randperm(pages, generator=torch.Generator(device).manual_seed(1), device=device).int().reshape(b, -1)
    q, k, v = normal(dtype, device, (b, hq, 1, d), *[(pages, PAGE, hkv, d)] * 2)
    return q, k, v, table, torch.full((b,), s, dtype=torch.int32, device=device), dict(zip(("k_top", "n_init", "n_local"), sizes))


def in_order(k, v, table, lengths) -> list[torch.Tensor]:
    """Keys and values of each text, `(B, Hkv, S, D)`; all texts have one length."""
    return [x[table.long()].flatten(1, 2)[:, :int(lengths[0])].transpose(1, 2).contiguous() for x in (k, v)]


def rule(dtype, q, k, v, table, lengths, sizes):
    _, keys = paged_decode(q, k, v, table, lengths, **sizes)
    laid = in_order(k, v, table, lengths)
    mask = torch.zeros(len(q), 1, 1, laid[0].shape[2], dtype=torch.bool, device=q.device).scatter_(3, keys[:, None, None], True)
    return attend(q, *laid, mask=mask, dtype=dtype)


def reused(q, k, v, table, lengths, sizes):
    _, keys = paged_decode(q, k, v, table, lengths, **sizes)
    return lambda: paged_attend(q, k, v, table, keys)


def sdpa(q, k, v, table, lengths, _):
    laid = in_order(k, v, table, lengths)
    return lambda: F.scaled_dot_product_attention(q, *laid, enable_gqa=True)


def floor(shape: tuple, **on):
    b, hq, hkv, s, d, *sizes = shape
    return roofline(b, hq, hkv, s, min(sum(sizes), s), d, **on)


def others(shape: tuple, dtype: str, card: str) -> dict:
    """The rooflines of a step with the vote reused, and of dense decoding."""
    b, hq, hkv, s, d, *sizes = shape
    floors = {"reused": roofline(b, hq, hkv, s, min(sum(sizes), s), d, vote=False, dtype=dtype, on=card),
              "dense": roofline(b, hq, hkv, s, s, d, vote=False, dtype=dtype, on=card)}
    return {f"{name}_bytes": floor.bytes for name, floor in floors.items()} | {
        f"{name}_floor_ms": 1e3 * floor.seconds for name, floor in floors.items()}


BENCHMARK = Benchmark(
    name="paged-decode",
    question="paged TokenSelect decoding against its roofline and torch's dense attention",
    columns=("B", "Hq", "Hkv", "S", "D", "k_top", "n_init", "n_local"),
    shapes=[(1, 32, 8, 32768, 128, *PAPER), (1, 32, 8, 131072, 128, *PAPER), (8, 32, 8, 32768, 128, *PAPER),
            (1, 9, 3, 8192, 64, *PAPER)],
    small=[(2, 6, 2, 75, 64, 20, 3, 10)],
    inputs=inputs,
    ours={"step": lambda q, k, v, table, lengths, sizes: lambda: paged_decode(q, k, v, table, lengths, **sizes)[0]},
    rule=rule,
    floor=floor,
    beside={"scores": lambda q, k, v, table, lengths, _: lambda: paged_scores(q, k, table, lengths), "reused": reused,
            "sdpa": sdpa},
    also=others,
)

if __name__ == "__main__":
    BENCHMARK.main()
