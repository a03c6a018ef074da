"""The text itself, each token shaded by how much weight it holds. Draws "text.weights/1"."""

from __future__ import annotations

import numpy as np

from tutor.trace import Trace
from tutor.widgets.base import TutorWidget
from tutor.widgets.still import Still, mix, text_width


def topk_mask(weights: np.ndarray, k: int) -> np.ndarray:
    """1 where a weight is among the k largest, else 0; ties to the lower index. What the dial "keep" shows."""
    mask = np.zeros(len(weights), np.uint8)
    mask[np.argsort(-weights, kind="stable")[:max(k, 0)]] = 1
    return mask


def kept_mass(weights: np.ndarray, mask: np.ndarray) -> float:
    total = float(np.sum(weights, dtype=np.float64))
    return float(np.sum(weights[mask == 1], dtype=np.float64)) / total if total > 0 else 1.0


class TokenStrip(TutorWidget):
    """Words shaded by weight; a step is one row of weights. A dial called "keep" marks the top-k tokens of the row."""

    figure = "token_strip"
    schemas = ("text.weights/1",)

    def _title(self, trace: Trace) -> str:
        return f"{trace.subject.get('quantity', 'weight')} over the text".capitalize()

    def _still(self, still: Still, trace: Trace, step: int) -> None:
        weights = np.asarray(trace.arrays["weights"][step], np.float64)
        kept = trace.arrays["kept"][step] if "kept" in trace.arrays else None
        shade = np.sqrt(weights / max(weights.max(), 1e-30))
        size, x, y = 13, 0.0, 14.0
        for i, token in enumerate(trace.subject["tokens"]):
            word = token.replace("\n", "↵")
            width = text_width(word, size)
            if x + width > still.inner and x > 0:
                x, y = 0.0, y + 24
            still.rect(x, y - 13, width, 18, mix("heat", float(shade[i])), rx=2)
            if kept is not None and kept[i] < 2:
                still.line(x, y + 7, x + width, y + 7, "kept" if kept[i] else "evicted", stroke_width=1.6,
                           stroke_dasharray=None if kept[i] else "1 3")
            fill = "muted" if kept is not None and kept[i] == 2 else "ink"
            lead = text_width(word[:len(word) - len(word.lstrip(" "))], size)
            still.text(x + lead, y, word.lstrip(" "), size, fill, textLength=round(width - lead, 1) or None)
            x += width
            if "\n" in token:
                x, y = 0.0, y + 24
