"""Draw the still pictures of the README from recorded data: python book/make_stills.py"""

from __future__ import annotations

from pathlib import Path

import tutor
from tutor.attention.frontier import grid_trace
from tutor.widgets import AttentionGrid

HERE = Path(__file__).resolve().parent / "assets" / "still"


def attention_grid() -> str:
    capture = tutor.data.capture("reference_4096")
    layer, first = capture.layers[-1], slice(0, 384)
    q, k = capture.q(layer)[:, :, first], capture.k(layer)[:, :, first]
    trace = grid_trace(q, k, capture.tokens[first], [(layer, 0)])
    figure = AttentionGrid(trace, step=300, title="One head of the real model reads the Python language reference",
                           caption="Most of this head's attention rests on the first token, a sink; little is left for words.")
    return figure.still()


if __name__ == "__main__":
    HERE.mkdir(parents=True, exist_ok=True)
    (HERE / "attention_grid.svg").write_text(attention_grid(), encoding="utf-8")
