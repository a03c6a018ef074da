"""The token tree: derived quantities against definitions, rearrangements that must not matter, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.speculative.tree import TokenTree

COVERS = ("speculative.match", "speculative.recursive")


@st.composite
def trees(draw, largest=12):
    n = draw(st.integers(1, largest))
    parent = [-1] + [draw(st.integers(0, i - 1)) for i in range(1, n)]
    return TokenTree(torch.tensor(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))), torch.tensor(parent))


def test_paper_and_pencil():
    #        7            two continuations, "1 2" and "1 3", and a lone "4"
    #       / \
    #      1   4
    #     / \
    #    2   3
    tree = TokenTree.from_paths(7, [[1, 2], [1, 3], [4]])
    assert tree.tokens.tolist() == [7, 1, 2, 3, 4]
    assert tree.parent.tolist() == [-1, 0, 1, 1, 0]
    assert tree.depth().tolist() == [0, 1, 2, 2, 1]
    assert tree.positions(10).tolist() == [10, 11, 12, 12, 11]           # siblings share a position
    assert tree.children(0) == [1, 4] and tree.children(1) == [2, 3] and tree.leaves() == [2, 3, 4]
    assert tree.paths().tolist() == [[0, 1, 2], [0, 1, 3], [0, 4, -1]]
    assert tree.mask().int().tolist() == [[1, 0, 0, 0, 0],
                                          [1, 1, 0, 0, 0],
                                          [1, 1, 1, 0, 0],
                                          [1, 1, 0, 1, 0],
                                          [1, 0, 0, 0, 1]]
    assert tree.bfs_order() == [0, 1, 4, 2, 3] and tree.dfs_order() == [0, 1, 2, 3, 4]
    assert not tree.is_chain and not tree.sampled


@given(trees())
@settings(max_examples=100, deadline=None)
def test_mask_is_the_ancestor_closure(tree):
    up = torch.zeros(len(tree), len(tree))
    for i, parent in enumerate(tree.parent.tolist()[1:], start=1):
        up[i, parent] = 1
    closure = torch.linalg.inv(torch.eye(len(tree)) - up)                # I + U + U² + …: every way up
    assert torch.equal(tree.mask(), closure.round() > 0)
    assert torch.equal(tree.mask().sum(1), tree.depth() + 1)             # a node sees its depth and itself
    assert tree.is_chain == torch.equal(tree.mask(), torch.ones(len(tree), len(tree)).tril().bool())


@given(trees(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_permutation_keeps_every_path(tree, random):
    words = lambda t: sorted(tuple(t.tokens[[n for n in row if n >= 0]].tolist()) for row in t.paths().tolist())
    for order in (tree.bfs_order(), tree.dfs_order()):
        moved = tree.permute(order)
        assert words(moved) == words(tree)
        assert torch.equal(moved.mask(), tree.mask()[order][:, order])
        assert torch.equal(moved.depth(), tree.depth()[order])
        back = torch.argsort(torch.tensor(order)).tolist()
        assert torch.equal(moved.permute(back).parent, tree.parent)


@given(trees(), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_cut_and_prune_keep_whole_paths(tree, depth):
    short = tree.cut(depth)
    assert int(short.depth().max()) <= depth and len(short) == int((tree.depth() <= depth).sum())
    keep = tree.depth() <= depth
    assert torch.equal(tree.prune(keep).parent, short.parent) and not short.pruned


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=6))
@settings(max_examples=100, deadline=None)
def test_from_paths_holds_each_prefix_once(paths):
    tree = TokenTree.from_paths(9, paths)
    words = [tuple(tree.tokens[tree.path_to(i)[1:]].tolist()) for i in range(len(tree))]
    assert len(set(words)) == len(words)
    assert set(words) == {tuple(path[:n]) for path in paths for n in range(len(path) + 1)} | {()}


def test_chain_remembers_what_each_token_was_drawn_from():
    q = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).double()
    tree = TokenTree.chain(0, [1, 0], q)
    assert tree.is_chain and tree.sampled
    torch.testing.assert_close(tree.qprob[1:], torch.tensor([0.8, 0.6]).double())
    assert torch.equal(tree.qdist[:2], q)                                # the row of a node is for its children
    assert not TokenTree.chain(0, [1, 0]).sampled and TokenTree.chain(5, []).tokens.tolist() == [5]


@pytest.mark.parametrize("tokens,parent,message", [
    ([], [], "needs at least its root"),
    ([1, 2], [0, 0], r"parent\[0\] = 0"),
    ([1, 2, 3], [-1, 2, 1], "node 1 has parent 2"),
    ([1, 2], [-1, 1], "node 1 has parent 1"),
    ([1, 2, 3], [-1, 0, -1], "node 2 has parent -1"),
    ([1, 2], [-1], "vectors of one length"),
])
def test_malformed_tree_is_refused(tokens, parent, message):
    with pytest.raises(ValueError, match=message):
        TokenTree(torch.tensor(tokens), torch.tensor(parent))


def test_wrong_shapes_and_orders_are_refused():
    tree = TokenTree.from_paths(0, [[1], [2]])
    with pytest.raises(ValueError, match="keep siblings in order"):
        tree.permute([0, 2, 1])
    with pytest.raises(ValueError, match="name every node"):
        tree.permute([0, 1, 1])
    with pytest.raises(ValueError, match="must stand before its child"):
        TokenTree.from_paths(0, [[1, 2]]).permute([0, 2, 1])
    with pytest.raises(ValueError, match="its parent is not"):
        TokenTree.from_paths(0, [[1, 2]]).prune(torch.tensor([True, False, True]))
    with pytest.raises(ValueError, match="qprob must have one entry"):
        TokenTree(torch.tensor([1, 2]), torch.tensor([-1, 0]), torch.ones(3))
    with pytest.raises(ValueError, match="one row per drafted token"):
        TokenTree.chain(0, [1], torch.ones(2, 3))
