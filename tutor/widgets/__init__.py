"""Figures: each draws one kind of trace, in JupyterLab and on a static page, with the same ES module.

Importing this package is cheap; a widget class is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "TokenStrip": "token_strip",
    "AttentionGrid": "attention_grid",
    "Frontier": "frontier",
    "HeadBrowser": "head_browser",
    "CacheShelf": "cache_shelf",
    "TokenTree": "token_tree",
    "VectorMap": "vector_map",
    "Timeline": "timeline",
    "TutorWidget": "base",
    "dial": "dials",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'tutor.widgets' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"tutor.widgets.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
