"""Does vertical-slash attention save what its lines promise? Beside dense SDPA and FlexAttention with the same mask; see _gpu.py.

Queries and keys are the recorded layers of the real model. The attention alone is timed: finding the lines is done in torch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from _gpu import Benchmark, flex, sdpa

from tutor.attention.dense import attend
from tutor.attention.methods.vertical_slash import Plan, VerticalSlash
from tutor.data import capture
from tutor.kernels.vertical_slash import roofline, vertical_slash_attention


@lru_cache(maxsize=4)
def recorded(layer: int, tokens: int) -> tuple[torch.Tensor, ...]:
    text = capture("reference_4096").first(tokens)
    return text.q(layer), text.k(layer), text.v(layer)


@lru_cache
def plan(layer: int, tokens: int, k_v: int, k_s: int, tile: int) -> Plan:
    return VerticalSlash(k_v, k_s, tile).plan(*recorded(layer, tokens)[:2])


@lru_cache
def pairs_on_lines(layer: int, tokens: int, k_v: int, k_s: int) -> int:
    """Pairs on kept columns or diagonals of a whole text, over all heads: on columns + on diagonals - on both."""
    columns, slashes = VerticalSlash(k_v, k_s).choose(*recorded(layer, tokens)[:2])
    length = torch.arange(tokens, 0, -1)                                  # column j and diagonal o have keys - j, keys - o pairs
    alone = int((columns * length).sum() + (slashes * length).sum())
    kept = columns.flatten(0, -2).any(0).nonzero()[:, 0].tolist()
    return alone - sum(int((columns[..., j:j + 1] & slashes[..., : tokens - j]).sum()) for j in kept)


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    todo = plan(*shape)
    return (*(x.to(device, dtype) for x in recorded(*shape[:2])),
            Plan(todo.tile, todo.starts.to(device), todo.columns.to(device)))


def mask_of(q, todo) -> torch.Tensor:
    return Plan(todo.tile, todo.starts.cpu(), todo.columns.cpu()).mask(q.shape[2], q.shape[2]).to(q.device)


def flex_lines(q, k, v, todo):
    mask = mask_of(q, todo)
    return flex(q, k, v, lambda b, h, i, j: mask[b, h, i, j])


def floor(shape: tuple, cached: bool = True, **on):
    q, k, _ = recorded(*shape[:2])
    return roofline(plan(*shape), k.shape[1], *[q.shape[2]] * 2, q.shape[3], cached=cached, **on)


def shares(shape: tuple, dtype: str, card: str) -> dict:
    """Shares of dense attention that the lines promise and that the tiles run; bytes if no cache helped the gathered rows."""
    todo, t = plan(*shape), shape[1]
    heads, blocks = todo.starts.shape[0] * todo.starts.shape[1], -(-t // todo.tile)
    return {"lines_share": pairs_on_lines(*shape[:4]) / (heads * t * (t + 1) / 2),
            "tiles_share": int(todo.tiles().sum()) / (heads * blocks * (blocks + 1) / 2),
            "gathered_bytes": floor(shape, cached=False, dtype=dtype, on=card).bytes}


BENCHMARK = Benchmark(
    name="vertical-slash",
    question="vertical-slash attention against dense SDPA and FlexAttention with the same mask",
    columns=("layer", "tokens", "k_v", "k_s", "tile"),
    shapes=[(layer, 4096, k_v, k_s, tile) for layer in (2, 20, 25) for k_v, k_s in ((32, 64), (128, 256)) for tile in (16, 64)],
    small=[(20, 63, 7, 9, 16), (2, 90, 7, 9, 32)],
    inputs=inputs,
    ours={"vertical_slash": lambda q, k, v, todo: lambda: vertical_slash_attention(q, k, v, todo=todo)},
    rule=lambda dtype, q, k, v, todo: attend(q, k, v, mask=mask_of(q, todo), dtype=dtype),
    floor=floor,
    beside={"sdpa": sdpa, "flex": flex_lines},
    also=shares,
)

if __name__ == "__main__":
    BENCHMARK.main()
