"""Walking, pruning and repairing a graph."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ann.world import brute, clustered, gaussian
from tutor.ann import graph
from tutor.trace import Recorder

COVERS = ("ann.hnsw",)

# A line with one shortcut, small enough for paper and pencil. Node i stands at position x; the query stands at 10.
#   node       0    1    2    3    4    5
#   position   0    4    5    8    9   19
#   squared  100   36   25    4    1   81      distance to 10
LINE = np.asarray([[0.0], [4.0], [5.0], [8.0], [9.0], [19.0]], np.float32)
EDGES = [[1, 5], [0, 2], [1, 3], [2, 4], [3], [0]]


def adjacency(rows) -> list[np.ndarray]:
    return [np.asarray(row, np.int64) for row in rows]


def test_paper_and_pencil_walk():
    """Beam of 2 from node 0.
    measure 0 (100); expand 0: measure 1 (36) and 5 (81), which push 0 out.     beam {1, 5}
    expand 1: 0 is seen, measure 2 (25).        beam {2, 1}
    expand 2: measure 3 (4);  expand 3: measure 4 (1);  expand 4: nothing new.
    Left in the frontier: 5 at 81, beyond the worst held (4): stop.  6 measured, 5 expanded, answer 4 and 3."""
    beam = graph.beam_search(adjacency(EDGES), LINE, np.asarray([10.0], np.float32), [0], 2)
    assert beam.ids.tolist() == [4, 3] and beam.distances.tolist() == [1, 4]
    assert beam.expanded.tolist() == [0, 1, 2, 3, 4]
    assert beam.expanded_distances.tolist() == [100, 36, 25, 4, 1]
    assert (beam.cost["ndist"], beam.cost["nhops"]) == (6, 5)


def test_paper_and_pencil_descent():
    """From 0: neighbours 1 (36), 5 (81) -> 1; then 0, 2 -> 2; then 1, 3 -> 3; then 2, 4 -> 4; then 3: no nearer.
    Distances measured: 2 + 2 + 2 + 2 + 1 = 9, nodes seen before counted again."""
    node, dist, cost = graph.greedy(adjacency(EDGES), LINE, np.asarray([10.0], np.float32), 0, 100.0)
    assert (node, dist, cost["ndist"], cost["nhops"]) == (4, 1.0, 9, 5)


def test_known_distances_are_not_measured_again():
    q = np.asarray([10.0], np.float32)
    beam = graph.beam_search(adjacency(EDGES), LINE, q, [0], 2, known={0: 100.0})
    assert beam.ids.tolist() == [4, 3] and beam.cost["ndist"] == 5


def test_a_beam_of_one_still_expands_its_only_node():
    beam = graph.beam_search(adjacency(EDGES), LINE, np.asarray([10.0], np.float32), [0], 1)
    assert beam.ids.tolist() == [4]


def test_equal_distances_go_to_the_lower_id():
    X = np.asarray([[1.0], [1.0], [-1.0], [-1.0]], np.float32)
    full = adjacency([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    for entry in range(4):
        beam = graph.beam_search(full, X, np.zeros(1, np.float32), [entry], 2)
        assert beam.ids.tolist() == [0, 1]


def test_a_refused_neighbour_is_recorded_as_such():
    """A beam of 1 that holds node 1 (36) refuses node 5 (81)."""
    recorder = Recorder("ann.search/1", method="walk")
    graph.beam_search(adjacency(EDGES), LINE, np.asarray([10.0], np.float32), [0], 1, trace=recorder)
    trace = recorder.finish(xy=np.zeros((6, 2)), query_xy=np.zeros(2), truth=np.zeros(1), result=np.zeros(1),
                            true_dist=np.zeros(6))
    assert trace.of_kind("evaluated")["dst"].tolist() == [0, 1, 5, 2, 3, 4]
    assert trace.of_kind("evaluated")["accepted"].tolist() == [True, True, False, True, True, True]


@settings(max_examples=60, deadline=None)
@given(N=st.integers(1, 30), degree=st.integers(0, 4), L=st.integers(1, 35), seed=st.integers(0, 10 ** 6))
def test_a_wide_beam_finds_exactly_the_best_in_reach(N, degree, L, seed):
    rng = np.random.default_rng(seed)
    X = rng.integers(-4, 5, (N, 2)).astype(np.float32)
    q = rng.integers(-4, 5, 2).astype(np.float32)
    adj = [np.setdiff1d(rng.integers(0, N, degree), [i]) for i in range(N)]
    beam = graph.beam_search(adj, X, q, [0], L)
    reach = graph.reachable(adj, 0, N)
    assert reach[beam.ids].all() and len(set(beam.ids.tolist())) == len(beam.ids)
    assert beam.cost["ndist"] <= reach.sum()                    # no node is measured twice
    assert beam.cost["nhops"] == len(beam.expanded) == len(set(beam.expanded.tolist()))
    if L >= N:
        D = brute(X, q[None], "l2")[0]
        order = [i for i in np.lexsort((np.arange(N), D)) if reach[i]]
        assert beam.ids.tolist() == order


def test_a_walk_needs_an_entry_and_a_beam():
    for entry, L in (([], 3), ([0], 0)):
        with pytest.raises(ValueError, match="needs a beam L >= 1 and an entry"):
            graph.beam_search(adjacency(EDGES), LINE, np.zeros(1, np.float32), entry, L)


def test_recording_changes_nothing_and_counts_every_distance():
    q = np.asarray([10.0], np.float32)
    recorder = Recorder("ann.search/1", method="walk")
    loud = graph.beam_search(adjacency(EDGES), LINE, q, [0], 2, trace=recorder)
    quiet = graph.beam_search(adjacency(EDGES), LINE, q, [0], 2)
    assert loud.ids.tolist() == quiet.ids.tolist() and loud.cost == quiet.cost
    trace = recorder.finish(xy=np.zeros((6, 2)), query_xy=np.zeros(2), truth=np.asarray([4, 3]), result=loud.ids,
                            true_dist=np.zeros(6))
    assert trace.of_kind("evaluated")["dst"].tolist() == [0, 1, 5, 2, 3, 4]
    assert trace.of_kind("evaluated")["accepted"].tolist() == [True] * 6
    assert trace.of_kind("expanded")["dst"].tolist() == [0, 1, 2, 3, 4]
    assert trace.of_kind("stopped")["dist"].tolist() == [81]
    assert trace.of_kind("skipped")["dst"].tolist() == [0, 1, 2, 3]


# --- pruning

# The point p stands at 0 on a line; candidates left and right of it.
#   id         0    1    2    3    4
#   position   1    2    4   -3   -7
CANDIDATES = np.asarray([[1.0], [2.0], [4.0], [-3.0], [-7.0]], np.float32)
ORIGIN = np.zeros(1, np.float32)


def test_paper_and_pencil_prune():
    """Nearest first: keep 0 (at 1). 1: to node 0 it has 1, to p 4 -> dropped. 3 (at -3): to node 0 16 > 9 -> kept.
    2: to node 0 9 <= 16 -> dropped. 4: to node 3 16 <= 49 -> dropped. One neighbour on each side remains."""
    ids = np.arange(5)
    assert graph.select_neighbors(ORIGIN, ids, CANDIDATES, 5).tolist() == [0, 3]
    assert graph.select_neighbors(ORIGIN, ids, CANDIDATES, 1).tolist() == [0]
    assert graph.select_neighbors(ORIGIN, ids, CANDIDATES, 3, heuristic=False).tolist() == [0, 1, 3]
    assert graph.select_neighbors(ORIGIN, ids, CANDIDATES, 4, fill=True).tolist() == [0, 3, 1, 2]


def test_alpha_scales_true_distance():
    """alpha = 1.5: v goes if 1.5 · dist(c, v) <= dist(p, v).
    1 (at 2): 1.5 · 1 <= 2 goes. 2 (at 4): 1.5 · 3 = 4.5 > 4 stays.
    4 (at -7): from 3, 1.5 · 4 = 6 <= 7 goes. On squared distances the factor is 2.25."""
    assert graph.robust_prune(ORIGIN, np.arange(5), CANDIDATES, 5, alpha=1.5).tolist() == [0, 3, 2]


def test_an_equally_near_candidate_is_dropped():
    rows = np.asarray([[1.0], [2.0]], np.float32)                # p equals row 0, so row 1 is at 1 from both
    assert graph.select_neighbors(rows[0], np.arange(2), rows, 2).tolist() == [0]


def test_repair_edges_are_kept_whatever_shades_them():
    assert graph.select_neighbors(ORIGIN, np.arange(5), CANDIDATES, 2, keep=[4]).tolist() == [4, 0]
    assert graph.select_neighbors(ORIGIN, np.arange(5), CANDIDATES, 1, keep=[4, 2]).tolist() == [2, 4]
    assert graph.select_neighbors(ORIGIN, np.arange(5), CANDIDATES, 2, keep=[4], heuristic=False).tolist() == [4, 0]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 25), R=st.integers(1, 10), alpha=st.sampled_from([1.0, 1.2, 2.0]), seed=st.integers(0, 10 ** 6))
def test_pruned_lists_obey_the_rule(n, R, alpha, seed):
    """Against the definition, written as plain loops on true distances of whole-number rows."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-5, 6, (n, 2)).astype(np.float64)
    p = rng.integers(-5, 6, 2).astype(np.float64)
    far = lambda a, b: ((a - b) ** 2).sum()
    order = sorted(range(n), key=lambda i: (far(p, X[i]), i))
    kept: list[int] = []
    for c in order:
        if len(kept) < R and all(alpha ** 2 * far(X[r], X[c]) > far(p, X[c]) for r in kept):
            kept.append(c)
    assert graph.robust_prune(p, np.arange(n), X, R, alpha=alpha).tolist() == kept
    filled = graph.robust_prune(p, np.arange(n), X, R, alpha=alpha, fill=True).tolist()
    assert filled[:len(kept)] == kept and len(filled) == min(R, n)
    assert filled[len(kept):] == [c for c in order if c not in kept][:max(R - len(kept), 0)]


def test_larger_alpha_keeps_at_least_as_many():
    X, Q = gaussian(N=200, d=4)
    sizes = [[len(graph.robust_prune(q, np.arange(200), X, 200, alpha=a)) for q in Q] for a in (1.0, 1.2, 1.5)]
    assert (np.diff(np.mean(sizes, axis=1)) > 0).all()


def test_prune_refuses_what_makes_no_sense():
    X, Q = gaussian(N=20)
    with pytest.raises(ValueError, match="R and alpha must be >= 1"):
        graph.robust_prune(Q[0], np.arange(20), X, 0)
    with pytest.raises(ValueError, match=r"lift the rows with tutor\.ann\.mips\.lift"):
        graph.robust_prune(Q[0], np.arange(20), X, 4, alpha=1.2, metric="ip")


# --- reach

def test_reachable_follows_edges_one_way():
    adj = adjacency([[1], [2], [], [0]])
    assert graph.reachable(adj, 0, 4).tolist() == [True, True, True, False]
    assert graph.reachable(adj, 3, 4).all()


def test_paper_and_pencil_repair():
    """0 -> 1 is all that is in reach. 2 (at 5) hangs on its nearest, 1 (at 4), leads to 3 (at 8), on which 4 hangs."""
    adj = adjacency([[1], [], [3], [], [], [0]])
    assert graph.repair(adj, LINE, 0) == [(1, 2), (3, 4), (4, 5)]
    assert graph.reachable(adj, 0, 6).all()
    assert graph.repair(adj, LINE, 0) == []


def test_reverse_turns_every_edge():
    adj = adjacency([[1, 2], [2], [0], []])
    assert [row.tolist() for row in graph.reverse(adj)] == [[2], [0], [0, 1], []]


@settings(max_examples=40, deadline=None)
@given(N=st.integers(1, 40), degree=st.integers(0, 2), seed=st.integers(0, 10 ** 6))
def test_repair_both_ways_connects_every_pair(N, degree, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, 3)).astype(np.float32)
    adj = [np.setdiff1d(rng.integers(0, N, degree), [i]) for i in range(N)]
    before = [row.copy() for row in adj]
    edges = graph.repair(adj, X, 0, both_ways=True)
    for start in range(N):
        assert graph.reachable(adj, start, N).all()
    assert sum(map(len, adj)) == sum(map(len, before)) + len(edges)
    assert all(len(set(row.tolist())) == len(row) for row in adj)
    assert all(np.array_equal(row[:len(old)], old) for row, old in zip(adj, before))


def test_clusters_fall_apart_without_diverse_neighbours():
    X, _ = clustered(N=400, clusters=10)
    D = brute(X, X, "l2")
    nearest = [np.argsort(row, kind="stable")[1:9] for row in D]
    assert graph.reachable(nearest, 0, 400).mean() < 0.2
    diverse = [graph.select_neighbors(X[i], np.delete(np.arange(400), i), X, 8) for i in range(400)]
    assert graph.reachable(diverse, 0, 400).mean() > 0.9
