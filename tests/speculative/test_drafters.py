"""Drafters: what they propose, and that they stay in step with the text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.model.llama import tiny_llama
from tutor.speculative.chooser import RandomChooser
from tutor.speculative.draft.autoregressive import Autoregressive
from tutor.speculative.draft.model_chain import ModelChain
from tutor.speculative.draft.model_tree import ModelTree
from tutor.speculative.draft.prompt_lookup import PromptLookup
from tutor.speculative.verify.base import Verdict
from tutor.speculative.warp import GREEDY, Warp

COVERS = ("speculative.autoregressive", "speculative.prompt_lookup", "speculative.model_chain",
          "speculative.model_tree")

TARGET = tiny_llama()


def test_lookup_by_hand():
    #       0  1  2  3  4  5  6  7  8  9 10 11
    text = [5, 1, 2, 3, 7, 1, 2, 3, 9, 1, 2, 3]
    assert PromptLookup().find(text) == [9, 1, 2, 3]                      # newest "1 2 3" stands at 5..7
    assert PromptLookup(match="first").find(text) == [7, 1, 2, 3, 9, 1, 2, 3]
    assert PromptLookup(length=2, match="first").find(text) == [7, 1]
    assert PromptLookup(shortest=5).find(text) == [7, 1, 2, 3, 9, 1, 2, 3]    # the newest has only four followers
    assert PromptLookup().find([4, 1, 8, 1]) == [8, 1]                    # sizes 3 and 2 find nothing, size 1 does
    assert PromptLookup().find([1, 2, 3]) == PromptLookup().find([1]) == []
    assert PromptLookup().find([6, 6]) == [6]                             # may overlap the suffix, may not be it


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.sampled_from([(3, 2, 1), (2,), (1,), (5, 1)]),
       st.sampled_from(["last", "first"]), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_lookup_is_the_definition(text, sizes, match, shortest):
    def define():
        for size in sizes:
            found = [i + size for i in range(len(text) - size)
                     if text[i:i + size] == text[len(text) - size:] and len(text) - (i + size) >= shortest]
            if found:
                start = found[-1] if match == "last" else found[0]
                return text[start:start + 5]
        return []
    assert PromptLookup(sizes, 5, match, shortest).find(text) == define()


@pytest.mark.parametrize("wrong", [{"sizes": ()}, {"sizes": (0,)}, {"length": 0}, {"match": "best"},
                                   {"shortest": 11}], ids=str)
def test_lookup_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PromptLookup(**wrong)


@pytest.mark.parametrize("make", [Autoregressive, PromptLookup, lambda: ModelChain(TARGET), lambda: ModelTree(TARGET)])
def test_budget_is_kept_and_checked(make):
    drafter = make()
    text = [3, 4, 3, 4]
    for budget in (1, 2, 9):
        drafter.reset(text, warp=Warp(), chooser=RandomChooser(0))
        tree = drafter.propose(text, 4, budget)
        assert int(tree.depth().max()) <= budget and int(tree.tokens[0]) == 4
    with pytest.raises(ValueError, match="budget must be >= 1"):
        drafter.propose(text, 4, 0)


def test_model_drafters_refuse_nonsense():
    with pytest.raises(ValueError, match="gamma must be"):
        ModelChain(TARGET, -1)
    for shape in ((), (2, 0)):
        with pytest.raises(ValueError, match="shape must hold"):
            ModelTree(TARGET, shape)


@pytest.mark.parametrize("layers", [None, [1]], ids=["whole", "one-layer"])
def test_chain_states_the_distribution_it_drew_from(layers):
    text, warp = [3, 4, 5, 9], Warp(0.7, top_k=9)
    drafter = ModelChain(TARGET, 3, layers=layers)
    drafter.reset(text, warp=warp, chooser=RandomChooser(1))
    for accepted in (3, 0, 1, 3):                                         # after each, the draft's cache must still fit
        tree = drafter.propose(text, text[-1], 9)
        for i in range(3):
            seen = text + tree.tokens[1:i + 1].tolist()
            q = warp(TARGET.forward(torch.tensor([seen]), layers=layers).logits[0, -1])
            torch.testing.assert_close(tree.qdist[i], q, atol=1e-12, rtol=0)
            assert float(tree.qprob[i + 1]) == float(tree.qdist[i][tree.tokens[i + 1]]) > 0
        drafter.observe(tree, None, Verdict(list(range(accepted + 1)), 7))
        text = [*text, *tree.tokens[1:accepted + 1].tolist(), 7]
    assert drafter.cost["draft_forwards"] == 12


@pytest.mark.parametrize("replacement", [True, False], ids=["with", "without"])
def test_tree_states_the_distribution_it_drew_from(replacement):
    text, warp = [3, 4, 5, 9], Warp(0.7, top_k=9)
    drafter = ModelTree(TARGET, (3, 2, 1), replacement, layers=[0])
    drafter.reset(text, warp=warp, chooser=RandomChooser(1))
    for step in range(4):
        tree = drafter.propose(text, text[-1], 9)
        assert len(tree) == 1 + 3 + 6 + 6 and tree.replacement is replacement and tree.sampled
        for node in range(10):                                            # all but the last layer
            seen = text[:-1] + tree.tokens[tree.path_to(node)].tolist()
            q = warp(TARGET.forward(torch.tensor([seen]), layers=[0]).logits[0, -1])
            torch.testing.assert_close(tree.qdist[node], q, atol=1e-12, rtol=0)
            left = q.clone()
            for child in tree.children(node):
                token = int(tree.tokens[child])
                assert float(tree.qprob[child]) == pytest.approx(float(left[token]), rel=1e-9)
                if not replacement:
                    left[token] = 0
                    left = left / left.sum()
        path = tree.path_to([0, 1, 5, len(tree) - 1][step])
        drafter.observe(tree, None, Verdict(path, 7))
        text = [*text, *tree.tokens[path[1:]].tolist(), 7]


def test_tree_without_replacement_stops_at_the_support():
    drafter = ModelTree(TARGET, (4, 1))
    drafter.reset([1, 2], warp=GREEDY, chooser=RandomChooser(0))          # one possible token per node
    assert len(drafter.propose([1, 2], 2, 9)) == 3


def test_draft_keeps_its_own_warp():
    drafter = ModelChain(TARGET, 2, warp=GREEDY)
    drafter.reset([1, 2], warp=Warp(), chooser=RandomChooser(0))
    assert drafter.propose([1, 2], 2, 9).qprob[1:].tolist() == [1, 1]
