"""What every verifier takes and returns.

A verifier accepts and never proposes. It reads a token tree and the target's distribution at each of its nodes, asks a
chooser for its random decisions, and says which path is accepted and which token follows. It is lossless when the
tokens it emits have the law of sampling from the target one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tutor.speculative.chooser import Chooser
from tutor.speculative.tree import TokenTree


@dataclass(frozen=True)
class Test:
    """One node put to the test: accepted with this `probability`; `draw` is the uniform number behind the decision."""

    __test__ = False                 # not a pytest class

    node: int
    probability: float
    accepted: bool
    draw: float = float("nan")


@dataclass(frozen=True)
class Verdict:
    """Outcome of one verification.

    Attributes:
        path: accepted nodes from the root (node 0, always there) downwards.
        next_token: what follows the path: a correction, or the bonus token after a leaf.
        residual_mass: probability of rejecting everything that was tested at the last node, given that it was
            reached (1 at a leaf): how much room the draft left there.
        tests: nodes in the order in which they were tested.
        fallbacks: times that rounding left an empty residual (see `recursive`).
    """

    path: list[int]
    next_token: int
    residual_mass: float = 1.0
    tests: tuple[Test, ...] = field(default=())
    fallbacks: int = 0

    @property
    def accepted(self) -> int:
        """Drafted tokens that were accepted; the step emits one more."""
        return len(self.path) - 1


class Verifier(Protocol):
    """`coupled`: draws are keyed by position, so the engine must supply a `CoupledChooser`."""

    coupled: bool

    def verify(self, tree: TokenTree, p: Tensor, chooser: Chooser, *, start: int = 0) -> Verdict:
        """p: rows of float64 target probabilities `(M, V)` or `WarpedRows`; start: position of the first token that the
        step emits (the root's plus one)."""


def law(rows: Tensor, node: int, name: str = "p") -> Tensor:
    """Row `node`, checked to be a distribution `(V,)`.

    Raises:
        ValueError: it is negative somewhere, or does not sum to 1 within 1e-4.
    """
    row = rows[node].double()
    total, least = float(row.sum()), float(row.min())
    if not (abs(total - 1) <= 1e-4 and least >= 0):
        raise ValueError(f"{name} at node {node} must be a distribution; it sums to {total:.6g} and its smallest entry "
                         f"is {least:.3g}: pass probabilities (warp(logits)), not logits")
    return row / total


def residual(p: Tensor, q: Tensor) -> tuple[Tensor, float]:
    """norm(max(p - q, 0)) and its mass before normalisation: what is left of p once min(p, q) has been accepted."""
    rest = (p - q).clamp(min=0)
    mass = float(rest.sum())
    return (rest / mass if mass > 0 else rest), mass


def need_sampled(tree: TokenTree, verifier: str) -> None:
    """Raise unless every node of the tree came from a known draft distribution."""
    if len(tree) == 1:
        return
    if tree.pruned:
        raise ValueError(f"{verifier} cannot verify a tree with pruned=True: siblings were dropped after their tokens "
                         "had been seen, so qprob no longer says how the tree came about. Use verify='match'")
    if tree.qdist is None or tree.qprob is None or bool(torch.isnan(tree.qprob[1:]).any()):
        raise ValueError(f"{verifier} needs qprob and qdist for every drafted node; this tree holds deterministic "
                         "(retrieved or top-k) tokens. Use verify='match'")
