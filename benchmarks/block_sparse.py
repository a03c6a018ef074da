"""Is block-sparse attention faster by the share of tiles that it lists? Beside dense SDPA and FlexAttention; see _gpu.py.

Random tiles besides the diagonal; of the causal ones the share that is told. The attention alone is timed: lists are made
beforehand, and so is FlexAttention's mask of the same blocks.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from _gpu import Benchmark, flex, qkv, sdpa

from tutor.attention.dense import attend
from tutor.attention.methods.block_sparse_flash import Lists, block_lists
from tutor.attention.selection import Selection
from tutor.kernels.block_sparse import block_sparse_attention, roofline


@lru_cache
def choose(hq: int, hkv: int, t: int, d: int, block: int, share: float) -> Selection:
    """The diagonal and random causal tiles, so that about `share` of all causal tiles are listed."""
    n = -(-t // block)
    i, j = torch.arange(n)[:, None], torch.arange(n)
    below = n * (n - 1) / 2
    rest = (share * (below + n) - n) / max(below, 1)
    drawn = torch.rand(1, hq, n, n, generator=torch.Generator().manual_seed(0)) < rest
    like = [torch.empty(1, h, t, 1) for h in (hq, hkv)]                   # only shapes matter to a selection
    return Selection.from_blocks((drawn | (i == j)) & (j <= i), *like, bq=block, bk=block)


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    hq, hkv, t, d, _, _ = shape
    sel = choose(*shape)
    return *qkv(1, hq, hkv, t, t, d, dtype, device), sel, Lists(*(x.to(device) for x in block_lists(sel)))


def flex_blocks(q, k, v, sel, _):
    listed, side = sel.blocks.to(q.device), sel.bq
    return flex(q, k, v, lambda b, h, i, j: listed[b, h, i // side, j // side], side)


def tiles_share(shape: tuple, *_) -> dict:
    n = -(-shape[2] // shape[4])
    return {"tiles_share": int(choose(*shape).blocks.sum()) / (shape[0] * n * (n + 1) / 2)}


BENCHMARK = Benchmark(
    name="block-sparse",
    question="block-sparse attention against dense SDPA and FlexAttention with the same blocks",
    columns=("Hq", "Hkv", "T", "D", "block", "share"),
    shapes=[(32, 8, t, d, block, share) for t, d, block in ((8192, 64, 64), (8192, 128, 64), (16384, 128, 64), (16384, 128, 128))
            for share in (0.1, 0.25, 0.5, 1.0)],
    small=[(4, 2, 63, 64, 16, 0.6), (2, 1, 90, 128, 32, 0.6)],
    inputs=inputs,
    ours={"block_sparse": lambda q, k, v, sel, lists: lambda: block_sparse_attention(q, k, v, sel, lists=lists)},
    rule=lambda dtype, q, k, v, sel, _: attend(q, k, v, mask=sel.mask().to(q.device), dtype=dtype),
    floor=lambda shape, **on: roofline(choose(*shape), shape[1], shape[3], **on),
    beside={"sdpa": sdpa, "flex": flex_blocks},
    also=tiles_share,
)

if __name__ == "__main__":
    BENCHMARK.main()
