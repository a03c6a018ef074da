"""The proof of losslessness: every draft and every decision is enumerated, and the emitted law must be the target's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.museum.speculative import planted
from tutor import catalog
from tutor.speculative.chooser import RandomChooser, every_run
from tutor.speculative.stats import (
    TableModel,
    enumerate_law,
    expected_emission,
    joint,
    sample_chain,
    sample_tree,
    target_rows,
    total_variation,
)
from tutor.speculative.tree import TokenTree
from tutor.speculative.verify import verifier
from tutor.speculative.verify.chain import Chain
from tutor.speculative.verify.match import Match
from tutor.speculative.verify.recursive import Recursive

COVERS = ("speculative.chain", "speculative.match", "speculative.recursive")

EXACT, BIASED = 1e-12, 1e-3


def tables(vocabulary, seed=0, depth=3):
    return TableModel.random(vocabulary, depth, 2 * seed), TableModel.random(vocabulary, depth, 2 * seed + 1)


def bias(rule, p, draft, depth):
    return total_variation(enumerate_law(rule, p, draft, depth), joint(p, depth))


def test_paper_and_pencil():
    # p = (.5, .5, 0), q = (.2, .2, .6), one drafted token.
    # accepted mass min(p, q) = (.2, .2, 0), sum .4; residual max(p - q, 0) = (.3, .3, 0).
    # The law is (.2 + .3, .2 + .3, 0) = p, and the mean emission 1 + .4.
    p_row, q_row = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]], dtype=torch.float64)
    p, draft = lambda context: p_row, sample_chain(lambda context: q_row, 1)
    torch.testing.assert_close(enumerate_law(Chain(), p, draft, 1), p_row, atol=1e-15, rtol=0)
    assert expected_emission(Chain(), p, draft) == pytest.approx(1.4, abs=1e-15)


@pytest.mark.parametrize("vocabulary,gamma", [(2, 1), (4, 1), (4, 2), (8, 1), (8, 2)], ids=lambda x: str(x))
@pytest.mark.parametrize("seed", range(3))
def test_chain_emits_the_target_law(vocabulary, gamma, seed):
    p, q = tables(vocabulary, seed)
    for rule in (Chain(), Match(), Recursive()):
        assert bias(rule, p, sample_chain(q, gamma), gamma + 1) < EXACT


@pytest.mark.parametrize("name", [m.name for m in catalog.methods("speculative") if "verifier" in m.flags])
def test_every_verifier_of_the_catalog_is_exact_or_says_that_it_is_not(name):
    method = catalog.get("speculative", name)
    p, q = tables(4, seed=10)
    found = bias(method.build(), p, sample_chain(q, 2), 3)
    assert ("lossless" in method.flags) != ("lossy" in method.flags)
    assert found < EXACT if "lossless" in method.flags else found > BIASED


@pytest.mark.parametrize("shape", [(2,), (3,), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("replacement", [True, False], ids=["with", "without"])
def test_recursive_emits_the_target_law(shape, replacement):
    p, q = tables(3, seed=1)
    assert bias(Recursive(), p, sample_tree(q, shape, replacement=replacement), len(shape) + 1) < EXACT


@pytest.mark.parametrize("replacement", [True, False], ids=["with", "without"])
def test_recursive_on_eight_tokens(replacement):
    p, q = tables(8, seed=2)
    assert bias(Recursive(), p, sample_tree(q, (2,), replacement=replacement), 2) < EXACT


def test_recursive_exhausts_a_small_support():
    # q lives on two tokens: a third sample without replacement does not exist, and p reaches beyond q's support
    p = TableModel.random(4, 2, 0)
    q = TableModel({(): torch.tensor([0.7, 0.3, 0, 0]).double()})
    assert bias(Recursive(), p, sample_tree(q, (3,), replacement=False), 2) < EXACT


@pytest.mark.parametrize("paths", [[[0]], [[0], [1]], [[0, 1], [0, 2], [3]], [[1, 1], [2], [0, 3]]], ids=str)
def test_match_emits_the_target_law_on_any_fixed_tree(paths):
    p, _ = tables(4, seed=3)
    tree = TokenTree.from_paths(0, paths)
    assert bias(Match(), p, lambda chooser: tree, 3) < EXACT


def test_match_is_exact_on_a_pruned_sample_and_with_equal_siblings():
    p, q = tables(4, seed=4)
    assert bias(Match(), p, planted.likelier_sibling(q), 2) < EXACT
    twins = TokenTree(torch.tensor([0, 2, 2, 1]), torch.tensor([-1, 0, 0, 1]))
    assert bias(Match(), p, lambda chooser: twins, 3) < EXACT


def test_greedy_draft_with_its_own_one_hot_is_exact():
    # temperature 0 makes q one-hot: the token is certain, and the rule holds with q(x) = 1
    p, q = tables(4, seed=5)
    one_hot = TableModel({c: torch.nn.functional.one_hot(row.argmax(), 4).double() for c, row in q.rows.items()})
    for rule in (Chain(), Recursive()):
        assert bias(rule, p, sample_chain(one_hot, 2), 3) < EXACT


@pytest.mark.parametrize("name,rule,draft", [
    ("residual from p", planted.ResidualFromTarget(), lambda q: sample_chain(q, 2)),
    ("absolute residual", planted.AbsoluteResidual(), lambda q: sample_chain(q, 2)),
    ("ratio inverted", planted.RatioInverted(), lambda q: sample_chain(q, 2)),
    ("un-warped bonus", planted.UnwarpedBonus(), lambda q: sample_chain(q, 1)),
    ("greedy token, sampled q", Chain(), lambda q: planted.greedy_chain(q, 1)),
    ("likelier of two siblings", Recursive(), planted.likelier_sibling),
    ("D not renormalised", planted.KeepsDraftDistribution(), lambda q: sample_tree(q, (2,), replacement=False)),
], ids=lambda x: x if isinstance(x, str) else "")
def test_planted_bug_is_rejected(name, rule, draft):
    found = [bias(rule, p, draft(q), 2) for p, q in (tables(4, seed) for seed in range(6))]
    assert max(found) > BIASED, name


def test_chain_acceptance_is_one_minus_total_variation():
    p, q = tables(6, seed=6)
    overlap = float(torch.minimum(p(()), q(())).sum())
    assert expected_emission(Chain(), p, sample_chain(q, 1)) - 1 == pytest.approx(overlap, abs=1e-12)
    assert overlap == pytest.approx(1 - total_variation(p(()), q(())), abs=1e-12)


def test_equal_draft_is_always_accepted():
    p, _ = tables(4, seed=7)
    assert expected_emission(Chain(), p, sample_chain(p, 2)) == pytest.approx(3, abs=1e-12)


def test_match_accepts_the_mass_of_the_tree():
    # mean emission = 1 + sum over nodes of the target's probability of their path
    p, _ = tables(4, seed=8)
    tree = TokenTree.from_paths(0, [[0, 1], [0, 2], [3]])
    mass = sum(float(joint(p, len(path))[tuple(path)]) for path in ([0], [0, 1], [0, 2], [3]))
    assert expected_emission(Match(), p, lambda chooser: tree) == pytest.approx(1 + mass, abs=1e-12)


def test_without_replacement_accepts_more():
    for seed in range(10):
        p, q = tables(4, seed)
        got = {r: expected_emission(Recursive(), p, sample_tree(q, (2,), replacement=r)) for r in (True, False)}
        assert got[False] >= got[True] - 1e-12


def test_residual_mass_is_the_chance_that_every_test_fails():
    p, q = tables(4, seed=9)
    draft = sample_tree(q, (2,), replacement=True)             # with replacement it is the same for every sample

    def step(chooser):
        tree = draft(chooser)
        return Recursive().verify(tree, target_rows(tree, p), chooser)

    missed = [(verdict.residual_mass, weight) for verdict, weight in every_run(step) if verdict.accepted == 0]
    assert len({round(stated, 12) for stated, _ in missed}) == 1
    assert missed[0][0] == pytest.approx(sum(weight for _, weight in missed), abs=1e-12)


# ------------------------------------------------------------------------------------------------- clear refusals

def sampled(shape=(2,), replacement=False, vocabulary=4):
    p, q = tables(vocabulary)
    tree = sample_tree(q, shape, replacement=replacement)(RandomChooser(1))
    return tree, target_rows(tree, p), RandomChooser(2)


@pytest.mark.parametrize("name", ["chain", "recursive"])
def test_deterministic_tree_is_refused(name):
    tree = TokenTree.from_paths(0, [[1, 2]])
    p = torch.full((3, 4), 0.25).double()
    with pytest.raises(ValueError, match="deterministic.*verify='match'"):
        verifier(name).verify(tree, p, None)


def test_pruned_tree_is_refused():
    tree, p, chooser = sampled()
    keep = torch.tensor([True, False, True])
    pruned = tree.prune(keep)
    assert pruned.pruned
    with pytest.raises(ValueError, match="pruned=True.*verify='match'"):
        Recursive().verify(pruned, p[keep], chooser)


def test_forged_history_is_refused():
    tree, p, chooser = sampled()
    forged = replace(tree.prune(torch.tensor([True, False, True])), pruned=False)
    with pytest.raises(ValueError, match="sibling was dropped"):
        Recursive().verify(forged, p[[0, 2]], chooser)


def test_disagreement_on_replacement_is_refused():
    tree, p, chooser = sampled(replacement=True)
    with pytest.raises(ValueError, match="replacement=False.*let them agree"):
        Recursive(replacement=False).verify(tree, p, chooser)


def test_chain_refuses_a_branching_tree():
    tree, p, chooser = sampled()
    with pytest.raises(ValueError, match="branches"):
        Chain().verify(tree, p, chooser)


@pytest.mark.parametrize("spoil", [lambda p: p * 2, lambda p: p - 0.3, lambda p: p * float("nan")],
                         ids=["sum", "negative", "nan"])
@pytest.mark.parametrize("name", ["chain", "match", "recursive"])
def test_rows_that_are_no_distribution_are_refused(name, spoil):
    tree, p, chooser = sampled(shape=(1,))
    with pytest.raises(ValueError, match="must be a distribution"):
        verifier(name).verify(tree, spoil(p), chooser)


def test_unknown_verifier_is_refused():
    with pytest.raises(ValueError, match="verify must be 'auto'"):
        verifier("typical")
