"""Metrics: what forgetting costs, in attention mass, in output error and in bytes, beside the best that could be done.

The identity behind all of it: with `a` the mass that the kept rows hold, the full output is
`o = a o_keep + (1 - a) o_evicted`, so `o_keep - o = (1 - a) (o_keep - o_evicted)`. Forgetting is harmless exactly when
little mass is lost, or when what is lost resembles what stays.

Functions take the probabilities `a (B, Hq, T, S)` of full attention, values `v (B, Hkv, S, D)` and a mask
`keep (B, Hkv, S)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutor.kvcache.rows import part_logits
from tutor.kvcache.select import Keep, keep_top
from tutor.model.cache import Part
from tutor.model.llama import Config


def probabilities(q: Tensor, k: Tensor, pos_q: Tensor, pos_k: Tensor) -> Tensor:
    """Full causal attention in float64, `(B, Hq, T, S)`, from rotated q `(B, Hq, T, D)` and k `(B, Hkv, S, D)`."""
    part = Part(k.double(), k, pos_k)
    return part_logits(q.double(), part, pos_q).softmax(-1).flatten(1, 2)


def _grouped(a: Tensor, keep: Tensor) -> Tensor:
    """`a` as `(B, Hkv, G, T, S)`, so that a KV head's mask serves its group."""
    if a.shape[1] % keep.shape[1] or a.shape[-1] != keep.shape[-1]:
        raise ValueError(f"a {tuple(a.shape)} and keep {tuple(keep.shape)} disagree: "
                         "Hq must be a multiple of Hkv, and S the same")
    return a.unflatten(1, (keep.shape[1], -1))


def retained_mass(a: Tensor, keep: Tensor) -> Tensor:
    """Share of each query's attention that falls on kept rows: `(B, Hq, T)`."""
    return (_grouped(a, keep) * keep[:, :, None, None]).sum(-1).flatten(1, 2)


def kept_output(a: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Attention over the kept rows alone, renormalised: `(B, Hq, T, D)`; zeros where nothing was kept."""
    kept = _grouped(a, keep) * keep[:, :, None, None]
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total, 0.0).matmul(v.to(a.dtype)[:, :, None]).flatten(1, 2)


def full_output(a: Tensor, v: Tensor) -> Tensor:
    """Attention over all rows: `(B, Hq, T, D)`."""
    return kept_output(a, v, torch.ones(*v.shape[:3], dtype=torch.bool, device=v.device))


def output_error(a: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Relative error of the attention's output, `|o_keep - o| / |o|`: `(B, Hq, T)`."""
    full = full_output(a, v)
    return (kept_output(a, v, keep) - full).norm(dim=-1) / full.norm(dim=-1)


def eviction_identity(a: Tensor, v: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides of `o_keep - o = (1 - mass) (o_keep - o_evicted)`, each `(B, Hq, T, D)`: equal, always."""
    kept, lost = kept_output(a, v, keep), kept_output(a, v, ~keep)
    return kept - full_output(a, v), (1 - retained_mass(a, keep))[..., None] * (kept - lost)


def oracle_keep(a: Tensor, counts: Tensor, pos: Tensor) -> Keep:
    """The best rows for queries that are still to come: those that will receive the most attention.

    No policy can hold more mass over the queries of `a` with the same counts: this is the ceiling of every plot.

    Args:
        a: attention of the FUTURE queries over the rows in question, `(B, Hq, T, S)`.
        counts: rows per head, `(B, Hkv)`; pos: positions `(1, 1, S)` or `(B, Hkv, S)`.
    """
    future = a.unflatten(1, (counts.shape[1], -1)).mean(2).sum(2)                  # (B, Hkv, S)
    return keep_top(future, counts, pos)


def regret(a: Tensor, keep: Tensor, pos: Tensor) -> Tensor:
    """Mean mass that the oracle holds beyond `keep` with as many rows per head: `(B,)`, never negative."""
    best = oracle_keep(a, keep.sum(-1), pos).mask
    return (retained_mass(a, best) - retained_mass(a, keep)).mean((1, 2))


def row_bytes(config: Config, element_bytes: int) -> int:
    """Bytes of one token in all layers, `2 · L · Hkv · D · bytes`: what a full cache grows by."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * element_bytes


def claimed_nbytes(config: Config, rows: int, element_bytes: int, *, shared: bool) -> int:
    """What a cache of `rows` rows a head should take: rows and int32 positions, and nothing else.

    Args:
        shared: all heads of a layer hold the same rows, so that their positions are stored once.
    """
    positions = config.n_layers * (1 if shared else config.n_kv_heads)
    return rows * (row_bytes(config, element_bytes) + 4 * positions)
