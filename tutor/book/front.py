"""The four small pictures of the front page, each drawn from a recording of the real model: ideas at a glance.

A picture is an SVG of 160 by 88 whose colours are classes of `tutor.css`, so that it follows the theme.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

import numpy as np

from tutor.schemas import ANN_KINDS, STATES
from tutor.trace import Trace

WIDTH, HEIGHT = 160, 88


class Idea(NamedTuple):
    """One card: title, the question's page, a sentence with its measured numbers, a picture and its words."""

    title: str
    address: str
    finding: str
    picture: str
    alt: str


def _path(kind: str, strokes: Iterable[str]) -> str:
    return f'<path class="g-{kind}" d="{"".join(strokes)}"/>'


def attention(weights: np.ndarray, cells: int = 44) -> str:
    """A causal map (T, T) as `cells` by `cells` squares in four strengths: the largest weight of each square."""
    step, size = len(weights) // cells, HEIGHT / cells
    blocks = weights[:cells * step, :cells * step].reshape(cells, step, cells, step).max((1, 3))
    levels = np.digitize(np.log10(np.maximum(blocks, 1e-9)), [-2.4, -1.9, -1.4, -0.9])                  # 0: not drawn
    square = lambda y, x: f"M{36 + x * size:g} {y * size:g}h{size:g}v{size:g}h-{size:g}z"
    return "".join(_path(f"heat{n}", (square(y, x) for y, x in np.argwhere(levels == n))) for n in (1, 2, 3, 4))


def cache(run: Trace, layer: int = 0, head: int = 0) -> str:
    """One line for each row of the cache, from the step that wrote it to the step that evicted it; time runs down."""
    start, end = run.arrays["appended_at"], run.arrays["evicted_at"][layer, head]
    held = end < 0                                                                                  # to the end of the run
    x, y = (np.arange(len(start)) + 0.5) * WIDTH / len(start), HEIGHT / run.steps
    line = lambda i: f"M{x[i]:.1f} {max(start[i], 0) * y:.1f}V{HEIGHT if held[i] else end[i] * y:.1f}"
    return _path("evicted", map(line, np.flatnonzero(~held))) + _path("kept", map(line, np.flatnonzero(held)))


def speculation(run: Trace) -> str:
    """One column for each pass of the model: the tokens it gave, one block each; the lowest would have come anyway."""
    given, gap = tokens_per_pass(run), WIDTH / run.steps
    wide, high = gap * 0.8, HEIGHT / given.max() - 2
    block = lambda i, j: f"M{i * gap:.1f} {HEIGHT - j * (high + 2):.1f}h{wide:.1f}v-{high:.1f}h-{wide:.1f}z"
    free = [block(i, j) for i, n in enumerate(given) for j in range(1, n)]
    return _path("own", (block(i, 0) for i in range(run.steps))) + _path("accepted", free)


def tokens_per_pass(run: Trace) -> np.ndarray:
    """Accepted guesses of each pass, and the one token that the model itself adds."""
    accepted, first = run.arrays["state"] == STATES.index("accepted"), run.arrays["node_start"]
    return np.array([accepted[a:b].sum() + 1 for a, b in zip(first, first[1:])])


def search(run: Trace) -> str:
    """The map of all vectors: those compared with the question are dark, the true neighbours ringed."""
    xy = run.arrays["xy"]
    low, high = xy.min(0), xy.max(0)
    place = 4 + (xy - low) / (high - low) * (np.array([WIDTH, HEIGHT]) - 8)
    seen = np.zeros(len(xy), bool)
    seen[run.events["dst"][run.events["kind"] == ANN_KINDS.index("evaluated")]] = True
    dots = lambda which: (f"M{x:.1f} {y:.1f}h0" for x, y in place[which])
    rings = "".join(f'<circle class="g-found" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in place[run.arrays["truth"]])
    return _path("dot", dots(~seen)) + _path("seen", dots(seen)) + rings


def comparisons_until_found(run: Trace) -> int:
    """Distances computed until the search held all the true neighbours that it will find."""
    events = run.events
    return int((events["kind"][:events["n_correct"].argmax() + 1] == ANN_KINDS.index("evaluated")).sum())


def cards(ideas: Iterable[Idea]) -> str:
    """HTML of the cards; the whole title is the link."""
    return '<div class="ideas">' + "".join(
        f'<div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(idea.alt, quote=True)}">{idea.picture}</svg>'
        f'<h3><a href="{escape(idea.address, quote=True)}">{escape(idea.title)}</a></h3><p>{escape(idea.finding)}</p></div>'
        for idea in ideas) + "</div>"
