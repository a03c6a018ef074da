"""A planted bug: one exact edit of the source that named tests must catch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One plausible mistake.

    Attributes:
        name: what went wrong, in words.
        file: path of the source, relative to the root of the project.
        old: text that occurs exactly once in it; new: what the mistake makes of it.
        tests: pytest selection that must go red.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
