"""Traces as JavaScript reads them: headers of plain JSON and one buffer that holds every array once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tutor.trace import Trace


def plain(value: Any) -> Any:
    """JSON values only: NumPy scalars become numbers; NaN and infinities, which JSON lacks, become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _storable(array: np.ndarray) -> np.ndarray:
    """An array in a type JavaScript reads: 64-bit integers shrink to int32 where they fit, else become float64."""
    array = np.asarray(array)
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array, np.uint8)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        bound = np.iinfo(np.int32)
        fits = array.size == 0 or (array.min() >= bound.min and array.max() <= bound.max)
        return np.ascontiguousarray(array, np.int32 if fits else np.float64)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of dtype {array.dtype} cannot be drawn; record numbers "
                         "(texts belong in trace.subject)")
    return np.ascontiguousarray(array)


def pack(traces: Iterable[Trace]) -> tuple[list[dict], bytes]:
    """Headers (JSON) and one buffer (each array aligned to 8 bytes, equal arrays stored once) of some traces.

    In the headers after the first, entries of `subject` equal to the first's are left out.
    """
    headers, chunks, places, size = [], [], {}, 0
    for trace in traces:
        header = plain(trace.header())
        for group, arrays in (("arrays", trace.arrays), ("events", trace.events)):
            header[group] = {}
            for name, array in arrays.items():
                array = _storable(array)
                raw = array.tobytes()
                key = (hashlib.sha256(raw).digest(), array.dtype.str)
                if key not in places:
                    places[key] = size
                    padded = raw + b"\0" * (-len(raw) % 8)
                    chunks.append(padded)
                    size += len(padded)
                header[group][name] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": places[key]}
        if headers:
            first = headers[0]["subject"]
            own = {k: v for k, v in header["subject"].items() if k not in first or first[k] != v}
            header["subject"] = own | {k: None for k in first if k not in header["subject"]}
        headers.append(header)
    return headers, b"".join(chunks)


def unpack(header: dict, buffer: bytes) -> dict[str, dict[str, np.ndarray]]:
    """The arrays and events of one header, for tests and for reading a figure back."""
    def view(place: dict) -> np.ndarray:
        count = math.prod(place["shape"])
        return np.frombuffer(buffer, place["dtype"], count, place["offset"]).reshape(place["shape"])
    return {group: {name: view(place) for name, place in header[group].items()} for group in ("arrays", "events")}
