"""What each KV head still holds while a text is read. Draws "kvcache.evict/1"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tutor.trace import Trace
from tutor.widgets.base import TutorWidget
from tutor.widgets.dials import dial
from tutor.widgets.still import Still


def shelf_row(appended_at: np.ndarray, evicted_at: np.ndarray, step: int) -> np.ndarray:
    """One head at one step, `(S,)` uint8: 0 not yet arrived, 1 held, 2 held and new, 3 evicted, 4 evicted now."""
    gone = (evicted_at >= 0) & (evicted_at <= step)
    row = np.where(gone, np.where(evicted_at == step, 4, 3), np.where(appended_at == step, 2, 1))
    return np.where(appended_at > step, 0, row).astype(np.uint8)


def slim(trace: Trace) -> Trace:
    """The trace without what the figure does not draw: no events (`evicted_at` says the same), 16 bits where they do.

    Raises:
        ValueError: the events tell another story than `evicted_at`.
    """
    arrays = trace.arrays
    told = np.bincount(trace.of_kind("evicted")["step"], minlength=trace.steps)
    drawn = np.bincount(arrays["evicted_at"][arrays["evicted_at"] >= 0], minlength=trace.steps)
    if not np.array_equal(told, drawn):
        step = int(np.flatnonzero(told != drawn)[0])
        raise ValueError(
            f"evicted_at has {drawn[step]} rows leaving at step {step}, the events {told[step]}; "
            "record both for the layers named in `layers`, and nothing else"
        )
    short = np.int16 if trace.steps < 2**15 else np.int32
    small = {
        name: array.astype(short) if name in ("appended_at", "evicted_at") else array for name, array in arrays.items()
    }
    return replace(
        trace,
        arrays=small,
        events={name: column[:0] for name, column in trace.events.items() if name in ("kind", "step")},
    )


def _cells(states: np.ndarray, codes: tuple[int, ...], w: float, top: float, bottom: float) -> str:
    """SVG path of a box for each token in one of these states, `w` apart."""
    wide = max(w - 0.7, 0.4)
    return "".join(
        f"M{i * w:.1f} {top:.1f}h{wide:.1f}V{bottom:.1f}h{-wide:.1f}Z" for i in np.flatnonzero(np.isin(states, codes))
    )


class CacheShelf(TutorWidget):
    """The text as one layer remembers it, a shelf per KV head, its whole history, measured bytes and loss.

    A step is one forward pass. Dials "layer" (when more than one was recorded) and "fold" (leave out runs of forgotten
    words) are the figure's own; policies come as `variants` recorded on one text.
    """

    figure = "cache_shelf"
    schemas = ("kvcache.evict/1",)
    speaks = "js"

    def _title(self, trace: Trace) -> str:
        return "What each head still holds"

    def _first_step(self, trace: Trace) -> int:
        return int(0.72 * (trace.steps - 1))

    def _dials(self, dials: list[dict], recorded: list[tuple[dict, Trace]]) -> list[dict]:
        dials = super()._dials(dials, recorded)
        names = [d["name"] for d in dials]
        layers = [int(x) for x in self._layers]
        own = (
            [dial("layer", "layer", values=layers, kind="segments" if len(layers) <= 6 else "slider")]
            if len(layers) > 1
            else []
        )
        own.append(dial("fold", "fold forgotten text", value=True))
        return dials + [d for d in own if d["name"] not in names]

    def __init__(self, trace: Trace | None = None, *, variants: Any = (), **rest: Any):
        variants = list(variants)
        shown = [found for found in (trace, *(found for _, found in variants)) if found is not None]
        for found in shown:
            self._check(found)
        self._layers = shown[0].arrays["layers"] if shown else ()
        for found in shown:
            if not np.array_equal(found.arrays["layers"], self._layers):
                raise ValueError(
                    f"variants must show the same layers; got {found.arrays['layers'].tolist()} beside "
                    f"{np.asarray(self._layers).tolist()}. Record them again for one list of layers."
                )
        super().__init__(trace, variants=variants, **rest)

    def _show(self, trace: Trace, recorded: list[tuple[dict, Trace]], file: str = "") -> None:
        small = {id(found): slim(found) for found in (trace, *(found for _, found in recorded))}
        super()._show(small[id(trace)], [(when, small[id(found)]) for when, found in recorded], file)

    def _still(self, still: Still, trace: Trace, step: int) -> None:
        a = trace.arrays
        layers = a["layers"].tolist()
        layer = layers.index(self.settings["layer"]) if self.settings.get("layer") in layers else 0
        S, tall, y = len(a["appended_at"]), 56, 0.0
        w = still.inner / S
        for head, row in enumerate(a["evicted_at"][layer]):
            states = shelf_row(a["appended_at"], row, step)
            held = int(np.isin(states, (1, 2)).sum())
            seen = int((states > 0).sum())
            still.text(0, y + 12, f"layer {layers[layer]}, head {head}: holds {held} of {seen}", 12, "muted")
            y += 18
            still.path(_cells(states, (1, 2), w, y, y + 14), y + 14, fill="kept")
            gone = _cells(states, (3, 4), w, y + 11, y + 14)
            still.path(gone, y + 14, fill="none", stroke="evicted", stroke_width=0.6)
            y += 19
            end = np.where(row < 0, trace.steps, row)
            for past, opacity in ((True, 1.0), (False, 0.2)):
                cut = step + 1
                start = a["appended_at"] if past else np.maximum(a["appended_at"], cut)
                stop = np.minimum(end, cut) if past else end
                at = lambda t, y=y: y + tall * t / trace.steps
                lives = np.flatnonzero(stop > start)
                lines = "".join(f"M{(i + 0.5) * w:.1f} {at(start[i]):.1f}V{at(stop[i]):.1f}" for i in lives)
                still.path(lines, y + tall, fill="none", stroke="kept", stroke_width=max(w - 0.3, 0.5), opacity=opacity)
            still.line(0, y + tall * (step + 1) / trace.steps, still.inner, y + tall * (step + 1) / trace.steps, "ink")
            y += tall + 8
        still.text(0, y + 10, "position in the text →   time ↓", 11, "muted")
        still.text(0, y + 28, f"cache, measured: {a['nbytes'][step] / 1024:.0f} kB", 12)
