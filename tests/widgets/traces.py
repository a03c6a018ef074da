"""Small traces with known numbers, for the figures' tests. NumPy only: no model, no torch."""

from __future__ import annotations

import numpy as np

from tutor.trace import Recorder, Trace

WORDS = ("The cache keeps the keys and values of every token that the model has read . When memory is short , some of "
         "them must go . A window keeps the last ones ; sinks keep the first ones , where attention likes to rest .\n"
         "Which tokens may a model forget ?").split(" ")
TOKENS = [WORDS[0], *(word if word in ".,;?" else f" {word}" for word in WORDS[1:])]


def strip_trace(rows: int = 12, kept: bool = True, seed: int = 0) -> Trace:
    rng, n = np.random.default_rng(seed), len(TOKENS)
    weights, mask = np.zeros((rows, n), np.float32), np.full((rows, n), 2, np.uint8)
    for r in range(rows):
        end = n - rows + r + 1
        logits = rng.normal(0, 1.5, end)
        logits[0] += 4
        weights[r, :end] = np.exp(logits) / np.exp(logits).sum()
        mask[r, :end] = 0
        mask[r, :4], mask[r, max(0, end - 12):end] = 1, 1
    recorder = Recorder("text.weights/1", method="streaming", subject={
        "tokens": TOKENS, "quantity": "attention", "rows": [f"row {r}" for r in range(rows)]})
    recorder.step = rows
    return recorder.finish(weights=weights, **({"kept": mask} if kept else {}))


def grid_trace(T: int = 48, S: int | None = None, heads: int = 2, D: int = 16, n: int = 24, seed: int = 0,
               selected: bool = False) -> Trace:
    """Two KV heads for `heads` query heads; rows are quantised first, so that lse is exact for what is stored."""
    rng, S, n = np.random.default_rng(seed), S or T, min(n, T)
    first = S - T
    q = rng.integers(-127, 128, (heads, T, D)).astype(np.int8)
    k = rng.integers(-127, 128, (2, S, D)).astype(np.int8)
    q_scale = (rng.uniform(0.008, 0.02, (heads, T)) / np.sqrt(D)).astype(np.float32)
    k_scale = rng.uniform(0.008, 0.02, (2, S)).astype(np.float32)
    kv_of = np.arange(heads, dtype=np.int32) % 2
    lse, p = np.zeros((heads, T), np.float32), np.zeros((heads, T, S))
    for h in range(heads):
        for i in range(T):
            end = first + i + 1
            s = (k[kv_of[h], :end].astype(np.float64) @ q[h, i].astype(np.float64)) * float(q_scale[h, i])
            s *= k_scale[kv_of[h], :end].astype(np.float64)
            lse[h, i] = s.max() + np.log(np.exp(s - s.max()).sum())
            p[h, i, :end] = np.exp(s - lse[h, i])
    rows, columns = np.arange(T) * n // T, np.arange(S) * n // S
    mean = np.zeros((heads, n, n))
    for h in range(heads):
        np.add.at(mean[h], (rows[:, None], columns[None]), p[h])
    mean /= np.bincount(rows)[:, None] * np.bincount(columns)
    overview = np.round(255 * np.sqrt(mean / mean.max(-1, keepdims=True))).astype(np.uint8)
    arrays = {"q": q, "q_scale": q_scale, "k": k, "k_scale": k_scale, "kv_of": kv_of, "lse": lse, "overview": overview}
    if selected:                                     # every other key of a row, its own among them
        rows_of = [np.arange(first + i, -1, -2)[::-1] for _ in range(heads) for i in range(T)]
        arrays["indptr"] = np.concatenate([[0], np.cumsum([len(r) for r in rows_of])]).astype(np.int64)
        arrays["indices"] = np.concatenate(rows_of).astype(np.int32)
    where = [{"layer": 3 + h, "head": h, "label": f"layer {3 + h}, head {h}"} for h in range(heads)]
    tokens = (TOKENS * (S // len(TOKENS) + 1))[:S]
    recorder = Recorder("attention.grid/1", method="dense", subject={"tokens": tokens, "heads": where, "first": first})
    recorder.step = T
    return recorder.finish(**arrays)


def frontier_trace(better: str = "high") -> Trace:
    names, x = ["oracle", "window", "random"], np.array([0.01, 0.03, 0.1, 0.3, 1.0])
    y = np.stack([x ** power for power in (0.12, 0.5, 0.9)])
    y = 1.001 - y if better == "low" else y
    error = 0.04 * (1 - y)
    recorder = Recorder("frontier/1", method="frontier", subject={
        "names": names, "x_label": "share of keys read", "y_label": "attention mass kept", "better": better})
    recorder.step = 3
    return recorder.finish(series=np.repeat(np.arange(3, dtype=np.int32), 5), x=np.tile(x, 3).astype(np.float32),
                           y=y.ravel().astype(np.float32), lo=(y - error).ravel().astype(np.float32),
                           hi=(y + error).ravel().astype(np.float32))
