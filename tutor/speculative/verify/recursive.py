"""Recursive: try the children of a node one after the other, each against what the earlier ones left over.

Idea        A refused guess is no reason to stop: the residual is a target distribution like any other, so the next
            sampled sibling may be tested against it.
Rule        At a node R <- p, D <- q. For children y in the order of sampling: accept with chance min(1, R(y)/D(y)),
            else R <- norm(max(R - D, 0)); without replacement also D(y) <- 0, D <- norm(D). If all fail, emit a draw of
            R. Each round is the chain rule for the pair (R, D), provided that y was really sampled from that D.
Cost        one target forward of M rows; O(children * V) arithmetic at each node of the path.
Paper       Miao et al. 2024, multi-step speculative sampling, section 4.3, algorithm 2 (with replacement)
            [miao2024specinfer]; without replacement: Chen et al. 2024, section 3.2 [chen2024sequoia].
Differs     an exhausted D stops the tests; an R that rounding left empty falls back to p without the tokens tested so
            far, and is counted in `Verdict.fallbacks`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutor.catalog import method
from tutor.speculative.chooser import Chooser
from tutor.speculative.tree import TokenTree
from tutor.speculative.verify.base import Test, Verdict, law, need_sampled, residual


@method("recursive", "speculative", "Recursive rejection sampling", paper="miao2024specinfer",
        flags=("lossless", "verifier"))
@dataclass(frozen=True)
class Recursive:
    """Multi-round rejection on a sampled tree.

    Attributes:
        replacement: how the tree's siblings were sampled; None takes the tree's word for it (a chain: either).
    """

    replacement: bool | None = None
    coupled = False

    def verify(self, tree: TokenTree, p: Tensor, chooser: Chooser, *, start: int = 0) -> Verdict:
        need_sampled(tree, "recursive")
        replacement = self._replacement(tree)
        path, tests, fallbacks, tokens = [0], [], 0, tree.tokens.tolist()
        while True:
            node, room = path[-1], 1.0
            target = law(p, node)                                              # R, (V,)
            children = tree.children(node)
            draft = law(tree.qdist, node, "q") if children else None           # D, (V,)
            moved = False
            for child in children:
                y = tokens[child]
                if float(draft.sum()) <= 0:                                    # support exhausted
                    break
                self._check_history(tree, child, float(draft[y]))
                probability = min(1.0, float(target[y] / draft[y]))
                moved = chooser.coin(probability)
                tests.append(Test(child, probability, moved, chooser.last))
                if moved:
                    path.append(child)
                    break
                target, mass = residual(target, draft)
                room *= mass
                if mass <= 0:
                    fallbacks += 1
                    target = law(p, node).clone()
                    target[[tokens[t.node] for t in tests if t.node in children]] = 0
                    target = target / target.sum() if float(target.sum()) > 0 else law(p, node)
                if not replacement:
                    draft = draft.clone()
                    draft[y] = 0
                    draft = draft / draft.sum() if float(draft.sum()) > 0 else draft
            if not moved:
                token = chooser.draw(target, start + len(path) - 1)
                return Verdict(path, token, room, tuple(tests), fallbacks)

    def _replacement(self, tree: TokenTree) -> bool:
        told, meant = tree.replacement, self.replacement
        if tree.is_chain:
            return False                                                       # there are no siblings
        if told is None and meant is None:
            raise ValueError("the tree does not say how its siblings were sampled (replacement=None); set "
                             "TokenTree.replacement in the drafter")
        if told is not None and meant is not None and told != meant:
            raise ValueError(f"recursive(replacement={meant}) got a tree whose siblings were sampled with "
                             f"replacement={told}; let them agree")
        return meant if told is None else told

    @staticmethod
    def _check_history(tree: TokenTree, child: int, now: float) -> None:
        """The draft probability recorded at sampling must be the one that the siblings' history gives."""
        then = float(tree.qprob[child])
        if abs(then - now) > 1e-6 + 1e-4 * now:
            raise ValueError(f"node {child} was sampled with probability {then:.6g}, but its siblings' history says "
                             f"{now:.6g}: a sibling was dropped or moved, or replacement is wrong. Use verify='match'")
