"""Chain: accept each drafted token with probability min(1, p/q), else draw from what is left of p.

Idea        A cheap model guesses a few tokens, the target scores them all in one pass, and a biased coin per token
            repairs the law: what the draft proposes too often is refused just often enough.
Rule        x_i ~ q_i; accept while r < min(1, p_i(x_i) / q_i(x_i)), r ~ U(0, 1). At the first refusal emit a draw of
            norm(max(p_i - q_i, 0)) and stop; if all pass, emit a bonus draw of p at the last node.
            Token x leaves through acceptance with mass min(p, q)(x) and through the residual with max(p - q, 0)(x);
            the sum is p(x). The chance of acceptance is sum min(p, q) = 1 - TV(p, q).
Cost        one target forward of gamma + 1 rows for 1 to gamma + 1 tokens; with independent acceptance a the mean is
            (1 - a^(gamma+1)) / (1 - a).
Paper       Leviathan et al. 2023, section 2.3 and appendix A.1 [leviathan2023speculative]; the same rule in Chen et al.
            2023, algorithm 2 [chen2023sampling].
Differs     p and q are both warped (temperature, top-k, top-p) before the test; the papers assume it in a footnote.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutor.catalog import method
from tutor.speculative.chooser import Chooser
from tutor.speculative.tree import TokenTree
from tutor.speculative.verify.base import Test, Verdict, law, need_sampled, residual


@method("chain", "speculative", "Speculative sampling", paper="leviathan2023speculative",
        flags=("lossless", "verifier"))
@dataclass(frozen=True)
class Chain:
    """Speculative sampling on a path of sampled tokens."""

    coupled = False

    def verify(self, tree: TokenTree, p: Tensor, chooser: Chooser, *, start: int = 0) -> Verdict:
        need_sampled(tree, "chain")
        if not tree.is_chain:
            raise ValueError("chain verifies a single path, and this tree branches; use verify='recursive' or 'match'")
        tests = []
        for node in range(1, len(tree)):
            here, draft = law(p, node - 1), law(tree.qdist, node - 1, "q")     # both after the parent, (V,)
            x = int(tree.tokens[node])
            probability = min(1.0, float(here[x] / draft[x]))
            accepted = chooser.coin(probability)
            tests.append(Test(node, probability, accepted, chooser.last))
            if not accepted:
                rest, mass = residual(here, draft)
                token = chooser.draw(rest if mass > 0 else here, start + node - 1)     # 0: refused by rounding alone
                return Verdict(list(range(node)), token, mass, tuple(tests))
        last = len(tree) - 1
        return Verdict(list(range(len(tree))), chooser.draw(law(p, last), start + last), 1.0, tuple(tests))
