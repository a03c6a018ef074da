"""An atlas of heads: every head of a model as a small map, with what a selector keeps of it.

One picture of 270 heads shows at once what one head at a time never does: which patterns there are, and where in the
depth of the model they live. The maps are pooled to cells, so that an atlas of a whole model stays a few megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutor.attention.dense import probs
from tutor.attention.selection import Selection
from tutor.trace import Recorder, Trace


def head_atlas(q: Mapping[int, Tensor], k: Mapping[int, Tensor], tokens: Sequence[str], *, cells: int = 128,
               selections: Mapping[str, Mapping[int, Selection]] | None = None,
               measures: Mapping[str, Tensor] | None = None, subject: dict[str, Any] | None = None) -> Trace:
    """Record every head of some layers reading one text: schema "attention.heads/1", a step is a head.

    Args:
        q, k: `{layer: (1, Hq, T, D)}`, `{layer: (1, Hkv, T, D)}`, post-RoPE; the whole text, so as many queries as keys.
        tokens: the text of each of the T keys; T must be a multiple of `cells`.
        cells: side of each map.
        selections: what methods keep, `{method: {layer: Selection}}` over the same queries and keys.
        measures: one number per head to show beside the maps, `{name: (layers, Hq)}`, each a share in [0, 1].
    """
    layers, chosen, t = list(q), dict(selections or {}), len(tokens)
    heads = next(iter(q.values())).shape[1]
    if t % cells:
        raise ValueError(f"tokens must be a multiple of cells = {cells} in number, so that all cells are alike; got {t}")
    for layer in layers:
        if q[layer].shape[:3] != (1, heads, t) or k[layer].shape[2] != t:
            raise ValueError(f"q and k of layer {layer} must be of one text with {t} tokens, q of shape (1, {heads}, {t}, D); "
                             f"got {tuple(q[layer].shape)} and {tuple(k[layer].shape)}")
    if missing := [f"{name}, layer {layer}" for name, of in chosen.items() for layer in layers if layer not in of]:
        raise ValueError(f"selections must have every layer of q; missing: {', '.join(missing)}")
    below = np.tril_indices(cells)
    maps, bits = [], {name: [] for name in chosen}
    mass, load = np.zeros((2, len(chosen), len(layers) * heads), np.float32)
    pool = lambda x: x.reshape(heads, cells, t // cells, cells, t // cells)
    for i, layer in enumerate(layers):
        a = probs(q[layer].float(), k[layer].float(), dtype=torch.float32)[0]                  # (Hq, T, T)
        cell = pool(a).mean((2, 4))                                                            # (Hq, n, n)
        bright = torch.sqrt(cell / cell.amax(-1, keepdim=True).clamp(min=1e-30))
        maps.append((255 * bright).round().to(torch.uint8).numpy()[:, *below])
        mine = slice(i * heads, (i + 1) * heads)
        for m, (name, of) in enumerate(chosen.items()):
            kept = of[layer].mask()[0]                                                         # (Hq, T, T)
            mass[m, mine] = torch.where(kept, a, 0.0).sum(-1).mean(-1)
            load[m, mine] = kept.sum((1, 2)) / (t * (t + 1) / 2)
            bits[name].append(np.packbits(pool(kept).any(4).any(2).numpy()[:, *below], axis=-1))
    arrays = {"maps": np.concatenate(maps)}
    if chosen:
        arrays |= {"kept": np.stack([np.concatenate(of) for of in bits.values()]), "mass": mass, "load": load}
    if measures:
        shares = arrays["measures"] = np.stack([np.asarray(of, np.float32).reshape(-1) for of in measures.values()])
        if shares.shape[1] != len(layers) * heads or not ((shares >= 0) & (shares <= 1)).all():
            raise ValueError(f"measures must hold one share in [0, 1] for each of {len(layers)} layers x {heads} heads")
    recorder = Recorder("attention.heads/1", method="dense", params={"cells": cells}, subject={
        **(subject or {}), "tokens": list(tokens), "layers": layers, "heads": heads, "methods": list(chosen),
        "measures": list(measures or {})})
    for step in range(len(layers) * heads):
        recorder.event("surveyed", layer=layers[step // heads], head=step % heads)
        recorder.next_step()
    return recorder.finish(**arrays)
