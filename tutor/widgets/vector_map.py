"""A nearest-neighbour search step by step: the map, the two heaps, the cost. Draws "ann.search/1"."""

from __future__ import annotations

import bisect
from dataclasses import replace

import numpy as np

from tutor.schemas import ANN_KINDS
from tutor.trace import Trace
from tutor.widgets.base import TutorWidget
from tutor.widgets.dials import dial
from tutor.widgets.still import COLOURS, Still

ENTERED, EVALUATED, EXPANDED, OPENED = (
    ANN_KINDS.index(kind) for kind in ("entered", "evaluated", "expanded", "opened_list")
)


def capacity(trace: Trace) -> int:
    """How many results a search holds: its beam, or k where it reads lists."""
    subject = trace.subject
    return subject["k"] if "cell" in trace.arrays else subject.get("ef") or subject["k"]


def heaps_at(trace: Trace, step: int) -> tuple[list[int], list[int]]:
    """Ids of the candidates and of the results held after a step, nearest first, rebuilt from the events."""
    events, most = trace.events, capacity(trace)
    graph = bool((events["kind"] == EXPANDED).any())
    waiting: dict[int, float] = {}
    held: list[tuple[float, int]] = []
    level = events.get("level", np.zeros(len(events["kind"]), int))
    for i in np.flatnonzero((events["step"] <= step) & (level == 0)):
        kind, v = int(events["kind"][i]), int(events["dst"][i])
        if kind == EXPANDED:
            waiting.pop(v, None)
        elif kind in (ENTERED, EVALUATED) and events["accepted"][i]:
            d = float(events["dist"][i])
            if graph:
                waiting[v] = d
            bisect.insort(held, (d, v))
            del held[most:]
    return sorted(waiting, key=lambda v: (waiting[v], v)), [v for _, v in held]


def point_states(trace: Trace, step: int) -> np.ndarray:
    """`(N,)` uint8: 0 never looked at, 1 measured, 2 waiting among the candidates, 3 expanded."""
    events = trace.events
    upto = events["step"] <= step
    if "cell" in trace.arrays and "level" in events:  # the upper level of an inverted file are centres
        upto &= events["level"] == 0
    state = np.zeros(len(trace.arrays["true_dist"]), np.uint8)
    seen = events["dst"][upto & np.isin(events["kind"], (ENTERED, EVALUATED))]
    state[seen[seen >= 0]] = 1
    state[events["dst"][upto & (events["kind"] == EXPANDED)]] = 3
    state[heaps_at(trace, step)[0]] = 2
    return state


def spread(angle: np.ndarray) -> np.ndarray:
    """Angles in the same order round the circle, moved three quarters of the way to equal gaps; ties by index."""
    even = np.empty(len(angle))
    even[np.argsort(angle, kind="stable")] = -np.pi + 2 * np.pi * (np.arange(len(angle)) + 0.5) / max(len(angle), 1)
    return 0.25 * angle + 0.75 * even


def ring_positions(trace: Trace, reach: float) -> np.ndarray:
    """`(N, 2)`: radius by the true distance to the query (at most `reach`), direction in the map's order."""
    dist = trace.arrays["true_dist"].astype(np.float64)
    metric = trace.subject.get("metric")
    if metric == "l2":
        dist = np.sqrt(np.maximum(dist, 0))  # recorded squared
    low = dist.min() - 0.12 * np.ptp(dist)
    low = low if metric == "ip" else max(low, 0.0)
    radius = reach * (dist - low) / max(dist.max() - low, 1e-9)
    gap = trace.arrays["xy"].astype(np.float64) - trace.arrays["query_xy"]
    angle = spread(np.arctan2(gap[:, 1], gap[:, 0]))
    return np.stack([radius * np.cos(angle), -radius * np.sin(angle)], 1)


class VectorMap(TutorWidget):
    """Points, what a search measured, expanded and held, and what it paid. A step is one expanded node or opened list.

    The dial "layout" switches between rings (radius = true distance to the query) and the recorded map; `ef` or
    `nprobe` come as `variants`.
    """

    figure = "vector_map"
    schemas = ("ann.search/1",)

    def _title(self, trace: Trace) -> str:
        query = f" to “{trace.subject['query']}”" if "query" in trace.subject else ""
        return f"The {trace.subject['k']} nearest of {len(trace.arrays['true_dist'])} points{query}"

    def _first_step(self, trace: Trace) -> int:
        return max(trace.steps - 1, 0)

    def _dials(self, dials: list[dict], recorded: list[tuple[dict, Trace]]) -> list[dict]:
        dials = super()._dials(dials, recorded)
        own = dial("layout", "layout", values=["rings", "map"], value="rings")
        return dials if "layout" in [d["name"] for d in dials] else [*dials, own]

    def _show(self, trace: Trace, recorded: list[tuple[dict, Trace]], file: str = "") -> None:
        def slim(found: Trace) -> Trace:
            needed = {"kind", "step", "level", "src", "dst", "dist", "accepted", "n_correct"}
            small = {
                name: a.astype(np.uint16) if name in ("edges", "cell") and len(found.arrays["xy"]) < 2**16 else a
                for name, a in found.arrays.items()
            }
            return replace(found, arrays=small, events={name: c for name, c in found.events.items() if name in needed})

        small = {id(found): slim(found) for found in (trace, *(found for _, found in recorded))}
        super()._show(small[id(trace)], [(when, small[id(found)]) for when, found in recorded], file)

    def _still(self, still: Still, trace: Trace, step: int) -> None:
        size = min(still.inner, 420)
        centre, reach = size / 2, size / 2 - 14
        at = ring_positions(trace, reach) + centre
        state, (candidates, results) = point_states(trace, step), heaps_at(trace, step)
        truth = trace.arrays["truth"].tolist()
        for share in (0.25, 0.5, 0.75, 1.0):
            still.circle(centre, centre, reach * share, "none", stroke=COLOURS["line"])
        for i, (x, y) in enumerate(at.tolist()):
            if state[i] == 0:
                still.circle(x, y, 1.6, "muted", opacity=0.4)
            elif state[i] == 1:
                still.circle(x, y, 3 if i in results else 2.2, "kept" if i in results else "exact")
            else:
                still.path(
                    f"M{x:.1f} {y - 4.4:.1f}l4.4 4.4l-4.4 4.4l-4.4 -4.4Z",
                    y + 5,
                    fill="candidate" if state[i] == 3 else "paper",
                    stroke="candidate",
                    stroke_width=1.5,
                )
        for i in truth:
            x, y = at[i].tolist()
            lost = state[i] == 0 and step == trace.steps - 1
            still.circle(x, y, 7, "none", stroke=COLOURS["rejected" if lost else "accepted"], stroke_width=1.8)
            if state[i]:
                still.circle(x, y, 4, "accepted")
        still.path(f"M{centre - 7} {centre}h14M{centre} {centre - 7}v14", centre + 7, stroke="query", stroke_width=2.6)
        x, y, labels = size + 20, 14.0, trace.subject.get("labels")
        if x + 150 > still.inner:
            x, y = 0, size + 24
        ndist = int(((trace.events["step"] <= step) & (trace.events["kind"] == EVALUATED)).sum())
        found = sum(int(state[i] > 0) for i in truth)
        for line in (
            f"{ndist} of {len(at)} distances",
            f"{found} of {len(truth)} true neighbours",
            f"{len(candidates)} candidates wait",
            f"{len(results)} results held:",
        ):
            still.text(x, y, line, 13)
            y += 20
        for i in results[:10]:
            still.text(
                x,
                y,
                ("◉ " if i in truth else "· ") + (labels[i][:36] if labels else f"point {i}"),
                12,
                "accepted" if i in truth else "muted",
            )
            y += 17
