"""One verification of a drafted tree at a time, and the text that grows from it. Draws "speculative.run/1"."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tutor.trace import Trace
from tutor.widgets.base import TutorWidget
from tutor.widgets.dials import dial
from tutor.widgets.still import Still


def ancestor_mask(parent: np.ndarray) -> np.ndarray:
    """`(n, n)` bool: row i attends column j when j is i or one of its ancestors. `parent (n,)`, -1 for the root."""
    mask = np.eye(len(parent), dtype=bool)
    for i, up in enumerate(parent):
        if up >= 0:
            mask[i] |= mask[up]
    return mask


def tree_layout(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column (depth) and row of every node: a first child continues its parent's row, the next ones open rows below."""
    n = len(parent)
    children = [np.flatnonzero(np.asarray(parent) == i).tolist() for i in range(n)]
    depth, row, rows, stack = np.zeros(n, int), np.zeros(n, int), 0, [(0, 0, True)] if n else []
    while stack:
        node, d, opens = stack.pop()
        if opens:
            row[node], rows = rows, rows + 1
        else:
            row[node] = row[parent[node]]
        depth[node] = d
        stack += [(child, d + 1, rank > 0) for rank, child in reversed(list(enumerate(children[node])))]
    return depth, row


def without_events(trace: Trace) -> Trace:
    """The arrays say all that the figure draws; its data stay small without the event table."""
    return replace(
        trace, events={name: column[:0] for name, column in trace.events.items() if name in ("kind", "step")}
    )


class TokenTree(TutorWidget):
    """The draft tree of each step, how the verifier walked it, draft against target at a node, and the ancestor mask.

    A step is one forward of the target. The dial "mask" shows or hides who attends whom; drafters and verifiers come as
    `variants`.
    """

    figure = "token_tree"
    schemas = ("speculative.run/1",)

    def _title(self, trace: Trace) -> str:
        return "Drafted ahead, judged in one forward"

    def _first_step(self, trace: Trace) -> int:
        """The step that accepted most and still shows a refusal; the earliest of them."""
        score = []
        for step in range(trace.steps):
            state = trace.arrays["state"][trace.arrays["node_start"][step] : trace.arrays["node_start"][step + 1]]
            score.append(2 * int((state == 1).sum()) + bool((state == 2).any()))
        return int(np.argmax(score)) if score else 0

    def _dials(self, dials: list[dict], recorded: list[tuple[dict, Trace]]) -> list[dict]:
        dials = super()._dials(dials, recorded)
        return (
            dials
            if "mask" in [d["name"] for d in dials]
            else [*dials, dial("mask", "show who attends whom", value=True)]
        )

    def _show(self, trace: Trace, recorded: list[tuple[dict, Trace]], file: str = "") -> None:
        small = {id(found): without_events(found) for found in (trace, *(found for _, found in recorded))}
        super()._show(small[id(trace)], [(when, small[id(found)]) for when, found in recorded], file)

    def _still(self, still: Still, trace: Trace, step: int) -> None:
        a, pieces = trace.arrays, trace.subject.get("pieces", {})
        first, last = int(a["node_start"][step]), int(a["node_start"][step + 1])
        parent, state = a["parent"][first:last].tolist(), a["state"][first:last].tolist()
        words = [pieces.get(str(t), f"<{t}>") for t in a["token"][first:last].tolist()]
        path = [i for i, s in enumerate(state) if s == 1]
        if int(a["next_token"][step]) >= 0:
            parent, state = [*parent, path[-1] if path else 0], [*state, 4]
            words.append(pieces.get(str(int(a["next_token"][step])), "?"))
        words = [("", "✓ ", "✕ ", "", "")[s] + (w.replace("\n", "↵").strip() or "␣") for w, s in zip(words, state)]
        depth, row = tree_layout(np.asarray(parent))
        wide = [7.2 * len(w) + 16 for w in words]
        columns = [max(w for w, d in zip(wide, depth) if d == c) for c in range(depth.max() + 1)]
        gap = min(48.0, max(10.0, (still.inner - sum(columns)) / max(1, len(columns) - 1)))
        x = [sum(columns[:d]) + gap * d for d in depth]
        y = [14 + 28 * r for r in row]
        colour = ("ink", "accepted", "rejected", "evicted", "exact")
        q = [*a["q"][first:last].tolist(), float("nan")]
        for i in range(1, len(parent)):
            up = parent[i]
            start, bend = x[up] + wide[up], 0.6 * (x[i] - x[up] - wide[up])
            still.path(
                f"M{start:.1f} {y[up]}C{start + bend:.1f} {y[up]} {x[i] - bend:.1f} {y[i]} {x[i]:.1f} {y[i]}",
                max(y[up], y[i]),
                fill="none",
                stroke=colour[state[i]],
                stroke_width=round(1 + 5 * q[i], 2) if q[i] == q[i] else 1.5,
                stroke_dasharray="2 4" if state[i] == 4 else None,
                opacity=0.5 if state[i] == 3 else 1,
            )
        for i, word in enumerate(words):
            filled = state[i] < 2
            still.rect(
                x[i],
                y[i] - 11,
                wide[i],
                22,
                colour[state[i]] if filled else "paper",
                rx=4 if state[i] == 4 else 11,
                stroke={
                    "ink": "#1c2026",
                    "accepted": "#007f5f",
                    "rejected": "#c4420b",
                    "evicted": "#857c72",
                    "exact": "#26344d",
                }[colour[state[i]]],
                stroke_width=2 if state[i] == 4 else 1.2,
                stroke_dasharray="3 3" if state[i] == 3 else None,
            )
            still.text(
                x[i] + wide[i] / 2, y[i] + 4.5, word, 13, "paper" if filled else colour[state[i]], text_anchor="middle"
            )
