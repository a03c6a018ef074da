"""Captures: the real queries, keys and values of a few layers for one text, so that lessons need no model.

Only pre-RoPE q and k and v are stored (fp16, one file per layer); rotation, scores and outputs follow from them.

>>> capture = tutor.data.capture("reference_4096")
>>> capture.q(20).shape, capture.tokens[:3]
(torch.Size([1, 9, 4096, 64]), ['The', ' "', 'assert'])
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutor.model import rope

if TYPE_CHECKING:
    from tutor.model.llama import Model

_KINDS = ("q_pre", "k_pre", "v")


@dataclass(frozen=True, eq=False)
class Capture:
    """Attention inputs of one text.

    Attributes:
        layers: indices of the layers that are here.
        ids: token ids `(T,)`; tokens: the same as readable strings.
        inv_freq: speeds of the model's RoPE `(D/2,)`.
        rows: stored tensors by `(kind, layer)`, `(1, H, T, D)`, of any float dtype.
        about: where it comes from: model, how its weights were made, text, versions, maker script.
    """

    layers: tuple[int, ...]
    ids: Tensor
    tokens: list[str]
    inv_freq: Tensor
    rows: dict[tuple[str, int], Tensor]
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        lengths = {t.shape[2] for t in self.rows.values()} | {len(self.ids), len(self.tokens)}
        if len(lengths) != 1:
            raise ValueError(f"ids, tokens and rows must have one length; got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Capture({len(self)} tokens, layers {list(self.layers)}, {self.about.get('model', 'unknown model')})"

    @cached_property
    def pos(self) -> Tensor:
        return torch.arange(len(self), dtype=torch.int32)

    def q_pre(self, layer: int) -> Tensor:
        """Queries before RoPE, float32 `(1, Hq, T, D)`."""
        return self._row("q_pre", layer)

    def k_pre(self, layer: int) -> Tensor:
        """Keys before RoPE, float32 `(1, Hkv, T, D)`."""
        return self._row("k_pre", layer)

    def v(self, layer: int) -> Tensor:
        """Values, float32 `(1, Hkv, T, D)`."""
        return self._row("v", layer)

    def q(self, layer: int) -> Tensor:
        """Queries as attention sees them, float32 `(1, Hq, T, D)`."""
        return rope.rotate(self.q_pre(layer), self.pos, self.inv_freq)

    def k(self, layer: int) -> Tensor:
        """Keys as attention sees them, float32 `(1, Hkv, T, D)`."""
        return rope.rotate(self.k_pre(layer), self.pos, self.inv_freq)

    def logits(self, layer: int, head: int, rows: slice | Tensor | None = None) -> Tensor:
        """Scaled attention logits of one query head, `-inf` above the diagonal: `(T or rows, T)`."""
        rows = slice(None) if rows is None else rows
        q, k = self.q(layer)[0], self.k(layer)[0]
        if not 0 <= head < len(q):
            raise ValueError(f"head must be in [0, {len(q)}); got {head}")
        scores = q[head, rows] @ k[head // (len(q) // len(k))].T / math.sqrt(q.shape[-1])
        return scores.masked_fill(self.pos > self.pos[rows, None], float("-inf"))

    def output(self, layer: int) -> Tensor:
        """Exact causal attention of the layer, before its output projection: float32 `(1, Hq, T, D)`."""
        q, k, v = self.q(layer), self.k(layer), self.v(layer)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def first(self, n: int) -> Capture:
        """The first n tokens: what the model would have seen of a shorter text."""
        if not 1 <= n <= len(self):
            raise ValueError(f"n must be in [1, {len(self)}]; got {n}")
        rows = {key: t[:, :, :n] for key, t in self.rows.items()}
        return Capture(self.layers, self.ids[:n], self.tokens[:n], self.inv_freq, rows, self.about)

    def _row(self, kind: str, layer: int) -> Tensor:
        if layer not in self.layers:
            raise ValueError(f"layer must be one of {list(self.layers)}, those of this capture; got {layer}")
        return self.rows[kind, layer].float()

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `about.json` and one fp16 safetensors file per layer."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for layer in self.layers:
            tensors = {kind: self.rows[kind, layer].half().contiguous() for kind in _KINDS}
            worst = max(float(t.abs().max()) for t in tensors.values())
            if not math.isfinite(worst):
                raise ValueError(f"layer {layer} does not fit fp16 (or holds NaN); do not record it")
            save_file(tensors, folder / f"layer_{layer:02d}.safetensors")
            os.chmod(folder / f"layer_{layer:02d}.safetensors", 0o644)
        meta = {"layers": list(self.layers), "about": self.about, "inv_freq": self.inv_freq.tolist(),
                "ids": self.ids.tolist(), "tokens": self.tokens}
        (folder / "about.json").write_text(json.dumps(meta, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Capture:
        """Open a saved capture; its rows are memory-mapped."""
        from safetensors import SafetensorError, safe_open

        folder = Path(folder)
        if not (folder / "about.json").is_file():
            raise ValueError(f"{folder} is no capture (no about.json); make one by capture(model, ids, layers).save()")
        meta = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        rows = {}
        for layer in meta["layers"]:
            path = folder / f"layer_{layer:02d}.safetensors"
            try:
                with safe_open(str(path), framework="pt") as file:
                    rows |= {(kind, layer): file.get_tensor(kind) for kind in _KINDS}
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is missing or cut off ({error}); restore it, "
                                 "or record the capture again") from error
        ids, speeds = torch.tensor(meta["ids"]), torch.tensor(meta["inv_freq"])
        return cls(tuple(meta["layers"]), ids, meta["tokens"], speeds, rows, meta["about"])


@torch.no_grad()
def capture(model: Model, ids: Tensor, layers: list[int] | tuple[int, ...], **about: Any) -> Capture:
    """Run a text through the model and keep q, k (before RoPE) and v of some layers.

    Args:
        ids: `(T,)` or `(1, T)`; about: anything worth remembering (the text's name, ...).
    """
    ids = torch.as_tensor(ids).reshape(-1)
    wanted = sorted(set(int(layer) for layer in layers))
    names = [f"{kind}.{layer}" for kind in _KINDS for layer in wanted]
    found = model.forward(ids[None], collect=names, logits="none", layers=range(max(wanted) + 1)).collected
    rows = {(kind, layer): found[kind][layer].cpu() for kind in _KINDS for layer in wanted}
    known = {"model": model.config.name, "weights": model.config.source, "computed_in": str(model.dtype)[6:],
             "rope_base": model.config.rope_base}
    tokens = model.tokenizer.pieces(ids.tolist()) if model.tokenizer is not None else [str(i) for i in ids.tolist()]
    return Capture(tuple(wanted), ids.cpu(), tokens, model.rope.inv_freq.cpu(), rows, known | about)
