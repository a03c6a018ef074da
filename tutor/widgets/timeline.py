"""Who works when, what waits for whom, how full a memory is. Draws "timeline/1"."""

from __future__ import annotations

import numpy as np

from tutor.schemas import INTERVALS, timeline_busy
from tutor.trace import Trace
from tutor.widgets.base import TutorWidget
from tutor.widgets.still import Still, mix, text_width

# The light group colours of timeline.css, in order.
GROUPS = ("#0072b2", "#c4420b", "#007f5f", "#b0528a", "#a86d00", "#26344d", "#2280bf", "#6a3fa0")
WORDS = tuple(INTERVALS)


def colours_by_group(trace: Trace) -> bool:
    """Whether an interval takes its colour from its group or from its kind."""
    return (trace.subject.get("colour") or ("group" if (trace.arrays["group"] >= 0).any() else "kind")) == "group"


def busy_profile(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Times and, from each on, the number of intervals that are busy."""
    a = trace.arrays
    busy = np.array([INTERVALS[word][2] for word in WORDS])[a["kind"]] & (a["end"] > a["start"])
    at, turn = np.unique(np.concatenate([[0], a["start"][busy], a["end"][busy]]), return_inverse=True)
    change = np.concatenate([[0], np.ones(busy.sum()), -np.ones(busy.sum())])
    return at, np.cumsum(np.bincount(turn, change, len(at))).astype(int)


def hatching(x: float, y: float, w: float, h: float, gap: float, way: int) -> str:
    """SVG path of slanted lines inside a box; `way` 1 rises to the right, -1 falls."""
    out = []
    for c in np.arange(gap / 2, w + h, gap):                       # the line u + v = c, inside 0..w and 0..h
        u0, u1 = max(0.0, c - h), min(w, c)
        v0, v1 = (c - u0, c - u1) if way > 0 else (h - c + u0, h - c + u1)
        out.append(f"M{x + u0:.1f} {y + v0:.1f}L{x + u1:.1f} {y + v1:.1f}")
    return "".join(out)


class Timeline(TutorWidget):
    """Lanes and intervals against time, with the busy lanes (or the words held) below.

    A step is one moment: the playhead stands there, and what is still to come is faint. `selection` holds the chosen
    interval, for linked figures: `{"interval", "group", "lane"}`. Record with `tutor.timeline.Timeline`.
    """

    figure = "timeline"
    schemas = ("timeline/1",)
    speaks = "js"

    def _title(self, trace: Trace) -> str:
        return f"{trace.method}: what each {trace.subject['lane_word']} {'holds' if 'level' in trace.arrays else 'does'}"

    def _first_step(self, trace: Trace) -> int:
        """A schedule opens when all is done, a memory where it is fullest."""
        if "level" not in trace.arrays:
            return trace.steps - 1
        fullest = np.flatnonzero(trace.arrays["level"] == trace.arrays["level"].max())
        return int(fullest[len(fullest) // 2])

    def _still(self, still: Still, trace: Trace, step: int) -> None:
        a, s = trace.arrays, trace.subject
        lanes, level = s["lanes"], "level" in a
        now = float(a["time"][step]) + level
        whole = max(float(a["end"].max()), float(a["time"][-1]) + level) or 1.0
        tall = min(22.0, max(1.0, 420 / len(lanes)))
        gutter = min(130.0, max(text_width(name, 11) for name in lanes) + 10)
        wide = still.inner - gutter - 14
        x = lambda t: gutter + wide * float(t) / whole
        still.rect(gutter, 0, wide, tall * len(lanes), "soft")
        for i in range(0, len(lanes), int(np.ceil(13 / tall))):
            still.text(gutter - 6, tall * (i + 0.5) + 4, lanes[i], 11, "muted", text_anchor="end")
        drawn, boxes = set(), []
        for i in range(len(a["lane"])):
            left, right = x(a["start"][i]), x(a["end"][i])
            cell = (int(a["lane"][i]), round(2 * left), round(2 * right))
            if cell not in drawn:                                  # finer than half a pixel: already there
                drawn.add(cell)
                top, w, h, cut = tall * float(a["lane"][i]), max(right - left - 1, 0.6), max(tall - 1, 0.8), x(now) - left
                if cut < w:                                        # to come, or partly
                    self._box(still, trace, i, (left, top, w, h), False)
                if cut > 0:
                    self._box(still, trace, i, (left, top, min(w, cut), h), True)
                boxes.append((i, (left, top, w, h), cut))
        for i, j in a.get("arrows", ())[:120]:
            far = a["start"][j] if a["start"][j] >= a["end"][i] - 1e-6 else max(a["end"][i], a["end"][j])
            (x1, y1), (x2, y2) = (x(a["end"][i]), tall * (a["lane"][i] + 0.5)), (x(far), tall * (a["lane"][j] + 0.5))
            still.path(f"M{x1:.1f} {y1:.1f}C{x1 + 9:.1f} {y1:.1f} {x2 + 9:.1f} {y2:.1f} {x2:.1f} {y2:.1f}", max(y1, y2),
                       fill="none", stroke=mix("ink", 0.8 if a["end"][i] <= now else 0.3))
            still.circle(x2, y2, 2, mix("ink", 0.8))
        for i, box, cut in boxes:
            self._label(still, trace, i, box, cut)

        floor = tall * len(lanes)
        base = floor + 72
        still.text(gutter, floor + 14, "0", 11, "muted")
        still.text(gutter + wide, floor + 14, f"{whole:g} {s['unit']}", 11, "muted", text_anchor="end")
        at, values = (a["time"], a["level"]) if level else busy_profile(trace)
        limit = s.get("capacity") if level else len(lanes)
        high = max(float(np.max(values)), float(limit or 0)) or 1.0
        y = lambda v: base - 42 * float(v) / high
        ends = [*at[1:], whole]
        line = "L".join(f"{x(t):.1f} {y(v):.1f}L{x(end):.1f} {y(v):.1f}" for t, v, end in zip(at, values, ends))
        still.path(f"M{line}V{base:.1f}H{gutter:.1f}Z", base, fill=mix("kept", 0.16))
        still.path(f"M{line}", base, fill="none", stroke="kept", stroke_width=1.5)
        if limit:
            still.line(gutter, y(limit), gutter + wide, y(limit), "rejected", stroke_dasharray="4 3")
        still.line(x(now), -3, x(now), base, "ink")
        told = f"busy {100 * timeline_busy(trace) / (len(lanes) * whole):.0f} % of the time"
        if level:
            told = f"{a['level'][step]:g} held" + (f", {a['moved'][step]:g} moved" if "moved" in a else "")
        named = s.get("level_label", "words in fast memory") if level else f"busy {s['lane_word']}s"
        still.text(gutter, floor + 28, named, 11, "muted")
        still.text(gutter + wide, floor + 28, told, 11, "ink", text_anchor="end")

    def _box(self, still: Still, trace: Trace, i: int, box: tuple[float, float, float, float], done: bool) -> None:
        """One interval: its colour, its pattern where there is room for one, its outline and its label."""
        a, (left, top, w, h) = trace.arrays, box
        name, pattern, _ = INTERVALS[WORDS[a["kind"][i]]]
        group = int(a["group"][i])
        strong = name if not colours_by_group(trace) else "muted" if group < 0 else GROUPS[group % len(GROUPS)]
        tone, plain = mix(strong, 1 if done else 0.25), pattern == "fill" or min(w, h) < 5
        if pattern == "hollow" and not plain:
            still.rect(left + 0.5, top + 0.5, w - 1, h - 1, "soft", stroke=tone)
        else:
            still.rect(left, top, w, h, tone if plain else mix(strong, 0.3 if done else 0.12))
        paths = {"hatch": (1,), "back": (-1,), "cross": (1, -1)}.get(pattern, ())
        path = "".join(hatching(left, top, w, h, 6, way) for way in paths)
        if pattern == "bars":
            path = "".join(f"M{u:.1f} {top:.1f}v{h:.1f}" for u in np.arange(left + 2, left + w, 5))
        if pattern == "dots":
            path = "".join(f"M{u:.1f} {v:.1f}h.1" for u in np.arange(left + 3, left + w, 5)
                           for v in np.arange(top + 3, top + h, 5))
        if path and not plain:
            dots = {"stroke_width": 3, "stroke_linecap": "round"} if pattern == "dots" else {"stroke_width": 2}
            still.path(path, top + h, fill="none", stroke=tone, **dots)
        if "marked" in a and a["marked"][i] and min(w, h) >= 4:
            still.rect(left + 0.7, top + 0.7, w - 1.4, h - 1.4, "none", stroke=mix("ink", 1 if done else 0.3), stroke_width=1.4)

    def _label(self, still: Still, trace: Trace, i: int, box: tuple[float, float, float, float], cut: float) -> None:
        """The words inside an interval, on a patch of paper unless its ground is plain; `cut` is how much of it is done."""
        s, (left, top, w, h), group = trace.subject, box, int(trace.arrays["group"][i])
        plain = INTERVALS[WORDS[trace.arrays["kind"][i]]][1] == "fill"
        texts = [s["labels"][i]] if s.get("labels") else []
        texts += [s["groups"][group], str(group)] if s.get("groups") and group >= 0 and plain else []
        text = next((text for text in texts if text and text_width(text, 10) < w - 6), "")
        if text and h > 11:
            wide = text_width(text, 10) + 5
            split = 0 < cut < wide + 2
            if not plain or split:
                still.rect(left + 2, top + 2, wide, h - 4, "paper")
            still.text(left + 4, top + h / 2 + 3.5, text, 10, "paper" if plain and cut > 0 and not split else "ink")
