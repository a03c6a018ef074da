"""What speculation costs and what it should gain: a small model of one machine, and its calibration.

    bytes(M, L) = W + 2 · layers · Hkv · D · e · (L + M)         weights and cache are read once for all M rows
    flops(M, L) = 2 · P · M + 4 · layers · Hq · D · M · (L + M/2)
    t(M)        = max(bytes / bandwidth, flops / compute) + launch
    speed-up    = tau(M) · t(1) / (t_draft + t(M) + t_host)

Decoding one row reads every weight to do two operations with it, so a machine has room for many rows before it notices:
up to M* = compute / bandwidth · e/2 rows, the point where the two terms are equal. Above it each row costs its share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Hardware:
    """`bandwidth` in bytes/s, `compute` in operations/s, `launch` seconds per forward pass."""

    name: str
    bandwidth: float
    compute: float
    launch: float = 0.0

    def ridge_rows(self, element_bytes: int = 2) -> float:
        """Rows at which a forward pass turns from memory-bound to compute-bound."""
        return self.compute / self.bandwidth * element_bytes / 2


# Ratios of the data sheets (dense bf16, no sparsity); launch overhead is not part of them.
PRESETS = {h.name: h for h in (Hardware("H100 SXM", 3.35e12, 989e12), Hardware("A100 80GB", 2.04e12, 312e12),
                               Hardware("RTX 3090", 936e9, 71e12))}


def verify_time(hardware: Hardware, config: Any, rows: int, length: int, *, parameters: int,
                element_bytes: int = 2) -> float:
    """Modelled seconds of one forward pass of `rows` tree rows over `length` cached tokens.

    Args:
        config: `model.config` (n_layers, n_heads, n_kv_heads, head_dim); parameters: of the whole model.
    """
    if rows < 1 or length < 0:
        raise ValueError(f"rows must be >= 1 and length >= 0; got rows={rows}, length={length}")
    c = config
    moved = parameters * element_bytes + 2 * c.n_layers * c.n_kv_heads * c.head_dim * element_bytes * (length + rows)
    flops = 2 * parameters * rows + 4 * c.n_layers * c.n_heads * c.head_dim * rows * (length + rows / 2)
    return max(moved / hardware.bandwidth, flops / hardware.compute) + hardware.launch


def expected_tokens(alpha: float, gamma: int) -> float:
    """Mean tokens of a step when each of `gamma` drafted tokens is accepted with chance `alpha`, independently.

    (1 - alpha^(gamma+1)) / (1 - alpha).  [leviathan2023speculative, equation 1]

    >>> expected_tokens(0.5, 1), expected_tokens(1.0, 4), expected_tokens(0.0, 4)
    (1.5, 5.0, 1.0)
    """
    if not 0 <= alpha <= 1 or gamma < 0:
        raise ValueError(f"alpha must be in [0, 1] and gamma >= 0; got alpha={alpha}, gamma={gamma}")
    return float(gamma + 1) if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def speedup(tau: float, *, draft: float, verify: float, single: float, host: float = 0.0) -> float:
    """tau · t(1) / (t_draft + t_verify + t_host); all times of one step, in one unit."""
    return tau * single / (draft + verify + host)


def chain_speedup(alpha: float, gamma: int, c: float, verify_ratio: float = 1.0) -> float:
    """Speed-up of a chain: `c` = draft step / target step, `verify_ratio` = t(gamma + 1) / t(1)."""
    return speedup(expected_tokens(alpha, gamma), draft=gamma * c, verify=verify_ratio, single=1.0)


def best_gamma(alpha: float, c: float, limit: int = 64) -> tuple[int, float]:
    """The chain length with the largest `chain_speedup` on a machine where more rows are free, and that speed-up.

    >>> [best_gamma(0.8, c)[0] for c in (0.02, 0.05, 0.1, 0.2)]
    [11, 8, 6, 4]
    """
    gains = [chain_speedup(alpha, g, c) for g in range(limit + 1)]
    best = max(range(limit + 1), key=lambda g: (gains[g], -g))
    return best, gains[best]


def mbsu(tau: float, c: float, gamma: int) -> float:
    """Memory-bound speed-up: tau / (c · gamma + 1), with `c` the ratio of draft to target parameters."""
    return tau / (c * gamma + 1)


@dataclass(frozen=True)
class VerifyCost:
    """Measured seconds of a forward pass against its rows, on one machine at one context length."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    length: int

    def __call__(self, rows: float) -> float:
        """Linear interpolation; beyond the largest measurement the last slope goes on."""
        if rows < self.rows[0]:
            raise ValueError(f"rows must be >= {self.rows[0]}, the smallest that was measured; got {rows}")
        for (a, ta), (b, tb) in zip(zip(self.rows, self.seconds), zip(self.rows[1:], self.seconds[1:])):
            if rows <= b or b == self.rows[-1]:
                return ta + (tb - ta) * (rows - a) / (b - a)
        return self.seconds[0]                              # a single measurement

    def ratio(self, rows: float) -> float:
        """Cost in units of a single-row pass."""
        return self(rows) / self.seconds[0]


@torch.inference_mode()
def calibrate_verify_cost(model: Any, rows: Sequence[int] = (1, 2, 4, 8, 16, 32), length: int = 256, *,
                          repeats: int = 20, layers: Sequence[int] | None = None) -> VerifyCost:
    """Median time of `repeats` forward passes per row count over `length` cached tokens, interleaved, after a warm-up.

    Nothing is fitted: real machines have steps (tile sizes, thread counts) that a roofline lacks.
    """
    rows = tuple(sorted(set(rows)))
    if not rows or rows[0] < 1 or length < 1 or repeats < 1:
        raise ValueError(f"rows, length and repeats must be >= 1; got rows={rows}, length={length}, repeats={repeats}")
    cache = model.new_cache()
    ids = torch.arange(max(length, rows[-1])) % model.config.vocab
    model.forward(ids[None, :length], cache=cache, layers=layers, logits="none")
    times: dict[int, list[float]] = {n: [] for n in rows}
    for repeat in range(repeats + 1):
        for n in rows if repeat % 2 else rows[::-1]:
            start = time.perf_counter()
            model.forward(ids[None, :n], cache=cache, layers=layers)
            if repeat:                                      # the first round warms up
                times[n].append(time.perf_counter() - start)
            cache.truncate(length)
    middle = [sorted(times[n])[math.ceil(repeats / 2) - 1] for n in rows]
    return VerifyCost(rows, tuple(middle), length)
