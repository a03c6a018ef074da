"""tutor: learn how large language models are made fast, on a real one.

>>> import tutor
>>> model = tutor.load()                # SmolLM2-135M-Instruct; `tutor fetch` brings it once
>>> model.generate("The capital of France is", max_new=8).text

Importing this package imports neither torch nor anything heavy: names below are looked up when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "load": ("tutor.model.load", "load"),
    "attach": ("tutor.hf", "attach"),
    "catalog": ("tutor.catalog", None),
    "data": ("tutor.data", None),
    "Trace": ("tutor.trace", "Trace"),
    "Cost": ("tutor.cost", "Cost"),
    "Claim": ("tutor.claim", "Claim"),
}

__all__ = ["Claim", "Cost", "Trace", "__version__", "attach", "catalog", "data", "load"]

if TYPE_CHECKING:
    from tutor import catalog, data
    from tutor.claim import Claim
    from tutor.cost import Cost
    from tutor.hf import attach
    from tutor.model.load import load
    from tutor.trace import Trace


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tutor' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
