"""Claim: one sentence of a paper, an experiment that measures it here, and the verdict it must keep giving.

A claim is not a test of our code but of the paper's sentence at our scale: it may hold, hold in part, or not hold
here, and each is a finding. What is not allowed is drift: the stored verdict and the interval of every number are
checked again by `make test-all` (three of them, rotating, by `.ci/run`), and a measurement outside fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

VERDICTS = ("holds", "in_part", "not_here", "unmeasured")

# The look of a card, wherever its HTML goes: colours of the site, else of JupyterLab, else of the text around it.
STYLE = """
.claim-card { --line: var(--t-line, var(--jp-border-color2, #8888)); --quiet: var(--t-soft, var(--jp-ui-font-color2, inherit));
  box-sizing: border-box; max-width: 46rem; margin: 1rem 0; padding: 0.8rem 1.1rem; line-height: 1.5;
  border: 1px solid var(--line); border-left: 5px solid var(--mark, var(--quiet)); border-radius: 10px; }
.claim-holds { --mark: var(--t-done, #009e73); }
.claim-in_part { --mark: var(--t-partial, #c98500); border-left-style: dashed; }
.claim-not_here { --mark: var(--t-no, #d55e00); border-left-style: double; }
.claim-card .claim-head { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin: 0; }
.claim-card code { color: inherit; background: none; padding: 0; font-size: 0.86em; overflow-wrap: anywhere; }
.claim-card dl { display: block; margin: 0; }
.claim-card dl dt { float: none; width: auto; margin: 0.6rem 0 0; color: var(--quiet); font-size: 0.82em; font-weight: 600; }
.claim-card dl dd { float: none; width: auto; margin: 0.1rem 0 0; }
.claim-card .claim-numbers { width: auto; margin: 0; border: 0; border-collapse: collapse; font-size: 0.93em; }
.claim-card .claim-numbers tbody tr:nth-child(n) { background: none; }
.claim-card .claim-numbers tr > * { padding: 0.2rem 1.2rem 0.2rem 0; border: 0; border-top: 1px solid var(--line);
  background: none; color: inherit; text-align: left; vertical-align: top; white-space: normal; font-weight: 400; }
.claim-card .claim-numbers tr > td { font-variant-numeric: tabular-nums; }
.claim-card > dl > dd > .claim-numbers tr:first-child > * { border-top: 0; }
.claim-card > dl > dd > .claim-numbers:not(:has(tr + tr)) td { font-weight: 600; }
.claim-card summary { width: fit-content; padding: 0.2rem 0; color: var(--quiet); font-size: 0.9em; cursor: pointer; }
.claim-card .claim-when { margin: 0.3rem 0 0; color: var(--quiet); font-size: 0.82em; }
"""


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
        headline: the number that a card shows first; the first of `expected` unless given.
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
    headline: str = ""

    def __post_init__(self):
        if self.headline and self.headline not in self.expected.numbers:
            raise ValueError(f"claim {self.id}: headline must be one of {list(self.expected.numbers)}; got {self.headline!r}")

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
    """A claim as a reader sees it: verdict, what the paper says, what we measured, where it stops being true.

    Of many numbers the headline comes first; the others are a table that can be folded away.
    """

    MARKS = {"holds": "✓ holds", "in_part": "≈ holds in part", "not_here": "✗ does not hold here",
             "unmeasured": "? not measured yet"}
    MOST_SHOWN = 3                  # with more numbers than this, all but the first can be folded

    def __init__(self, claim: Claim, found: Measured | None = None):
        self.claim, self.found = claim, found

    def numbers(self) -> list[tuple[str, str]]:
        """(name, interval with unit) of every number, the headline first, else in the claim's order."""
        span = lambda n: f"{n.low:g}" if n.low == n.high else f"{n.low:g} to {n.high:g}"
        known, first = self.claim.expected.numbers, self.claim.headline
        ordered = {first: known[first], **known} if first else known
        return [(name.replace("_", " "), f"{span(n)} {n.unit}".strip()) for name, n in ordered.items()]

    def when(self) -> str:
        return ", ".join(part for part in (self.claim.expected.date, self.claim.expected.machine) if part)

    def lines(self) -> list[tuple[str, str]]:
        """(name, text) of each part of the card."""
        c = self.claim
        measured = "; ".join(f"{name}: {value}" for name, value in self.numbers()) + f" ({self.when()})"
        rows = [("Verdict", self.MARKS[c.status]), ("The paper says", f"{c.paper_says} ({c.where})"),
                ("We measured", measured if self.numbers() else "nothing yet"), ("Where it stops", c.stops)]
        if self.found is not None:
            rows.insert(3, ("Just now", self.found.sentence))
        return rows

    def __repr__(self) -> str:
        wide = max((len(name) for name, _ in self.numbers()), default=0)
        table = "".join(f"\n    {name:<{wide}}  {value}" for name, value in self.numbers())
        texts = dict(self.lines()) | ({"We measured": self.when() + table} if table else {})
        return f"Claim {self.claim.id}\n" + "\n".join(f"  {name}: {text}" for name, text in texts.items())

    def _repr_html_(self) -> str:
        from html import escape

        rows = [f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self.numbers()]
        table = lambda some: f'<table class="claim-numbers"><tbody>{"".join(some)}</tbody></table>'
        first = len(rows) if len(rows) <= self.MOST_SHOWN else 1
        measured = table(rows[:first])
        if rows[first:]:
            measured += (f'<details class="claim-more" open><summary>{len(rows) - first} more numbers</summary>'
                         f"{table(rows[first:])}</details>")
        measured += f'<p class="claim-when">{escape(self.when())}</p>'
        texts = {name: escape(text) for name, text in self.lines()} | ({"We measured": measured} if rows else {})
        head = f'<p class="claim-head"><strong>{texts.pop("Verdict")}</strong> <code>{escape(self.claim.id)}</code></p>'
        said = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in texts.items() if text)
        return (f'<section class="claim-card claim-{self.claim.status}" aria-label="Claim {escape(self.claim.id)}">'
                f"<style>{STYLE}</style>{head}<dl>{said}</dl></section>")


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
