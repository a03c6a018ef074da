"""Predictions and exercises, checked in the notebook: no account, no server, no stored answers.

A *prediction* is asked before a figure is shown and judged by what was measured. An *exercise* is checked by a function
that recomputes the truth from a trace or a reference; its hints come one after another.

>>> task = exercise("Add 2 and 3.", check=lambda answer: answer == 5, hints=["Count on from 2.", "It is 5."])
>>> task.check(...)
Not answered yet. `task.hint()` gives the first of 2 hints.
False
>>> task.check(4)
Not yet. `task.hint()` gives the first of 2 hints.
False
>>> task.check(5)
Right.
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

RECORD: list[dict[str, Any]] = []       # what was answered in this session, in order: `scores()` reads it


class Exercise:
    """A question with a check and layered hints; `check(...)` (the Ellipsis) means "not answered yet" and never fails a run."""

    def __init__(self, question: str, check: Callable[[Any], bool | str], hints: Sequence[str] = ()):
        if not callable(check):
            raise ValueError(f"check must be a function of the answer; got {check!r}")
        self.question, self._check, self._hints, self._given = question, check, list(hints), 0

    def hint(self) -> None:
        """Print the next hint."""
        if self._given >= len(self._hints):
            print("No more hints." if self._hints else "This exercise has no hints.")
            return
        print(f"Hint {self._given + 1} of {len(self._hints)}: {self._hints[self._given]}")
        self._given += 1

    def check(self, answer: Any = ...) -> bool:
        """Print the judgement and return it. A check may return a sentence instead of False: it is shown."""
        left = len(self._hints) - self._given
        order = "first" if self._given == 0 else "next"
        offer = f" `task.hint()` gives the {order} of {left} hint{'s' if left > 1 else ''}." if left else ""
        if answer is ...:
            print(f"Not answered yet.{offer}")
            return False
        verdict = self._check(answer)
        right = verdict is True or (not isinstance(verdict, str) and bool(verdict))
        RECORD.append({"question": self.question, "right": right, "hints": self._given})
        print("Right." if right else (verdict if isinstance(verdict, str) else "Not yet.") + offer)
        return right

    def __repr__(self) -> str:
        return f"Exercise: {self.question}"

    def _repr_markdown_(self) -> str:
        return f"**Exercise.** {self.question}"


def exercise(question: str, *, check: Callable[[Any], bool | str], hints: Sequence[str] = ()) -> Exercise:
    """An `Exercise`; see the module docstring."""
    return Exercise(question, check, hints)


def predict(question: str, choices: Sequence[str], *, answer: int, because: str):
    """Ask before showing: a small widget with the choices; choosing one reveals the measured answer.

    Args:
        question: one concrete question about a figure that comes next.
        choices: two to five short texts.
        answer: index of the right one, *computed* from a trace or a measurement in the same cell.
        because: the sentence revealed with it, holding the measured number.
    """
    from tutor.widgets.predict import Predict

    return Predict(question=question, choices=list(choices), answer=answer, because=because)
