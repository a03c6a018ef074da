"""Recorded captures, traces and small trained parts that ship with the package."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutor.model.capture import Capture


def path(*parts: str) -> Path:
    """Path of a shipped data file: `path("ann", "docstrings_2k.json")`.

    Looked for in `TUTOR_DATA`, beside the package in a checkout, then in the installed `share/tutor/data`.

    Raises:
        ValueError: the file is in none of them.
    """
    places = [Path(p) for p in (os.environ.get("TUTOR_DATA"),) if p]
    places += [Path(__file__).resolve().parent.parent / "data", Path(sys.prefix) / "share" / "tutor" / "data"]
    for place in places:
        candidate = place.joinpath(*parts)
        if candidate.exists():
            return candidate
    raise ValueError(f"data file {'/'.join(parts)!r} is not in {', '.join(map(str, places))}; "
                     "reinstall tutor, or set TUTOR_DATA to the data folder of a checkout")


def notebooks() -> Path:
    """The folder of lessons: `TUTOR_NOTEBOOKS` (a copy of your own), beside the package in a checkout, else the installed one."""
    places = [Path(p) for p in (os.environ.get("TUTOR_NOTEBOOKS"),) if p]
    places += [Path(__file__).resolve().parent.parent / "notebooks", Path(sys.prefix) / "share" / "tutor" / "notebooks"]
    for place in places:
        if (place / "00_start_here.ipynb").is_file():
            return place
    raise ValueError("the notebooks are not installed; reinstall tutor, or run from a checkout")


def capture(name: str = "reference_4096") -> Capture:
    """A recorded capture: real queries, keys and values of a few layers; see `tutor.model.capture`.

    "reference_4096": layers 2 (diffuse), 20 (retrieving) and 25 (sinks) of the shared model on the first 4 096 tokens
    of the Python language reference.
    """
    from tutor.model.capture import Capture

    return Capture.load(path("captures", name))


def result(name: str) -> dict:
    """A recorded benchmark with its date: `result("attention-frontier")` is benchmarks/results/attention-frontier.json.

    Raises:
        ValueError: nobody has recorded it here; the message names the folders.
    """
    import json

    places = [Path(__file__).resolve().parent.parent / "benchmarks" / "results", Path(sys.prefix) / "share" / "tutor" / "results"]
    for place in places:
        if (place / f"{name}.json").is_file():
            return json.loads((place / f"{name}.json").read_text(encoding="utf-8"))
    raise ValueError(f"no recorded result {name!r} in {', '.join(map(str, places))}; the scripts in benchmarks/ write them")
