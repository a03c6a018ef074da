"""Chooser: where every random decision of drafting and verification comes from.

An algorithm asks for two things only: a biased coin and a draw from a distribution. Four sources answer: a seeded
generator; a *coupled* one whose numbers depend on nothing but the place in the text; a scripted one that walks through
every possible run with its probability (the proof of exactness is a loop over it); and the log-keeping of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Chooser(Protocol):
    """`last` is the uniform number behind the latest decision, for traces; nan where there is none."""

    last: float

    def coin(self, probability: float) -> bool:
        """True with this probability."""

    def draw(self, distribution: Tensor, position: int | None = None) -> int:
        """An index of `distribution` `(V,)`; `position` is the place in the text that the token will take."""


def invert(distribution: Tensor, u: float) -> int:
    """The smallest index whose cumulative mass exceeds `u` in [0, 1): inverse transform sampling.

    >>> [invert(torch.tensor([0.25, 0.0, 0.75]), u) for u in (0.0, 0.2, 0.25, 0.99)]
    [0, 0, 2, 2]
    """
    mass = distribution.double().cumsum(0)
    index = int(torch.searchsorted(mass, u * float(mass[-1]), right=True))
    if index == len(mass):                                  # u * total rounded up to the total
        index = int(distribution.nonzero()[-1])
    return index


class RandomChooser:
    """Decisions of a seeded generator. `stream` tells the drafter's numbers from the verifier's."""

    def __init__(self, seed: int = 0, stream: int = 0):
        self.generator = torch.Generator().manual_seed(_mix(seed, stream) >> 1)
        self.last = float("nan")

    def _uniform(self, position: int | None) -> float:
        return float(torch.rand((), dtype=torch.float64, generator=self.generator))

    def coin(self, probability: float) -> bool:
        self.last = self._uniform(None)
        return self.last < probability

    def draw(self, distribution: Tensor, position: int | None = None) -> int:
        self.last = self._uniform(position)
        return invert(distribution, self.last)


class CoupledChooser(RandomChooser):
    """The number for position t is a function of (seed, t) alone, however many rows or steps led there.

    Two decoders that draw the token of each position from the same distribution then write the same text, token for
    token: sampling becomes as easy to compare as greedy decoding.
    """

    def __init__(self, seed: int = 0, stream: int = 0):
        super().__init__(seed, stream)
        self._key = _mix(seed, stream)

    def _uniform(self, position: int | None) -> float:
        if position is None:
            raise ValueError("coupled sampling needs the position of every draw; verifiers that toss coins "
                             "(chain, recursive) cannot be coupled, use verify='match'")
        return (_mix(self._key, position) >> 11) / 2**53


def _mix(seed: int, counter: int) -> int:
    """A 64-bit hash of two integers (the finaliser of SplitMix64, Steele et al. 2014, applied twice)."""
    z = seed & (2**64 - 1)
    for word in (counter + 1, 0):
        z = (z + (word + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        z ^= z >> 31
    return z


class ScriptedChooser:
    """Follows a list of decisions, then takes the first possible branch at each question and remembers the others."""

    last = float("nan")

    def __init__(self, script: tuple[int, ...] = ()):
        self.script, self.made, self.probability = script, [], 1.0
        self.untried: list[tuple[int, ...]] = []           # scripts of the branches not taken

    def _branch(self, weights: list[float]) -> int:
        possible = [i for i, w in enumerate(weights) if w > 0]
        if len(self.made) < len(self.script):
            choice = self.script[len(self.made)]
        else:
            choice = possible[0]
            self.untried += [(*self.made, other) for other in possible[1:]]
        self.made.append(choice)
        self.probability *= weights[choice]
        return choice

    def coin(self, probability: float) -> bool:
        probability = min(1.0, probability)
        return self._branch([probability, 1.0 - probability]) == 0

    def draw(self, distribution: Tensor, position: int | None = None) -> int:
        return self._branch(distribution.tolist())


def every_run(run: Callable[[Chooser], Any]) -> Iterator[tuple[Any, float]]:
    """Every possible outcome of `run(chooser)` with its exact probability: each leaf of the decision tree once.

    >>> sorted(every_run(lambda c: c.coin(0.25)))
    [(False, 0.75), (True, 0.25)]
    """
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        chooser = ScriptedChooser(scripts.pop())
        outcome = run(chooser)
        scripts += chooser.untried
        yield outcome, chooser.probability
