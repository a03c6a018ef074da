"""A prediction: a question, its choices, and the measured answer, revealed once the reader has chosen."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets as t

from tutor.widgets.base import module_source, style_source

HERE = Path(__file__).parent


class Predict(anywidget.AnyWidget):
    """Ask before showing. Works without a kernel: the answer travels with the question, hidden until a choice is made.

    Raises:
        ValueError: fewer than two choices, or `answer` is not the index of one.
    """

    _esm = module_source("predict")
    _css = style_source("predict")

    question = t.Unicode().tag(sync=True)
    choices = t.List(t.Unicode()).tag(sync=True)
    answer = t.Int(0).tag(sync=True)
    because = t.Unicode().tag(sync=True)
    chosen = t.Int(-1).tag(sync=True)

    def __init__(self, *, question: str, choices: list[str], answer: int, because: str, **traits):
        if len(choices) < 2:
            raise ValueError(f"choices must be at least two; got {choices}")
        if not 0 <= answer < len(choices):
            raise ValueError(f"answer must be the index of a choice, 0 to {len(choices) - 1}; got {answer}")
        super().__init__(question=question, choices=choices, answer=int(answer), because=because, **traits)
        self.observe(self._record, "chosen")

    def _record(self, change) -> None:
        from tutor.exercises import RECORD

        if change["old"] == -1 and change["new"] >= 0:      # only the first choice counts
            RECORD.append({"question": self.question, "right": change["new"] == self.answer, "hints": 0})

    def __repr__(self) -> str:
        return f"Predict: {self.question} " + " / ".join(self.choices)

    def _repr_mimebundle_(self, **kwargs):
        found = super()._repr_mimebundle_(**kwargs)
        if found is not None:
            found[0]["text/plain"] = repr(self)
        return found
