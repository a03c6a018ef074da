"""Draw the still pictures of the README: python book/make_stills.py (reads 512 tokens with the real model)."""

from __future__ import annotations

from pathlib import Path

import torch

import tutor
from tutor.attention.dense import probs
from tutor.attention.frontier import grid_trace
from tutor.attention.heads import head_atlas
from tutor.widgets import AttentionGrid, HeadBrowser

HERE = Path(__file__).resolve().parent / "assets" / "still"


def attention_grid() -> str:
    capture = tutor.data.capture("reference_4096")
    layer, first = capture.layers[-1], slice(0, 384)
    q, k = capture.q(layer)[:, :, first], capture.k(layer)[:, :, first]
    trace = grid_trace(q, k, capture.tokens[first], [(layer, 0)])
    figure = AttentionGrid(trace, step=300, title="One head of the real model reads the Python language reference",
                           caption="Most of this head's attention rests on the first token, a sink; little is left for words.")
    return figure.still()


def head_browser() -> str:
    model, capture = tutor.load(), tutor.data.capture("reference_4096")
    with torch.no_grad():
        found = model.forward(capture.ids[:512].long()[None], collect=("q", "k"), logits="none").collected
    q, k = ({layer: x.float() for layer, x in found[name].items()} for name in ("q", "k"))
    seen = (probs(q[layer][:, :, -128:], k[layer], dtype=torch.float32)[0] for layer in q)          # (Hq, 128, 512) each
    sinks = torch.stack([a[:, :, :4].sum(-1).mean(-1) for a in seen])
    begin = int((sinks.mean(-1) > 0.2).int().argmax())
    figure = HeadBrowser(head_atlas(q, k, capture.tokens[:512], measures={"on the first 4 keys": sinks}), step=20 * 9 + 6,
                         title="All 270 heads of the real model read 512 tokens of the Python language reference",
                         caption=f"From layer {begin} on the first column is dark: the heads rest {sinks[begin:].mean():.0%} of "
                                 f"their attention on the first four tokens, before it {sinks[:begin].mean():.0%}.")
    return figure.still(width=960)


if __name__ == "__main__":
    HERE.mkdir(parents=True, exist_ok=True)
    for draw in (attention_grid, head_browser):
        (HERE / f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")
