"""The compiled graph search writes the same edges and finds the same rows as the plain one."""

from __future__ import annotations

import numpy as np
import pytest

from tutor.ann import graph, roargraph
from tutor.ann.roargraph import FREE, Neighbours, RoarGraph
from tutor.kernels.graph_search import beam_search, connect, project, reachable

COVERS = ("ann.roargraph", "attention.retrieval")


def whole_numbers(N: int, d: int, nq: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and queries whose distances are exact in single precision: many ties, one answer."""
    rng = np.random.default_rng(seed)
    return rng.integers(-4, 5, (N, d)).astype(np.float32), rng.integers(-4, 5, (nq, d)).astype(np.float32)


def tables(module, X, top, M, beam, merge=True):
    table = np.full((len(X), 2 * M), FREE, np.int32)
    dots = module.project(X, top, table, M, merge=merge)
    return table, dots + module.connect(X, table, 0, M, beam, 0, len(X))


SHAPES = [(1, 3, 1, 1, 4), (2, 1, 3, 2, 1), (37, 5, 9, 3, 8), (90, 2, 40, 6, 20), (120, 7, 60, 1, 30), (64, 64, 10, 8, 64)]


@pytest.mark.parametrize("N, d, nq, M, beam", SHAPES)
@pytest.mark.parametrize("merge", [True, False])
def test_the_edges_and_their_cost_are_the_same(N, d, nq, M, beam, merge):
    X, Q = whole_numbers(N, d, nq, seed=N)
    top = roargraph.answers(X, Q, 10, "ip")
    top[::3, 2:] = FREE                                            # short answers
    plain, dots = tables(roargraph, X, top, M, beam, merge)
    import tutor.kernels.graph_search as fast

    table, spent = tables(fast, X, top, M, beam, merge)
    np.testing.assert_array_equal(table, plain)
    assert dots == spent


@pytest.mark.parametrize("N, d, nq, M, beam", SHAPES)
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_a_walk_finds_and_counts_the_same(N, d, nq, M, beam, metric):
    X, Q = whole_numbers(N, d, nq, seed=N)
    table, _ = tables(roargraph, X, roargraph.answers(X, Q, 5, metric), M, beam)
    for L in (1, 4, beam, N, N + 5):
        ids, dist, ndist, nhops = beam_search(table, X, Q, 0, L, metric=metric)
        for i, q in enumerate(Q):
            walk = graph.beam_search(Neighbours(table), X, q, [0], L, metric=metric)
            n = len(walk.ids)
            np.testing.assert_array_equal(ids[i, :n], walk.ids)
            np.testing.assert_array_equal(dist[i, :n], walk.distances)
            assert (ids[i, n:] == FREE).all() and np.isinf(dist[i, n:]).all()
            assert (ndist[i], nhops[i]) == (walk.cost["ndist"], walk.cost["nhops"])


def test_rows_added_one_by_one_make_the_same_graph():
    X, _ = whole_numbers(50, 4, 1, seed=7)
    once, grown = (np.full((50, 10), FREE, np.int32) for _ in range(2))
    connect(X, once, 0, 5, 12, 0, 50)
    for p in range(50):
        connect(X, grown, 0, 5, 12, p, p + 1)
    np.testing.assert_array_equal(once, grown)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_in_reach_is_the_same(seed):
    rng = np.random.default_rng(seed)
    table = np.where(rng.random((40, 4)) < 0.35, rng.integers(0, 30, (40, 4)), FREE).astype(np.int32)
    for entry in (0, 7, 29):
        want = graph.reachable(Neighbours(table), entry, 30)
        np.testing.assert_array_equal(reachable(table, entry, 30), want)
        assert 1 <= want.sum() < 30                                # none of these graphs holds together


def test_real_numbers_agree_but_for_near_ties():
    rng = np.random.default_rng(0)
    X, Q = rng.standard_normal((300, 16)).astype(np.float32), rng.standard_normal((60, 16)).astype(np.float32)
    plain, fast = (RoarGraph(10, 6, 30, fast=f).build(X, "ip", queries=Q) for f in (False, True))
    same = np.mean([np.array_equal(a, b) for a, b in zip(plain.adj, fast.adj)])
    assert same > 0.95
    assert project(X, np.zeros((0, 3), np.int64), np.full((300, 4), FREE, np.int32), 2) == 0


@pytest.mark.parametrize("bad, message", [
    (dict(L=0), "beam L >= 1; got L=0"), (dict(entry=9), r"entry must be a row of X, in \[0, 4\); got 9"),
    (dict(metric="cosine"), "metric='l2'"), (dict(metric="hamming"), "metric must be one of"),
], ids=["beam", "entry", "cosine", "unknown"])
def test_bad_walks_are_refused(bad, message):
    given = {"entry": 0, "L": 2, "metric": "l2"} | bad
    with pytest.raises(ValueError, match=message):
        beam_search(np.full((4, 2), FREE, np.int32), np.eye(4), np.eye(4), given["entry"], given["L"], metric=given["metric"])
