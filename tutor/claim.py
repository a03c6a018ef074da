"""Claim: one sentence of a paper, an experiment that measures it here, and the verdict it must keep giving.

A claim is not a test of our code but of the paper's sentence at our scale: it may hold, hold in part, or not hold
here, and each is a finding. What is not allowed is drift: the stored verdict and the interval of every number are
checked again by `make test-all` (three of them, rotating, by `.ci/run`), and a measurement outside fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

VERDICTS = ("holds", "in_part", "not_here", "unmeasured")


@dataclass(frozen=True)
class Number:
    """A measured quantity's allowed interval `[low, high]` with its unit."""

    low: float
    high: float
    unit: str = ""

    def __post_init__(self):
        if not self.low <= self.high:
            raise ValueError(f"interval is empty: low={self.low} > high={self.high}")


@dataclass(frozen=True)
class Expected:
    """What was measured when the claim was written: verdict, intervals, day and machine class."""

    verdict: str
    numbers: dict[str, Number]
    date: str = ""
    commit: str = ""
    machine: str = ""

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {VERDICTS}; got {self.verdict!r}")


@dataclass(frozen=True)
class Measured:
    """What an experiment returns: a verdict it derived from its numbers, the numbers, and one sentence for the card."""

    verdict: str
    numbers: dict[str, float]
    sentence: str


@dataclass(frozen=True)
class Claim:
    """A paper's sentence and its experiment.

    Attributes:
        id: `method.what-is-said`, e.g. `h2o.keeps-perplexity-at-half`.
        family, method: catalog names.
        paper_says: the sentence, in our words.
        where: section, table or figure of the paper.
        experiment: measures on the real model (or, where the claim is arithmetic, on the algorithm) in seconds to a minute.
        expected: stored verdict and intervals; `unmeasured` never counts as done.
        stops: where the claim stops being true, in one sentence.
        needs: "model", "capture" or "" (nothing beyond the package).
    """

    id: str
    family: str
    method: str
    paper_says: str
    where: str
    experiment: Callable[[], Measured]
    expected: Expected
    stops: str = ""
    needs: str = "model"

    @property
    def status(self) -> str:
        return self.expected.verdict

    def measure(self) -> Measured:
        return self.experiment()

    def check(self) -> Measured:
        """Measure again and compare with what is stored.

        Raises:
            AssertionError: verdict or a number left its stored value; the message gives both.
        """
        found = self.measure()
        problems = []
        if found.verdict != self.expected.verdict:
            problems.append(f"verdict is {found.verdict!r}, stored {self.expected.verdict!r}")
        if set(found.numbers) != set(self.expected.numbers):
            problems.append(f"numbers {sorted(found.numbers)} differ from the stored {sorted(self.expected.numbers)}")
        for name, value in found.numbers.items():
            if name in self.expected.numbers:
                interval = self.expected.numbers[name]
                if not interval.low <= value <= interval.high:
                    problems.append(f"{name} = {value:.6g} left [{interval.low:g}, {interval.high:g}] {interval.unit}")
        if problems:
            raise AssertionError(f"claim {self.id}: " + "; ".join(problems)
                                 + ". If the change is right, store the new value and say so in CHANGELOG.md.")
        return found
