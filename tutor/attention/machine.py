"""A machine with two memories: a slow one without limit, a fast one of M words; the words between them are counted.

Idea        Arithmetic is cheap, moving is dear. So a machine that can only compute on what lies in its fast memory, and
            that counts every word it moves, says more about an attention kernel than a count of operations.
Rule        `load` copies a tile of slow memory into a named fast buffer, `store` copies a buffer back to slow memory:
            both cost one word per number. `make` places a buffer that is computed where it stands, `free` gives its
            room back: both cost nothing. The buffers together never hold more than M numbers.
Registers   Arithmetic works in place and row after row; the handful of scalars under way is not charged.
See also    tutor.attention.methods.io_model (attention on this machine); tests/attention/test_io_model.py
"""

from __future__ import annotations

from torch import Tensor

from tutor.timeline import Timeline


class Machine:
    """Fast memory of `M` words; `enforce=False` only watches how much would have been needed (`peak`).

    `watch`, a timeline with a lane for each buffer, is told every move; it changes nothing.

    >>> import torch
    >>> machine, x = Machine(8), torch.zeros(5)     # x lies in slow memory
    >>> fast = machine.load("x", x).add_(1)         # a copy in fast memory: x itself is still zero
    >>> machine.store("x", x)                       # now it is one
    >>> machine.words
    10
    """

    def __init__(self, M: int, *, enforce: bool = True, watch: Timeline | None = None):
        if M < 1:
            raise ValueError(f"M must be >= 1 (words of fast memory); got {M}")
        self.M, self.enforce, self.watch = M, enforce, watch
        self.fast: dict[str, Tensor] = {}
        self.loaded = self.stored = self.resident = self.peak = 0

    @property
    def words(self) -> int:
        """Words moved so far, both ways."""
        return self.loaded + self.stored

    def make(self, name: str, tile: Tensor) -> Tensor:
        """Place a computed tile in fast memory as a copy of its own; no word moves between the memories.

        Raises:
            ValueError: the name is taken.
            RuntimeError: the fast memory has no room for it.
        """
        buffer = self._place(name, tile)
        self._tell("made", name, tile.numel())
        return buffer

    def load(self, name: str, tile: Tensor) -> Tensor:
        """Copy a tile of slow memory into a new fast buffer: one word per number."""
        buffer = self._place(name, tile)
        self.loaded += tile.numel()
        self._tell("loaded", name, tile.numel(), f"{name} {_rows(tile)}")
        return buffer

    def store(self, name: str, place: Tensor) -> None:
        """Copy a fast buffer onto a tile of slow memory of the same shape: one word per number."""
        buffer = self._held(name)
        if buffer.shape != place.shape:
            raise ValueError(f"buffer {name!r} has shape {tuple(buffer.shape)}, its place {tuple(place.shape)}")
        place.copy_(buffer)
        self.stored += buffer.numel()
        self._tell("stored", name, buffer.numel())

    def free(self, *names: str) -> None:
        """Forget fast buffers."""
        for name in names:
            self.resident -= self._held(name).numel()
            del self.fast[name]
            self._tell("freed", name)

    def _place(self, name: str, tile: Tensor) -> Tensor:
        if name in self.fast:
            raise ValueError(f"buffer {name!r} is in use; free it first")
        if self.enforce and self.resident + tile.numel() > self.M:
            held = ", ".join(f"{key} {x.numel()}" for key, x in self.fast.items())
            raise RuntimeError(f"buffer {name!r} of {tile.numel()} words does not fit: {self.resident} of M = {self.M} "
                               f"words are held ({held}); free a buffer or cut smaller tiles")
        self.fast[name] = tile.clone()
        self.resident += tile.numel()
        self.peak = max(self.peak, self.resident)
        return self.fast[name]

    def _tell(self, event: str, name: str, words: int = 0, label: str = "") -> None:
        if self.watch is not None:
            kind = "read" if event == "loaded" else "held"
            self.watch.move(event, name, words, level=self.resident, moved=self.words, label=label, kind=kind)

    def _held(self, name: str) -> Tensor:
        if name not in self.fast:
            raise ValueError(f"no buffer {name!r} in fast memory; there are: {', '.join(self.fast) or 'none'}")
        return self.fast[name]


def _rows(tile: Tensor) -> str:
    """Where in slow memory a tile of rows begins and ends: "4" or "4-7"."""
    first = tile.storage_offset() // max(tile.stride(0), 1)
    return str(first) if len(tile) == 1 else f"{first}-{first + len(tile) - 1}"
