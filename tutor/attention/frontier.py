"""The frontier of attention: what each method reads against what it keeps, and the traces that attention figures draw.

Every registered selector is run over the same queries and judged by the same numbers: the keys it scored to choose,
the keys it read, the attention mass on them, and how far its output is from the dense one. One line per method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from tutor import catalog
from tutor.attention.dense import attend, causal_pairs, logits, positions, probs
from tutor.attention.selection import Selection, attend_selected, output_error
from tutor.trace import Recorder, Trace

QKV = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Frontier:
    """A table of points, one for each method and parameter set.

    Attributes:
        points: dicts with method, params, pairs, scored, loaded (counts over all heads and rows), load and scan
            (shares of the pairs a dense attention scores), mass, mass_lo, mass_hi, error, error_lo, error_hi (95 %
            bootstrap intervals over heads; over rows when there is one head), regret (mass of the best keys at equal
            load, minus mass), heads and head_errors (one mean mass and error per head, in the order of `heads`).
        heads: `(layer, head)` pairs.
        subject: what it was measured on.
    """

    points: list[dict[str, Any]]
    heads: list[tuple[int, int]]
    subject: dict[str, Any] = field(default_factory=dict)

    def series(self, method: str) -> list[dict[str, Any]]:
        """The points of one method, from cheap to dear."""
        return sorted((p for p in self.points if p["method"] == method), key=lambda p: p["load"])

    def to_trace(self, *, x: str = "load", y: str = "mass") -> Trace:
        """Schema "frontier/1". `x`: "load", "scan" or "scan+load"; `y`: "mass", "error" or "regret"."""
        labels = {"load": "share of keys read", "scan": "share of keys scored",
                  "scan+load": "share of keys scored + read"}
        words = {"mass": ("attention mass kept", "high"), "error": ("relative output error", "low"),
                 "regret": ("mass lost against the best keys", "low")}
        if x not in labels or y not in words:
            raise ValueError(f"x must be one of {tuple(labels)} and y one of {tuple(words)}; got x={x!r}, y={y!r}")
        names = list(dict.fromkeys(p["method"] for p in self.points))
        recorder = Recorder("frontier/1", method="frontier", params={"x": x, "y": y}, subject={
            **self.subject, "names": names, "x_label": labels[x], "y_label": words[y][0], "better": words[y][1],
            "title": f"{words[y][0].capitalize()} against {labels[x]}"})
        columns: dict[str, list] = {"series": [], "x": [], "y": [], "lo": [], "hi": []}
        for step, name in enumerate(names):
            recorder.event("measured", series=step)
            recorder.next_step()
            for point in self.series(name):
                at = point["load"] + point["scan"] if x == "scan+load" else point[x]
                values = (step, at, point[y], point.get(f"{y}_lo", point[y]), point.get(f"{y}_hi", point[y]))
                for column, value in zip(columns.values(), values):
                    column.append(value)
        return recorder.finish(series=np.asarray(columns.pop("series"), np.int32),
                               **{name: np.asarray(column, np.float32) for name, column in columns.items()})


def frontier(source: Any, methods: Sequence[str] | None = None, *, layers: Iterable[int] | None = None, rows: int = 64,
             seed: int = 0, grids: Mapping[str, Sequence[Mapping[str, Any]]] | None = None, progress: bool = False,
             subject: dict[str, Any] | None = None) -> Frontier:
    """Run selectors over real queries and keys, and measure what they keep.

    Args:
        source: a capture (with `.layers`, `.q(layer)`, `.k(layer)`, `.v(layer)`), a mapping `layer -> (q, k, v)`, or
            one `(q, k, v)` of shapes `(1, Hq, T, D)`, `(1, Hkv, S, D)`, `(1, Hkv, S, Dv)`.
        methods: catalog names; every registered selector unless given. Each runs over its `grid`.
        grids: `{method: parameter sets}` to use in place of the registered `grid` of that method.
        rows: query rows judged, drawn without replacement from the last three quarters (early rows are nearly dense).
    """
    layered = by_layer(source, layers)
    chosen = [catalog.get("attention", name) for name in methods] if methods is not None else selectors()
    for entry in chosen:
        if "selector" not in entry.flags:
            raise ValueError(f"method {entry.name!r} chooses no keys, so it has no place on this frontier; "
                             f"selectors are: {', '.join(m.name for m in selectors())}")
    runs = [(entry, params) for entry in chosen for params in (grids or {}).get(entry.name, entry.grid)]
    totals = [{"pairs": 0, "scored": 0, "loaded": 0, "scan": [], "mass": [], "error": [], "best": []} for _ in runs]
    heads: list[tuple[int, int]] = []
    for layer, (q, k, v) in tqdm(layered.items(), desc="layers", disable=not progress):
        at = sample_rows(q.shape[2], rows, seed)
        some, pos = q[:, :, at], positions(q, k)[at]
        a = probs(some, k, pos_q=pos)[0]                                   # (Hq, R, S)
        best = a.sort(dim=-1, descending=True).values.cumsum(-1)           # mass of the n heaviest keys
        whole = attend(some, k, v, pos_q=pos).o[0]
        heads += [(layer, head) for head in range(q.shape[1])]
        for (entry, params), total in zip(runs, totals):
            selector = entry.build(**params)
            if "rowwise" in entry.flags:
                sel, cost = selector.select(some, k, v=v, pos_q=pos)
            else:
                sel, cost = selector.select(q, k, v=v)
                sel = sel.take(at)
            kept = attend_selected(some, k, v, sel, dtype=torch.float32).o[0]
            count = sel.counts()[0]                                        # (Hq, R)
            total["pairs"] += q.shape[1] * causal_pairs(pos, k.shape[2])
            total["loaded"] += sel.nnz
            total["scored"] += cost["scored"]
            total["scan"].append(cost["scored"] / max(cost["pairs"], 1))
            total["mass"].append(torch.where(sel.mask()[0], a, 0.0).sum(-1))
            total["error"].append(output_error(kept, whole))
            heaviest = best.gather(-1, (count - 1).clamp(min=0)[..., None])[..., 0]
            total["best"].append(torch.where(count > 0, heaviest, 0.0))
    points = []
    for (entry, params), total in zip(runs, totals):
        mass, error, best = (torch.cat(total[name]) for name in ("mass", "error", "best"))  # (heads, R)
        (m, m_lo, m_hi), (e, e_lo, e_hi) = interval(mass), interval(error)
        points.append({"method": entry.name, "params": dict(params), "pairs": total["pairs"],
                       "scored": total["scored"], "scan": float(np.mean(total["scan"])),
                       "loaded": total["loaded"], "load": total["loaded"] / total["pairs"],
                       "mass": m, "mass_lo": m_lo, "mass_hi": m_hi, "error": e, "error_lo": e_lo, "error_hi": e_hi,
                       "regret": float((best - mass).mean()), "heads": mass.mean(-1).tolist(),
                       "head_errors": error.mean(-1).tolist()})
    return Frontier(points, heads, {"rows": rows, "seed": seed, **(subject or {})})


def selectors() -> list[catalog.Method]:
    """Every registered method of the family that chooses keys."""
    return [entry for entry in catalog.methods("attention") if "selector" in entry.flags]


def by_layer(source: Any, layers: Iterable[int] | None = None) -> dict[int, QKV]:
    """`{layer: (q, k, v)}` as float32 from a capture, a mapping or one triple (which becomes layer 0)."""
    if isinstance(source, tuple):
        source = {0: source}
    names = list(source) if isinstance(source, Mapping) else list(source.layers)
    wanted = names if layers is None else list(layers)
    if missing := [layer for layer in wanted if layer not in names]:
        raise ValueError(f"layers {missing} were not captured; there are {names}")
    if isinstance(source, Mapping):
        triples = {layer: source[layer] for layer in wanted}
    else:
        triples = {layer: (source.q(layer), source.k(layer), source.v(layer)) for layer in wanted}
    return {layer: tuple(x.float() for x in triple) for layer, triple in triples.items()}


def sample_rows(length: int, rows: int, seed: int) -> Tensor:
    """`rows` row numbers from the last three quarters, without replacement, ascending; all when there are fewer."""
    first = length // 4
    order = torch.randperm(length - first, generator=torch.Generator().manual_seed(seed))
    return first + order[:rows].sort().values


def interval(values: Tensor, *, draws: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of `(heads, rows)` and a 95 % bootstrap interval over heads; over rows when there is only one head."""
    units = values.mean(-1) if values.shape[0] > 1 else values[0]
    picks = torch.randint(len(units), (draws, len(units)), generator=torch.Generator().manual_seed(seed))
    low, high = units[picks].mean(-1).quantile(torch.tensor([0.025, 0.975], dtype=units.dtype)).tolist()
    return float(units.mean()), low, high


# --------------------------------------------------------------------------------------------------- traces for figures

def grid_trace(q: Tensor | Mapping[int, Tensor], k: Tensor | Mapping[int, Tensor], tokens: Sequence[str],
               heads: Sequence[tuple[int, int] | Mapping[str, Any]], *, selection: Selection | None = None,
               method: str = "dense", params: dict[str, Any] | None = None, scale: float | None = None,
               cells: int = 128, subject: dict[str, Any] | None = None) -> Trace:
    """Record attention maps so that a figure can redraw any row: schema "attention.grid/1".

    Args:
        q, k: post-RoPE `(1, Hq, T, D)`, `(1, Hkv, S, D)`; or `{layer: tensor}` to show heads of several layers.
        tokens: the text of each of the S keys.
        heads: `(layer, head)` pairs, or dicts with layer, head and label. A layer is ignored when `q` is one tensor.
        selection: keys a method chose, one head here for one head of `heads` and in that order (`B = 1`).
        cells: side of the zoomed-out picture; at most T and S.
    """
    where = [dict(h) if isinstance(h, Mapping) else {"layer": h[0], "head": h[1]} for h in heads]
    for h in where:
        h.setdefault("label", f"layer {h['layer']}, head {h['head']}")
    of = lambda x, layer: x[layer] if isinstance(x, Mapping) else x
    query = [of(q, h["layer"])[:1, h["head"]:h["head"] + 1] for h in where]                 # H of (1, 1, T, D)
    t, s = query[0].shape[2], of(k, where[0]["layer"]).shape[2]
    if len(tokens) != s:
        raise ValueError(f"tokens must name each of the {s} keys; got {len(tokens)}")
    if selection is not None and selection.shape != (1, len(where), t, s):
        raise ValueError(f"selection must have shape (1, heads, T, S) = {(1, len(where), t, s)}; "
                         f"got {selection.shape}")
    slots: dict[tuple[int, int], int] = {}                                                # (layer, KV head) -> row of k
    keys, kv_of = [], []
    for h in where:
        of_layer = of(k, h["layer"])
        group = of(q, h["layer"]).shape[1] // of_layer.shape[1]
        name = (h["layer"] if isinstance(k, Mapping) else 0, h["head"] // group)
        if name not in slots:
            slots[name] = len(keys)
            keys.append(of_layer[:1, name[1]:name[1] + 1])
        kv_of.append(slots[name])
    first, n = s - t, min(cells, t, s)
    lse, overview = [], []
    for one, slot in zip(query, kv_of):
        row_lse, picture = _survey(one, keys[slot], scale, n)
        lse.append(row_lse)
        overview.append(picture)
    factor = one.shape[3] ** -0.5 if scale is None else scale
    q8, q_scale = _int8(torch.cat([one[0] for one in query]))
    k8, k_scale = _int8(torch.cat([one[0] for one in keys]))
    arrays = {"q": q8, "q_scale": q_scale * np.float32(factor), "k": k8, "k_scale": k_scale,
              "kv_of": np.asarray(kv_of, np.int32), "lse": np.stack(lse), "overview": np.stack(overview)}
    if selection is not None:
        sel = selection.to_token()
        arrays |= {"indptr": sel.indptr.numpy().astype(np.int64), "indices": sel.indices.numpy().astype(np.int32)}
    recorder = Recorder("attention.grid/1", method=method, params=params,
                        subject={"head": 0, **(subject or {}), "tokens": list(tokens), "heads": where, "first": first})
    recorder.step = t                                                                       # a step is a query row
    return recorder.finish(**arrays)


def _survey(q: Tensor, k: Tensor, scale: float | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact log-sum-exp `(T,)` float32 of one head, and its zoomed-out picture `(n, n)` uint8."""
    t, s = q.shape[2], k.shape[2]
    pos, column = positions(q, k), torch.arange(s) * n // s                                 # cell of each key
    total, lse = torch.zeros(n, n, dtype=torch.float64), []
    for rows in torch.arange(t).split(512):
        part = logits(q[:, :, rows], k, scale=scale, pos_q=pos[rows])[0, 0]                 # (512, S)
        lse.append(part.logsumexp(-1))
        a = torch.exp(part - torch.where(lse[-1] > float("-inf"), lse[-1], 0.0)[:, None])
        total.index_add_(0, rows * n // t, part.new_zeros(len(rows), n).index_add(1, column, a))
    size = torch.bincount(torch.arange(t) * n // t)[:, None] * torch.bincount(column)       # pairs in each cell
    mean = total / size
    bright = torch.sqrt(mean / mean.amax(-1, keepdim=True).clamp(min=1e-30))
    return torch.cat(lse).float().numpy(), (255 * bright).round().to(torch.uint8).numpy()


def _int8(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`(H, L, D)` as int8 with one float32 scale per row `(H, L)`: `x ~ int8 * scale`."""
    x = x.float()
    scale = x.abs().amax(-1).clamp(min=1e-30) / 127
    return (x / scale[..., None]).round().to(torch.int8).numpy(), scale.numpy()


def strip_trace(weights: Tensor | np.ndarray, tokens: Sequence[str], rows: Sequence[str], *,
                quantity: str = "attention", kept: Tensor | np.ndarray | None = None, method: str = "dense",
                params: dict[str, Any] | None = None, subject: dict[str, Any] | None = None) -> Trace:
    """Record rows of weights over a text: schema "text.weights/1".

    Args:
        weights: `(R, S)`, not negative; `tokens`: S strings; `rows`: R labels, each said before its sentence.
        quantity: what a weight is, with its unit if it has one.
        kept: `(R, S)`, 1 kept, 0 dropped, 2 not yet seen.
    """
    weights = np.asarray(weights, np.float32)
    if weights.ndim != 2 or weights.shape != (len(rows), len(tokens)):
        raise ValueError(f"weights must have shape (rows, tokens) = ({len(rows)}, {len(tokens)}); got {weights.shape}")
    if not (weights >= 0).all():
        raise ValueError("weights must be >= 0 and not NaN; pass probabilities or shares")
    arrays = {"weights": weights}
    if kept is not None:
        arrays["kept"] = np.asarray(kept, np.uint8)
        if arrays["kept"].shape != weights.shape:
            raise ValueError(f"kept must have the shape of weights {weights.shape}; got {arrays['kept'].shape}")
    recorder = Recorder("text.weights/1", method=method, params=params,
                        subject={**(subject or {}), "tokens": list(tokens), "rows": list(rows), "quantity": quantity})
    for row in range(len(rows)):
        recorder.event("weighted", row=row)
        recorder.next_step()
    return recorder.finish(**arrays)
