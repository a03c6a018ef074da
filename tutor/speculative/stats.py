"""Proof and statistics of losslessness.

`enumerate_law` is the proof: it walks through every draft and every decision of a verifier with its exact probability
and returns the law of the emitted tokens. The chi-square tests judge a whole engine from samples, where no enumeration
is possible; `n_for_power` says how many samples a bias of a given size needs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutor.speculative.chooser import Chooser, every_run
from tutor.speculative.tree import TokenTree

Table = Callable[[tuple[int, ...]], Tensor]      # emitted tokens so far -> distribution (V,)


@dataclass(frozen=True)
class TableModel:
    """A language model that is a table: one distribution per context of up to `depth` tokens.

    `TableModel.random(V, depth, seed)` draws them; two tables of different seeds are a target and its draft.
    """

    rows: dict[tuple[int, ...], Tensor]

    @classmethod
    def random(cls, vocabulary: int, depth: int, seed: int, *, sharpness: float = 1.0) -> TableModel:
        generator = torch.Generator().manual_seed(seed)
        contexts = [c for d in range(depth + 1) for c in itertools.product(range(vocabulary), repeat=d)]
        return cls({c: torch.softmax(sharpness * torch.randn(vocabulary, dtype=torch.float64, generator=generator), 0)
                    for c in contexts})

    def __call__(self, context: tuple[int, ...]) -> Tensor:
        return self.rows[tuple(context)]


def target_rows(tree: TokenTree, p: Table) -> Tensor:
    """What a forward pass over the tree would give: the target's distribution at every node, `(M, V)`."""
    paths = [tuple(tree.tokens[tree.path_to(i)[1:]].tolist()) for i in range(len(tree))]
    return torch.stack([p(path) for path in paths])


def sample_chain(q: Table, gamma: int) -> Callable[[Chooser], TokenTree]:
    """A drafter for enumeration: a chain of `gamma` tokens sampled from the table `q`."""
    def draft(chooser: Chooser) -> TokenTree:
        context: tuple[int, ...] = ()
        dists = []
        for _ in range(gamma):
            dists.append(q(context))
            context += (chooser.draw(dists[-1]),)
        return TokenTree.chain(0, context, torch.stack(dists) if dists else None)
    return draft


def sample_tree(q: Table, shape: Sequence[int], *, replacement: bool) -> Callable[[Chooser], TokenTree]:
    """A drafter for enumeration: `shape[d]` children for every node of depth d, sampled from the table `q`."""
    def draft(chooser: Chooser) -> TokenTree:
        tokens, parent, qprob, paths = [0], [-1], [float("nan")], [()]
        layer = [0]
        for width in shape:
            below = []
            for node in layer:
                dist = q(paths[node])
                for _ in range(width):
                    if float(dist.sum()) <= 0:
                        break
                    token = chooser.draw(dist)
                    below.append(len(tokens))
                    tokens.append(token)
                    parent.append(node)
                    qprob.append(float(dist[token]))
                    paths.append((*paths[node], token))
                    if not replacement:
                        dist = dist.clone()
                        dist[token] = 0
                        dist = dist / dist.sum() if float(dist.sum()) > 0 else dist
            layer = below
        deepest = len(shape)
        qdist = torch.stack([q(path) if len(path) < deepest else torch.zeros_like(q(())) for path in paths])
        return TokenTree(torch.tensor(tokens), torch.tensor(parent), torch.tensor(qprob, dtype=torch.float64), qdist,
                         replacement)
    return draft


def enumerate_law(verifier, p: Table, draft: Callable[[Chooser], TokenTree], depth: int) -> Tensor:
    """Exact law of the first `depth` emitted tokens of a step, `(V,) * depth`, in float64.

    A step that emits fewer is continued by direct draws of p: the next step starts from the same situation, so that
    induction over steps carries the result to whole texts.

    Args:
        verifier: anything with `.verify(tree, p, chooser)`.
        draft: builds a tree from the chooser's draws, see `sample_chain`, `sample_tree`; a fixed one: `lambda _: tree`.
    """
    vocabulary = len(p(()))
    emitted: dict[tuple[int, ...], float] = {}

    def step(chooser: Chooser) -> tuple[int, ...]:
        tree = draft(chooser)
        verdict = verifier.verify(tree, target_rows(tree, p), chooser)
        return (*tree.tokens[verdict.path[1:]].tolist(), verdict.next_token)[:depth]

    for tokens, probability in every_run(step):
        emitted[tokens] = emitted.get(tokens, 0.0) + probability
    law = torch.zeros((vocabulary,) * depth, dtype=torch.float64)
    for tokens, probability in emitted.items():
        law[tokens] += probability * joint(p, depth - len(tokens), tokens)
    return law


def joint(p: Table, depth: int, context: tuple[int, ...] = ()) -> Tensor:
    """Law of the next `depth` tokens drawn one by one from p, `(V,) * depth`; a scalar 1 for depth 0."""
    if depth == 0:
        return torch.ones((), dtype=torch.float64)
    here = p(context)
    return torch.stack([here[x] * joint(p, depth - 1, (*context, x)) if here[x] > 0
                        else torch.zeros((len(here),) * (depth - 1), dtype=torch.float64) for x in range(len(here))])


def expected_emission(verifier, p: Table, draft: Callable[[Chooser], TokenTree]) -> float:
    """Mean number of tokens of one step, exactly."""
    def step(chooser: Chooser) -> int:
        tree = draft(chooser)
        return verifier.verify(tree, target_rows(tree, p), chooser).accepted + 1
    return sum(length * probability for length, probability in every_run(step))


def total_variation(a: Tensor, b: Tensor) -> float:
    """Half the sum of absolute differences: the largest error in the probability of any event."""
    return 0.5 * float((a - b).abs().sum())


# -------------------------------------------------------------------------------------------------------- chi-square

@dataclass(frozen=True)
class Fit:
    """A chi-square test: `p` is the probability of a statistic at least this large if the law were right."""

    statistic: float
    dof: int
    p: float


def chi2_fit(counts: Tensor, probs: Tensor, pool: float = 5.0) -> Fit:
    """Do `counts` `(K,)` fit the distribution `probs` `(K,)`? Cells that expect fewer than `pool` are joined."""
    counts, probs = torch.as_tensor(counts).double(), torch.as_tensor(probs).double()
    if bool((counts[probs == 0] > 0).any()):
        return Fit(float("inf"), 0, 0.0)                         # an impossible token came up
    expected = probs * counts.sum()
    small = expected < pool
    cells = torch.cat([counts[~small], counts[small].sum()[None]])
    wanted = torch.cat([expected[~small], expected[small].sum()[None]])
    cells, wanted = cells[wanted > 0], wanted[wanted > 0]
    return _fit(float(((cells - wanted) ** 2 / wanted).sum()), len(cells) - 1)


def chi2_two_sample(a: Tensor, b: Tensor, pool: float = 5.0) -> Fit:
    """Were the counts `a` and `b` `(K,)` drawn from one law? No expected vector is needed, so none can be wrong."""
    table = torch.stack([torch.as_tensor(a), torch.as_tensor(b)]).double()          # (2, K)
    share = table.sum(1) / table.sum()
    small = table.sum(0) * float(share.min()) < pool
    table = torch.cat([table[:, ~small], table[:, small].sum(1, keepdim=True)], 1)
    table = table[:, table.sum(0) > 0]
    wanted = share[:, None] * table.sum(0)
    return _fit(float(((table - wanted) ** 2 / wanted).sum()), table.shape[1] - 1)


def _fit(statistic: float, dof: int) -> Fit:
    return Fit(statistic, dof, _survival(statistic, dof) if dof > 0 else 1.0)


def _survival(x: float, dof: float) -> float:
    """P(chi-square with `dof` degrees of freedom > x): the regularised upper incomplete gamma function."""
    half = torch.tensor([dof / 2, x / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def n_for_power(delta: float, k: int, level: float = 1e-4, power: float = 0.99) -> int:
    """Samples that a chi-square test on k cells needs to notice a bias of total variation `delta`.

    The non-centrality is at least 4 N delta^2 (Cauchy-Schwarz), so N = nc / (4 delta^2), where nc is the
    non-centrality at which the test of this level rejects with this power.
    """
    if not 0 < delta <= 1 or k < 2:
        raise ValueError(f"delta must be in (0, 1] and k >= 2; got delta={delta}, k={k}")
    dof = k - 1
    critical = _bisect(lambda x: level - _survival(x, dof), 0.0, 10.0 * dof + 200)

    def miss(nc: float) -> float:                                # mixture of central laws with Poisson(nc/2) weights
        weight, total = math.exp(-nc / 2), 0.0
        for j in range(int(nc + 12 * math.sqrt(nc + 1) + 20)):
            total += weight * (1 - _survival(critical, dof + 2 * j))
            weight *= nc / 2 / (j + 1)
        return total

    nc = _bisect(lambda x: (1 - power) - miss(x), 0.0, 50.0 * dof + 500)
    return math.ceil(nc / (4 * delta**2))


def _bisect(increasing: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if increasing(middle) > 0 else (middle, high)
    return high
