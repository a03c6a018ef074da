"""All heads of a model at once, and one of them large: scores, keys read, tiles run. Draws "attention.heads/1"."""

from __future__ import annotations

import base64
import math

import numpy as np

from tutor.trace import Trace
from tutor.widgets.attention_grid import png, shade
from tutor.widgets.base import TutorWidget
from tutor.widgets.dials import dial
from tutor.widgets.still import Still, mix


def side(trace: Trace) -> int:
    """Cells along one side of a map, from the number of cells in its lower triangle."""
    return (math.isqrt(8 * trace.arrays["maps"].shape[1] + 1) - 1) // 2


def head_cells(trace: Trace, head: int) -> np.ndarray:
    """Share of a row's attention in each cell of one head's map `(n, n)`; the cells of a row sum to 1."""
    n = side(trace)
    cells = np.zeros((n, n))
    cells[np.tril_indices(n)] = np.square(trace.arrays["maps"][head].astype(np.float64) / 255)
    return cells / np.maximum(cells.sum(1, keepdims=True), 1e-30)


def kept_cells(trace: Trace, method: int, head: int) -> np.ndarray:
    """1 for the cells in which the method reads any pair, uint8 `(n, n)`."""
    n = side(trace)
    cells = np.zeros((n, n), np.uint8)
    cells[np.tril_indices(n)] = np.unpackbits(trace.arrays["kept"][method, head])[:n * (n + 1) // 2]
    return cells


def tiles_run(cells: np.ndarray, size: int) -> np.ndarray:
    """1 for the tiles of `size x size` cells that hold a kept cell: what a kernel with such tiles must run."""
    n = math.ceil(len(cells) / size)
    wide = np.zeros((n * size, n * size), np.uint8)
    wide[:len(cells), :len(cells)] = np.tril(cells)
    return wide.reshape(n, size, n, size).max((1, 3))


class HeadBrowser(TutorWidget):
    """Thumbnails of every head, layers across and heads down; a step is a head, a click or arrow key chooses one.

    Own dials: `measure` (a bar below each head) where measures were recorded; `method`, `view` (scores, keys, tiles) and
    `tile` where selections were.
    """

    figure = "head_browser"
    schemas = ("attention.heads/1",)

    def _title(self, trace: Trace) -> str:
        return f"{len(trace.subject['layers']) * trace.subject['heads']} heads"

    def _own_dials(self, trace: Trace) -> list[dict]:
        methods, measures = trace.subject["methods"], trace.subject["measures"]
        cell = len(trace.subject["tokens"]) // side(trace)
        found = []
        if measures:
            found.append(dial("measure", "bar below each head", values=["off", *measures], value=measures[0], kind="select"))
        if methods:
            found += [dial("method", "method", values=methods),
                      dial("view", "show", values=["scores", "keys", "tiles"], value="tiles"),
                      dial("tile", "side of a tile", values=[2, 4, 8, 16], labels=[f"{cell * i} tokens" for i in (2, 4, 8, 16)],
                           value=4, kind="select")]
        return found

    def _still(self, still: Still, trace: Trace, step: int) -> None:
        layers, heads, n = len(trace.subject["layers"]), trace.subject["heads"], side(trace)
        ramp = np.array([[int(mix("kept", x)[i:i + 2], 16) for i in (1, 3, 5)] for x in np.linspace(0, 1, 256)], np.uint8)
        coarse = n // math.gcd(n, 16)                                      # cells to one pixel of a thumbnail
        small = n // coarse
        sheet = np.full((heads * (small + 1), layers * (small + 1), 3), 255, np.uint8)
        for head in range(layers * heads):
            shown = head_cells(trace, head).reshape(small, coarse, small, coarse).sum(3).mean(1)
            top, left = (head % heads) * (small + 1), head // heads * (small + 1)
            sheet[top:top + small, left:left + small] = ramp[np.round(255 * shade(shown)).astype(int)]
        width = still.inner
        tall = width * sheet.shape[0] / sheet.shape[1]
        picture = lambda pixels: "data:image/png;base64," + base64.b64encode(png(pixels)).decode()
        still.element("image", x=0, y=0, width=width, height=tall, href=picture(sheet), style="image-rendering:pixelated")
        each = width / layers
        still.rect(step // heads * each, step % heads * each, each, each, "none", stroke="#6a3fa0", stroke_width=2)
        still.text(0, tall + 16, f"layers {trace.subject['layers'][0]} to {trace.subject['layers'][-1]} →, heads ↓", 11, "muted")
        side_, y = 0.4 * width, tall + 30
        large = ramp[np.round(255 * shade(head_cells(trace, step))).astype(int)]
        still.element("image", x=0, y=y, width=side_, height=side_, href=picture(large), style="image-rendering:pixelated")
        still.rect(0, y, side_, side_, "none", stroke="#d5d9df")
        still.text(side_ + 20, y + 14, f"layer {trace.subject['layers'][step // heads]}, head {step % heads}", 13, "query",
                   font_weight=600)
