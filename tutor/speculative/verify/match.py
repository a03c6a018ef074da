"""Match: draw the target's own token first, then see whether the tree holds it.

Idea        Ask the target what it wants to say; if somebody guessed it, the next answer is already computed.
Rule        At a node draw t ~ p. If a child carries t, move there and go on, else emit t and stop. At a leaf t is the
            bonus token. Every emitted token is a draw of p, so the law is right for any tree that was built without
            looking at the draws: retrieved, top-k, recycled, or sampled and then pruned at will.
Cost        accepts with p(children), where `recursive` reaches sum min(p, q) or more; neither dominates. The tree's
            mean emission is 1 + the sum over its nodes of the target's probability of their path.
Paper       Miao et al. 2024, the "naive sampling" that SpecInfer compares with, section 4.3 [miao2024specinfer]; it is
            the usual rule for retrieved drafts.
Differs     `coupled=True` keys each draw by its position in the text, so that sampled text is token for token that of
            autoregressive sampling with the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutor.catalog import method
from tutor.speculative.chooser import Chooser
from tutor.speculative.tree import TokenTree
from tutor.speculative.verify.base import Test, Verdict, law


@method("match", "speculative", "Sample and match", flags=("lossless", "verifier"))
@dataclass(frozen=True)
class Match:
    """Exact for every tree; the safe choice."""

    coupled: bool = False

    def verify(self, tree: TokenTree, p: Tensor, chooser: Chooser, *, start: int = 0) -> Verdict:
        path, tests, tokens = [0], [], tree.tokens.tolist()
        while True:
            here = law(p, path[-1])
            token = chooser.draw(here, start + len(path) - 1)
            children = tree.children(path[-1])
            found = next((c for c in children if tokens[c] == token), None)     # of equal siblings, the first
            tests += [Test(c, float(here[tokens[c]]), c == found, chooser.last) for c in children]
            if found is None:
                missed = 1.0 - sum(float(here[t]) for t in {tokens[c] for c in children})
                return Verdict(path, token, max(missed, 0.0), tuple(tests))
            path.append(found)
