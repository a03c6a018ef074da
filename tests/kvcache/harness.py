"""One attention layer driven by hand: append, view, attend in float64, observe. Tests need no model for this."""

from __future__ import annotations

import torch
from torch import Tensor

from tutor.attention.partial import from_logits
from tutor.kvcache import Policy, RaggedCache
from tutor.kvcache.rows import part_logits
from tutor.model import rope
from tutor.model.cache import Observation

SPEEDS = {d: rope.inv_freq(d, 10_000.0) for d in (4, 8, 16)}


def turn(x: Tensor, pos: Tensor) -> Tensor:
    return rope.rotate(x, pos, SPEEDS[x.shape[-1]])


def draw(n: int, *, batch: int = 1, kv_heads: int = 2, group: int = 3, width: int = 8, seed: int = 0):
    """Pre-RoPE q `(B, Hq, N, D)`, k and v `(B, Hkv, N, D)` in float64."""
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, h, n, width, generator=g, dtype=torch.float64)
               for h in (kv_heads * group, kv_heads, kv_heads))
    return 2 * q, k, v


def step(cache: RaggedCache, q: Tensor, k: Tensor, v: Tensor, start: int, *, layer: int = 0) -> Tensor:
    """Rows `start …` go through one layer; returns the attention's output `(B, Hq, T, D)`."""
    new = q.shape[2]
    pos = torch.arange(start, start + new, dtype=torch.int32)
    turned = turn(q, pos)
    cache.append(layer, k, turn(k, pos), v, pos)
    (part,) = cache.view(layer, turned)
    partial = from_logits(part_logits(turned, part, pos), part.v[:, :, None])
    cache.observe(layer, Observation(layer, len(cache._layers), turned, q, pos, [part], partial.lse.flatten(1, 2),
                                     torch.zeros(q.shape[0], new, 4), "prefill" if new > 1 else "decode"))
    return partial.o.flatten(1, 2)


def run(policy: Policy, budget: int | None, qkv, *, prefill: int, layer: int = 0, n_layers: int = 1, **settings):
    """Prefill, then decode row by row: the cache, and outputs `(B, Hq, N, D)`."""
    q, k, v = qkv
    cache = RaggedCache(policy, budget, n_layers, rotate=turn, **settings)
    outputs, starts = [], [0, *range(prefill, q.shape[2])] if prefill else list(range(q.shape[2]))
    for a, b in zip(starts, [*starts[1:], q.shape[2]]):
        outputs.append(step(cache, q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], a, layer=layer))
    return cache, torch.cat(outputs, 2)


def held(cache: RaggedCache, layer: int = 0) -> list[list[list[int]]]:
    return [[head.tolist() for head in entry] for entry in cache.positions(layer)]
