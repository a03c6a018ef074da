"""Verifiers that look right and are not. Each bends the law of the emitted tokens; enumeration must say so.

They keep to the rules of `tutor.speculative.verify` except for the one line that the docstring names. Several have been
seen in published code; none is far from what a tired author writes.
"""

from __future__ import annotations

import torch

from tutor.speculative.tree import TokenTree
from tutor.speculative.verify.base import Verdict, law


def _chain(tree, p, chooser, *, ratio, rest, bonus=lambda row: row) -> Verdict:
    """The chain rule with its three formulas as arguments."""
    for node in range(1, len(tree)):
        here, draft, x = law(p, node - 1), law(tree.qdist, node - 1, "q"), int(tree.tokens[node])
        if not chooser.coin(min(1.0, float(ratio(here[x], draft[x])))):
            left = rest(here, draft)
            return Verdict(list(range(node)), chooser.draw(left / left.sum()))
    return Verdict(list(range(len(tree))), chooser.draw(bonus(law(p, len(tree) - 1))))


class ResidualFromTarget:
    """After a refusal it draws from p, so a refused token gets a second chance."""

    def verify(self, tree, p, chooser, *, start=0):
        return _chain(tree, p, chooser, ratio=lambda a, b: a / b, rest=lambda a, b: a)


class AbsoluteResidual:
    """|p - q| instead of max(p - q, 0): tokens that the draft overrates come back through the residual."""

    def verify(self, tree, p, chooser, *, start=0):
        return _chain(tree, p, chooser, ratio=lambda a, b: a / b, rest=lambda a, b: (a - b).abs())


class RatioInverted:
    """Accepts with q/p: the draft's mistakes are what it likes best."""

    def verify(self, tree, p, chooser, *, start=0):
        return _chain(tree, p, chooser, ratio=lambda a, b: b / a, rest=lambda a, b: (a - b).clamp(min=0))


class UnwarpedBonus:
    """Forgets the temperature on the bonus token, drawing it from the raw distribution (here p has temperature 2)."""

    def verify(self, tree, p, chooser, *, start=0):
        return _chain(tree, p, chooser, ratio=lambda a, b: a / b, rest=lambda a, b: (a - b).clamp(min=0),
                      bonus=lambda row: torch.softmax(2 * row.log(), 0))


def greedy_chain(q, gamma):
    """A drafter that proposes argmax q, and says that it sampled from q: the test divides by the wrong probability."""
    def draft(chooser):
        context, dists = (), []
        for _ in range(gamma):
            dists.append(q(context))
            context += (int(dists[-1].argmax()),)
        return TokenTree.chain(0, context, torch.stack(dists))
    return draft


def likelier_sibling(q):
    """Samples two children and keeps the likelier one, then hands it over as if it had been the only sample."""
    def draft(chooser):
        dist = q(())
        tokens = [chooser.draw(dist), chooser.draw(dist)]
        best = max(tokens, key=lambda t: float(dist[t]))
        return TokenTree.chain(0, [best], dist[None])
    return draft


class KeepsDraftDistribution:
    """Without replacement, but D is not renormalised after a refusal: later siblings are tested too kindly."""

    def verify(self, tree, p, chooser, *, start=0):
        target, draft = law(p, 0), law(tree.qdist, 0, "q").clone()
        for child in tree.children(0):
            y = int(tree.tokens[child])
            if chooser.coin(min(1.0, float(target[y] / draft[y]))):
                return Verdict([0, child], chooser.draw(law(p, child)))
            left = (target - draft).clamp(min=0)
            target = left / left.sum()
            draft[y] = 0
        return Verdict([0], chooser.draw(target))
