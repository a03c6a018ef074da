"""Triton kernels: the methods of this package made fast, each proved against its reference.

On a GPU they are compiled. Without one they run in Triton's interpreter: the same source, thread block by thread block
in Python, slow but exact enough to test. The interpreter is chosen by the environment variable TRITON_INTERPRET, which
Triton reads while it is being imported; so this file sets it, before anything here imports Triton.
Where Triton is not installed (macOS, Windows) everything but the kernels works, and the kernels say so.

Importing this package is light: a kernel's file is imported when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys

_PLAIN = ("graph_search", "roofline")       # need no Triton: compiled by Numba for the CPU, and arithmetic only
_KERNELS = tuple(sorted(file.name for file in pkgutil.iter_modules(__path__) if file.name != "roofline"))

__all__ = ["available", "interpreted", "require", *_KERNELS, "roofline"]


def available() -> bool:
    """Whether Triton is installed."""
    if "triton" in sys.modules:
        return sys.modules["triton"] is not None
    try:
        return importlib.util.find_spec("triton") is not None
    except ImportError:
        return False


def require() -> None:
    """Raise `RuntimeError` with the remedy unless kernels can run here."""
    if not available():
        raise RuntimeError(f"kernels need Triton, which is not installed on this machine ({sys.platform}). On Linux: "
                           "`pip install triton`; elsewhere there is none: use the references in tutor.attention, "
                           "which compute the same. Everything but tutor.kernels works without it.")
    _choose_mode()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (no GPU, or TRITON_INTERPRET=1) and not compiled."""
    require()
    import triton.language as tl

    return type(tl.zeros).__name__ == "InterpretedFunction"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _choose_mode() -> None:
    """Without a GPU, make Triton interpret; refuse if it was imported, compiling, before we could say so."""
    if not available() or _has_gpu():
        return
    if "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")
        return
    from triton.language import zeros  # a function of Triton itself shows the mode it was imported in

    if type(zeros).__name__ != "InterpretedFunction":
        raise RuntimeError("Triton was imported before tutor.kernels, ready to compile, and there is no GPU to compile "
                           "for (transformers imports it, for one). Restart Python and either set TRITON_INTERPRET=1 "
                           "first or import tutor.kernels before the other library; `tutor lab` sets it for you.")


_choose_mode()


def __getattr__(name: str):
    if name in __all__:
        if name not in _PLAIN:
            require()
        return importlib.import_module(f"tutor.kernels.{name}")
    raise AttributeError(f"module 'tutor.kernels' has no attribute {name!r}; kernels: {', '.join(_KERNELS)}")


def __dir__() -> list[str]:
    return sorted(__all__)
