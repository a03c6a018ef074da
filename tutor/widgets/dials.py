"""Dials: the controls below a figure, described as plain values that `shared.js` draws."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tutor.widgets.pack import plain


def dial(name: str, label: str | None = None, *, values: Iterable | None = None, min: float | None = None,
         max: float | None = None, step: float = 1, value: Any = None, kind: str | None = None, mode: str = "static",
         unit: str = "", note: str = "", labels: Iterable[str] | None = None) -> dict:
    """One control below a figure. `kind` is "slider", "select", "segments" (few choices side by side) or "toggle".

    `labels` are the texts shown in place of `values`. Left out, `kind` follows from the rest: a toggle for no values, a
    slider for numbers, else segments or select.
    """
    values = list(values) if values is not None else None
    if kind is None:
        if values is None:
            kind = "toggle" if min is None else "slider"
        elif all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            kind = "slider"
        else:
            kind = "segments" if len(values) <= 4 else "select"
    if kind not in ("slider", "select", "segments", "toggle"):
        raise ValueError(f"dial {name!r}: kind must be slider, select, segments or toggle; got {kind!r}")
    if mode not in ("static", "live"):
        raise ValueError(f"dial {name!r}: mode must be 'static' or 'live'; got {mode!r}")
    if kind == "toggle":
        values = [False, True]
    if values is None and (min is None or max is None):
        raise ValueError(f"dial {name!r}: give values=[…], or min= and max=")
    if value is None:
        value = values[0] if values is not None else min
    if values is not None and value not in values:
        raise ValueError(f"dial {name!r}: value must be one of {values}; got {value!r}")
    found = {"name": name, "label": label or name, "kind": kind, "value": value, "mode": mode}
    found |= {"unit": unit, "note": note}
    if labels is not None:
        found["labels"] = list(labels)
        if values is None or len(found["labels"]) != len(values):
            raise ValueError(f"dial {name!r}: labels must be one text per value; got {found['labels']} for {values}")
    found |= {"values": values} if values is not None else {"min": min, "max": max, "step": step}
    return plain(found)
