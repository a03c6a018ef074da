"""Where attention goes: queries down, keys across, every cell a probability. Draws "attention.grid/1"."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import replace

import numpy as np

from tutor.schemas import grid_row
from tutor.trace import Trace
from tutor.widgets.base import TutorWidget
from tutor.widgets.dials import dial
from tutor.widgets.still import Still, mix

LOW = -3.5       # log10 of the share of a row at which a cell begins to show


def keep_mask(p: np.ndarray, keep: int = 0, sinks: int = 0, window: int = 0) -> np.ndarray:
    """1 for the keys of one row (0 .. its own position) that the dials keep: the `keep` most probable ones (ties to the
    lower index), the first `sinks`, the last `window`; the union of the three."""
    mask = np.zeros(len(p), np.uint8)
    mask[np.argsort(-p, kind="stable")[:keep]] = 1
    mask[:sinks] = 1
    if window > 0:
        mask[-window:] = 1
    return mask


def kept_mass(p: np.ndarray, mask: np.ndarray) -> float:
    """Share of the row's attention that the kept keys hold."""
    return float(p[mask == 1].sum() / p.sum())


def shade(mass: np.ndarray) -> np.ndarray:
    """0 .. 1 for the share of a row's attention in a cell, on a log scale from 0.03 % to 100 %."""
    return np.clip(1 - np.log10(np.maximum(mass, 1e-30)) / LOW, 0, 1)


def overview_mass(cells: np.ndarray) -> np.ndarray:
    """Share of a row's attention in each cell of a recorded overview (n, n): squared, each row scaled to sum 1."""
    mass = np.square(cells.astype(np.float64) / 255)
    return mass / np.maximum(mass.sum(1, keepdims=True), 1e-30)


class AttentionGrid(TutorWidget):
    """A map of attention to pan and zoom, the chosen query's row beneath it, and the words it looks at.

    A step is one query row. Own dials, all display arithmetic over the recorded rows: `keep` (top-k), `sinks`,
    `window`, and `head` where several were recorded. With recorded `indptr`/`indices`, the selected keys are shown
    while those three dials are off.
    """

    figure = "attention_grid"
    schemas = ("attention.grid/1",)
    speaks = "js"

    def _title(self, trace: Trace) -> str:
        return "Where attention goes"

    def _first_step(self, trace: Trace) -> int:
        return int(3 * trace.steps // 4)

    def _own_dials(self, trace: Trace) -> list[dict]:
        keys = trace.arrays["k"].shape[1]
        counts = [0, *(2 ** i for i in range(keys.bit_length()) if 2 ** i < keys)]
        label = ["off", *(str(n) for n in counts[1:])]
        few = [0, 1, 2, 4, 8, 16]
        found = [dial("keep", "top-k keys per query", values=counts, labels=label),
                 dial("sinks", "first keys (sinks)", values=few, labels=["off", *(str(n) for n in few[1:])]),
                 dial("window", "last keys (window)", values=counts, labels=label)]
        heads = trace.subject["heads"]
        if len(heads) > 1:
            names = [h.get("label") or f"layer {h['layer']}, head {h['head']}" for h in heads]
            found.insert(0, dial("head", "head", values=list(range(len(heads))), labels=names, value=self._head(trace),
                                 kind="segments" if len(heads) <= 4 else "select"))
        return found

    def _head(self, trace: Trace) -> int:
        return int(trace.subject.get("head", 0))

    def describe(self, step: int | None = None) -> str:
        head = int(self.settings.get("head", self._head(self.trace)))
        chosen = replace(self.trace, subject=self.trace.subject | {"head": head})
        return chosen.describe(self.step if step is None else step)

    def _still(self, still: Still, trace: Trace, step: int) -> None:
        head = int(self.settings.get("head", self._head(trace)))
        first, side = int(trace.subject.get("first", 0)), min(0.55 * still.inner, 380.0)
        values = shade(overview_mass(trace.arrays["overview"][head]))
        ramp = np.array([[int(mix("kept", x)[i:i + 2], 16) for i in (1, 3, 5)] for x in np.linspace(0, 1, 256)])
        picture = base64.b64encode(png(ramp.astype(np.uint8)[np.round(255 * values).astype(int)])).decode()
        still.element("image", x=0, y=0, width=side, height=side, href=f"data:image/png;base64,{picture}",
                      style="image-rendering:pixelated", preserveAspectRatio="none")
        still.rect(0, 0, side, side, "none", stroke="#d5d9df")
        y = side * (step + 0.5) / trace.steps
        still.line(0, y, side, y, "query", stroke_width=1.5)
        still.text(0, side + 16, "keys →", 11, "muted")
        p = grid_row(trace, head, step)
        tokens = trace.subject.get("tokens", [])
        name = lambda j: (tokens[j].strip() or repr(tokens[j])) if j < len(tokens) else ""
        x, room = side + 28, still.inner - side - 28
        still.text(x, 12, f"query {first + step}  {name(first + step)}", 13, "query", font_weight=600)
        for i, j in enumerate(np.argsort(-p, kind="stable")[:8]):
            y = 40 + 30 * i
            still.text(x, y, f"{name(int(j))}", 12)
            still.text(x + room, y, f"{100 * p[j]:.1f} %", 12, "muted", text_anchor="end")
            still.rect(x, y + 5, max(1.0, room * float(p[j])), 4, "kept")


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of `(height, width, 3)` bytes."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
