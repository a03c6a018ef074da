"""What `tutor doctor` looks at: versions, model, GPU, browser; what is missing and the command that brings it."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import os
import platform
import sys
from typing import Any

CORE = (
    "numpy",
    "torch",
    "plotly",
    "ipywidgets",
    "anywidget",
    "faiss-cpu",
    "safetensors",
    "tokenizers",
    "gguf",
    "numba",
    "jupyterlab",
)
OPTIONAL = {"transformers": "hf", "jupyter-book": "book", "pytest": "dev", "nbval": "dev", "playwright": "dev", "dask": "dask"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def examine() -> list[dict[str, Any]]:
    """Rows `{what, ok, needed, found, remedy}`, most fundamental first."""
    rows: list[dict[str, Any]] = []

    def row(what: str, found: str | None, remedy: str, *, needed: bool = True) -> None:
        rows.append({"what": what, "ok": found is not None, "needed": needed, "found": found or "not found", "remedy": remedy})

    python = platform.python_version()
    row("python", python if sys.version_info >= (3, 11) else None, f"this is {python}; use Python 3.11 or newer")
    row("tutor", _version("tutor-llm"), "make setup  (or: pip install -e . in a checkout)")
    clash = _version("tutor")
    row(
        "no name clash",
        "none" if clash is None else None,
        f"the distribution 'tutor' {clash} (another product) provides the same import and command: use a separate environment",
    )
    for name in CORE:
        row(name, _version(name), "make setup")
    row("triton", _version("triton"), "kernels need triton (Linux); everything else works without it", needed=False)
    for name, extra in OPTIONAL.items():
        row(name, _version(name), f'pip install -e ".[{extra}]"', needed=False)
    row("real model", _model(), "tutor fetch")
    row("sentence encoder", _encoder(), "tutor fetch", needed=False)
    row("CUDA device", _gpu(), "none needed: kernels run in Triton's interpreter", needed=False)
    row("browser", _browser(), "tutor browser", needed=False)
    return rows


def _model() -> str | None:
    from tutor.model.load import available, find

    return str(os.environ.get("TUTOR_MODEL") or find()) if available() else None      # the order of tutor.load


def _encoder() -> str | None:
    from tutor.model.embed import available, home

    return str(home()) if available() else None


def _gpu() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _browser() -> str | None:
    from tutor.browser import find

    return find()
