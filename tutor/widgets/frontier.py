"""Cost against quality, one line per method. Draws "frontier/1"."""

from __future__ import annotations

import numpy as np

from tutor.trace import Trace
from tutor.widgets.base import TutorWidget
from tutor.widgets.dials import dial
from tutor.widgets.still import Still

# The light series colours of frontier.css, in order.
SERIES = ("#0072b2", "#c4420b", "#007f5f", "#b0528a", "#a86d00", "#26344d", "#2280bf", "#6a3fa0")


def best_points(x: np.ndarray, y: np.ndarray, better: str = "high") -> np.ndarray:
    """1 for the points that no other point beats: none is at most as dear and at least as good, and better in one."""
    gain = -y if better == "low" else y
    beaten = ((x[None] <= x[:, None]) & (gain[None] >= gain[:, None])
              & ((x[None] < x[:, None]) | (gain[None] > gain[:, None]))).any(1)
    return (~beaten).astype(np.uint8)


class Frontier(TutorWidget):
    """Lines with points and 95 % bars; a step is one series. `selection` holds the chosen point, for linked figures:
    `{"series", "name", "point", "x", "y"}`, where `point` counts the points of the trace."""

    figure = "frontier"
    schemas = ("frontier/1",)

    def _title(self, trace: Trace) -> str:
        return trace.subject.get("title") or f"{trace.subject['y_label']} against {trace.subject['x_label']}"

    def _own_dials(self, trace: Trace) -> list[dict]:
        found = []
        for name, label in (("log_x", "logarithmic cost axis"), ("log_y", "logarithmic quality axis")):
            values = trace.arrays[name[-1]]
            if len(values) and values.min() > 0:
                wide = float(values.max() / values.min())
                if wide > 4 and (name == "log_x" or trace.subject.get("better") == "low"):
                    found.append(dial(name, label, value=wide > (30 if name == "log_x" else 300)))
        return found

    def _still(self, still: Still, trace: Trace, step: int) -> None:
        a, subject = trace.arrays, trace.subject
        log = {axis: bool(self.settings.get(f"log_{axis}")) for axis in "xy"}
        place = {"x": (52.0, still.inner - 140), "y": (270.0, 24.0)}

        def at(axis: str, value: float) -> float:
            values = np.concatenate([a["lo"], a["hi"]]) if axis == "y" else a["x"]
            scale = np.log10 if log[axis] else float
            values = values[values > 0] if log[axis] else values
            low, high = float(scale(values.min())), float(scale(values.max()))
            pad, (start, end) = 0.05 * (high - low or 1), place[axis]
            value = float(scale(max(value, values.min()) if log[axis] else value))
            return start + (end - start) * (value - low + pad) / (high - low + 2 * pad)

        still.line(52, 270, still.inner - 140, 270, "muted")
        still.text(0, 10, f"{subject['y_label']} ({subject.get('better', 'high')}er is better)", 11, "muted")
        still.text(still.inner - 140, 300, subject["x_label"], 11, "muted", text_anchor="end")
        for axis, anchor in (("x", "middle"), ("y", "end")):
            for value in (a[axis].min(), a[axis].max()):
                x, y = (at("x", value), 285) if axis == "x" else (46, at("y", value) + 4)
                still.text(x, y, f"{value:.3g}", 11, "muted", text_anchor=anchor)
        ends = []
        for s, name in enumerate(subject["names"]):
            mine = np.flatnonzero(a["series"] == s)
            if not len(mine):
                continue
            mine, colour = mine[np.argsort(a["x"][mine], kind="stable")], SERIES[s % len(SERIES)]
            points = [(at("x", float(a["x"][i])), at("y", float(a["y"][i]))) for i in mine]
            still.path("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), 270, fill="none", stroke=colour,
                       stroke_width=2.2 if s == step else 1.3)
            for (x, y), i in zip(points, mine):
                still.line(x, at("y", float(a["lo"][i])), x, at("y", float(a["hi"][i])), colour)
                still.circle(x, y, 3, colour)
            ends.append((points[-1][1], sum(y for _, y in points) / len(points), name, colour))
        below = -20.0
        for y, _, name, colour in sorted(ends):
            below = max(y, below + 16)
            still.text(still.inner - 128, below + 4, name, 12, colour)
