"""A planted bug: one exact replacement in one file, and the tests that must turn red."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old` occurs exactly once in `file` (path from the root); `tests` is a pytest selection, fast and green without the bug."""

    name: str
    file: str
    old: str
    new: str
    tests: str
