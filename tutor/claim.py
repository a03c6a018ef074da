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


class Card:
    """A claim as a reader sees it: what the paper says, what we measured, where it stops being true."""

    MARKS = {"holds": "● holds", "in_part": "◐ holds in part", "not_here": "○ does not hold here", "unmeasured": "· not measured"}

    def __init__(self, claim: Claim, found: Measured | None = None):
        self.claim, self.found = claim, found

    def lines(self) -> list[tuple[str, str]]:
        c, e = self.claim, self.claim.expected
        span = lambda n: f"{n.low:g}" if n.low == n.high else f"{n.low:g} to {n.high:g}"
        numbers = "; ".join(f"{name.replace('_', ' ')}: {span(n)} {n.unit}".strip() for name, n in e.numbers.items())
        rows = [("The paper says", f"{c.paper_says} ({c.where})"), ("We measured", f"{numbers} ({e.date}, {e.machine})"),
                ("Verdict", self.MARKS[c.status]), ("Where it stops", c.stops)]
        if self.found is not None:
            rows.insert(2, ("Just now", self.found.sentence))
        return rows

    def __repr__(self) -> str:
        return f"Claim {self.claim.id}\n" + "\n".join(f"  {name}: {text}" for name, text in self.lines())

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in self.lines())
        return (f'<section class="claim-card claim-{self.claim.status}" aria-label="Claim {escape(self.claim.id)}">'
                f"<p><strong>Claim card</strong> <code>{escape(self.claim.id)}</code></p><dl>{rows}</dl></section>")


def card(claim_id: str, *, measure: bool = False) -> Card:
    """The card of one claim; `measure=True` runs its experiment now and checks it against what is stored.

    Raises:
        ValueError: no claim has that id (known ids are listed).
        AssertionError: measured, and the verdict or a number left its stored value.
    """
    from tutor.catalog import claims

    known = claims()
    if claim_id not in known:
        raise ValueError(f"no claim {claim_id!r}; there are: {', '.join(sorted(known))}")
    return Card(known[claim_id], known[claim_id].check() if measure else None)
