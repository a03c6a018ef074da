"""Real vectors to search: docstring embeddings that ship with the package, and the model's own queries and keys."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tutor import data


@dataclass(frozen=True, eq=False)
class Corpus:
    """Rows to search and queries to search with.

    Attributes:
        X: `(N, d)` float32 rows. Q: `(nq, d)` float32 queries.
        metric: the one that fits.
        labels: N short strings, one per row. asks: nq strings, one per query.
    """

    X: np.ndarray
    Q: np.ndarray
    metric: str
    labels: list[str]
    asks: list[str]


@lru_cache(maxsize=1)
def _docstrings() -> tuple[dict[str, np.ndarray], dict]:
    from safetensors.numpy import load_file

    tensors = load_file(data.path("ann", "docstrings_2k.safetensors"))
    return tensors, json.loads(data.path("ann", "docstrings_2k.json").read_text(encoding="utf-8"))


def docstrings(asked: str = "sentences") -> Corpus:
    """MiniLM embeddings of 2 000 docstrings of Python's standard library, `d = 384`, for "cosine".

    Args:
        asked: "sentences": 200 sentences, each taken out of a docstring before that was embedded (`sources()` knows
            which), or "questions": 24 questions that a person might ask.
    """
    tensors, about = _docstrings()
    if asked not in ("sentences", "questions"):
        raise ValueError(f"asked must be 'sentences' or 'questions'; got {asked!r}")
    return Corpus(tensors["base"].astype(np.float32), tensors[asked].astype(np.float32), "cosine",
                  [f"{name}: {line}" for name, line in zip(about["names"], about["lines"])], about[asked])


def sources() -> np.ndarray:
    """Row of `docstrings().X` that each of its sentences was taken from, `(200,)`."""
    return _docstrings()[0]["sources"].astype(np.int64)


def attention(layer: int = 20, head: int = 6, *, asked: str = "queries", keys: int = 3072, nq: int = 100,
              centre: bool = False) -> Corpus:
    """Keys of one KV head and later questions to them, both after RoPE, `d = 64`, for "ip".

    The rows are the first `keys` keys of the recorded text; whoever asks stands in its last quarter, so every row is in
    its past, evenly spread over `nq` positions.

    Args:
        layer, head: of the capture "reference_4096"; head is a query head.
        asked: "queries": the query head's own queries. "keys": later keys of the same KV head, which come from the
            distribution of the rows, as queries do not.
        centre: subtract the mean key from rows: it shifts all scores of a query alike and changes no softmax weight.
    """
    capture = data.capture("reference_4096")
    q, k = capture.q(layer)[0], capture.k(layer)[0]                            # (Hq, T, D), (Hkv, T, D)
    late = 3 * len(capture) // 4
    if not 1 <= keys <= late or not 1 <= nq <= len(capture) - late:
        raise ValueError(f"keys must be in [1, {late}] and nq in [1, {len(capture) - late}]; got keys={keys}, nq={nq}")
    if not 0 <= head < len(q) or asked not in ("queries", "keys"):
        raise ValueError(f"head must be in [0, {len(q)}), asked 'queries' or 'keys'; got head={head}, asked={asked!r}")
    kv = head // (len(q) // len(k))
    spots = np.linspace(late, len(capture) - 1, nq).round().astype(int)
    X = k[kv, :keys].numpy()
    Q = (q[head] if asked == "queries" else k[kv])[spots].numpy()
    shift = X.mean(0) if centre else np.float32(0)
    return Corpus(X - shift, Q - shift if asked == "keys" else Q, "ip", capture.tokens[:keys],
                  [capture.tokens[i] for i in spots])
