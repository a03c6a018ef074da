"""RoarGraph: what the queries wire, what the walks join, and what both are worth to queries from elsewhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ann.world import gaussian
from tutor.ann import bench, graph
from tutor.ann.record import record
from tutor.ann.roargraph import FREE, Neighbours, RoarGraph, answers, connect, medoid, project

COVERS = ("ann.roargraph",)

KEYS = np.asarray([[-3, 3], [-2, 0], [-1, -1], [1, -1], [2, 0], [3, 2]], np.float32)
ASKED = np.asarray([[0, 1], [1, 0], [0, -1]], np.float32)          # up, right and down, by inner product


def empty(N: int, M: int) -> np.ndarray:
    return np.full((N, 2 * M), FREE, np.int32)


def rows(table: np.ndarray, M: int, second: bool = False) -> list[list[int]]:
    half = table[:, M:] if second else table[:, :M]
    return [[int(v) for v in row if v != FREE] for row in half]


def elsewhere(N: int = 400, d: int = 12, nq: int = 100, seed: int = 0):
    """Rows, training and test queries; queries point along three directions in which rows hardly differ."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, d)) * np.r_[np.full(3, 0.3), np.full(d - 3, 1.5)]
    far = lambda n: rng.standard_normal((n, d)) * np.r_[np.full(3, 4.0), np.full(d - 3, 0.3)]
    return X.astype(np.float32), far(2 * N).astype(np.float32), far(nq).astype(np.float32)


# --- by hand

def test_paper_and_pencil_answers():
    """Up: scores 3 0 -1 -1 0 2. Right: -3 -2 -1 1 2 3. Down: -3 0 1 1 0 -2. Ties to the lower id."""
    assert answers(KEYS, ASKED, 3, "ip").tolist() == [[0, 5, 1], [5, 4, 3], [2, 3, 1]]
    assert medoid(KEYS) == 2                                       # mean (0, 0.5): 2 and 3 at 3.25, the lower wins


def test_paper_and_pencil_projection():
    """M = 2. Up: pivot 0; to it 1 has 10, 5 has 37. Keep 1; 5 is nearer to 1 (29) -> dropped, filled back. 0: [1, 5].
    Right: pivot 5, which has the back link 0. To it 4 has 5, 3 has 13, 0 has 37. Keep 4; to 4, 3 has 2 and 0 has 34:
    both dropped; 3 fills. 5: [4, 3], and the edge to 0 is gone.
    Down: pivot 2; 1 has 2, 3 has 4 (and 10 to 1): both stay. 2: [1, 3]."""
    table = empty(6, 2)
    project(KEYS, answers(KEYS, ASKED, 3, "ip"), table, 2)
    assert rows(table, 2) == [[1, 5], [0, 2], [1, 3], [5, 2], [5], [4, 3]]
    assert (table[:, 2:] == FREE).all()


def test_a_shared_pivot_is_merged_or_replaced():
    """Two queries with pivot 0 like 1 and 2. Merged, 0 is joined to both; replaced, to the last one's only."""
    X = np.asarray([[0.0, 0], [1, 0], [0, 1]], np.float32)
    top = np.asarray([[0, 1], [0, 2]])
    for merge, expected in ((True, [1, 2]), (False, [2])):
        table = empty(3, 2)
        project(X, top, table, 2, merge=merge)
        assert rows(table, 2)[0] == expected and rows(table, 2)[1] == [0]


def test_short_answers_are_padded():
    table = empty(6, 2)
    assert project(KEYS, np.asarray([[FREE, FREE], [4, FREE]]), table, 2) == 0
    assert (table == FREE).all()


def test_paper_and_pencil_connection():
    """Nothing projected, M = 2, entry 1 on the line 0 1 2 3: each walk starts at row 1 and links both ways.
    0: meets 1. 1: meets 0, linked already. 2: meets 1 and 0; 0 lies behind 1. 3: meets 1, 2 and 0; 2 shades them."""
    line = np.asarray([[0.0], [1], [2], [3]], np.float32)
    table = empty(4, 2)
    connect(line, table, 1, 2, 4, 0, 4)
    assert rows(table, 2, second=True) == [[1], [0, 2], [1, 3], [2]]
    assert (table[:, :2] == FREE).all()


def test_a_row_can_be_added_later():
    X, _ = gaussian(N=60, d=4)
    whole, grown = empty(60, 5), empty(60, 5)
    connect(X, whole, 0, 5, 20, 0, 60)
    for p in range(60):
        connect(X, grown, 0, 5, 20, p, p + 1)
    np.testing.assert_array_equal(whole, grown)


# --- what must always hold

@settings(max_examples=40, deadline=None)
@given(N=st.integers(1, 40), n=st.integers(0, 25), M=st.integers(1, 6), asked=st.integers(1, 12), merge=st.booleans(),
       metric=st.sampled_from(["l2", "ip"]), seed=st.integers(0, 10 ** 6))
def test_lists_are_clean_and_every_row_is_in_reach(N, n, M, asked, merge, metric, seed):
    rng = np.random.default_rng(seed)
    X, Q = rng.integers(-3, 4, (N, 3)).astype(np.float32), rng.integers(-3, 4, (n, 3)).astype(np.float32)
    bare = RoarGraph(asked, M, 8, merge=merge, repair=False).build(X, metric, queries=Q)
    for i, row in enumerate(bare.adj):
        assert len(row) <= 2 * M and i not in row and len(set(row.tolist())) == len(row)
    index = RoarGraph(asked, M, 8, merge=merge).build(X, metric, queries=Q)
    for start in range(N):
        assert graph.reachable(index.adj, start, N).all()
    assert sum(map(len, index.adj)) == sum(map(len, bare.adj)) + index.repaired
    found = index.search(rng.integers(-3, 4, 3), min(N, 5), ef=N)
    np.testing.assert_array_equal(np.sort(found.distances[0]), found.distances[0])


def test_queries_that_want_few_rows_leave_the_others_to_the_walks():
    X, far, Q = elsewhere()
    alone = RoarGraph(10, 8, connect=False, repair=False).build(X, "ip", queries=far[:60])
    assert alone.wired < 0.5 and alone.reachable().mean() < 0.5    # even the entry may be without an edge
    index = RoarGraph(10, 8).build(X, "ip", queries=far[:60])
    assert index.wired == alone.wired and index.reachable().all()
    found = index.search(Q, 10, ef=len(X))
    np.testing.assert_array_equal(found.ids, bench.truth(X, Q, 10, "ip"))


def test_without_queries_the_walks_alone_make_a_graph():
    X, Q = gaussian(N=400, d=6)
    none, zero = RoarGraph(M=8).build(X), RoarGraph(M=8).build(X, queries=np.zeros((0, 6)))
    assert none.wired == 0 and none.reachable().all()
    assert all(np.array_equal(a, b) for a, b in zip(none.adj, zero.adj))
    assert bench.sweep(none, Q, 10, bench.truth(X, Q, 10, "l2"), [40]).recall[0] > 0.95


def test_queries_from_elsewhere_are_cheaper_on_a_graph_they_wired():
    """Against the same graph without queries and the distances that recall@10 of 0.95 takes."""
    X, far, Q = elsewhere()
    truth = bench.truth(X, Q, 10, "ip")
    share = {}
    for name, asked in (("queries", far), ("rows", None)):
        index = RoarGraph(20, 8, 60).build(X, "ip", queries=asked)
        share[name] = bench.sweep(index, Q, 10, truth, bench.beams(10, 400), stop=0.95).share_at(0.95)
    assert share["queries"] < 0.75 * share["rows"]


def test_queries_like_the_rows_gain_nothing():
    X, _ = gaussian(N=400, d=8)
    near, Q = gaussian(N=800, d=8, nq=100, seed=3)
    truth = bench.truth(X, Q, 10, "l2")
    share = [bench.sweep(RoarGraph(20, 8, 60).build(X, queries=asked), Q, 10, truth, bench.beams(10, 400),
                         stop=0.95).share_at(0.95) for asked in (near, None)]
    assert 0.7 < share[0] / share[1] < 1.4


def test_a_larger_beam_finds_no_less():
    X, far, Q = elsewhere()
    index = RoarGraph(20, 8, 60).build(X, "ip", queries=far)
    recall = bench.sweep(index, Q, 10, bench.truth(X, Q, 10, "ip"), [10, 20, 40, 80, 160, 400]).recall
    assert (np.diff(recall) > -0.01).all() and recall[-1] == 1


def test_build_cost_counts_the_asking():
    X, far, _ = elsewhere()
    cost = [RoarGraph(20, 8, 60).build(X, "ip", queries=far[:n]).build_cost for n in (1, 201)]
    assert cost[1]["build_dots"] > cost[0]["build_dots"] + 200 * len(X)
    adj = RoarGraph(20, 8, 60).build(X, "ip", queries=far[:1]).adj
    assert cost[0]["index_bytes"] == 4 * sum(map(len, adj))


def test_a_recorded_search_shows_the_edges():
    X, far, Q = elsewhere(N=80)
    index = RoarGraph(10, 4, 20).build(X, "ip", queries=far)
    drawn = {tuple(edge) for edge in record(index, Q[0], 5, ef=10).arrays["edges"].tolist()}
    assert drawn == {(min(i, j), max(i, j)) for i, row in enumerate(index.adj) for j in row.tolist()}


def test_a_table_reads_as_adjacency():
    table = np.asarray([[1, FREE, 2, FREE], [FREE] * 4, [0, 1, FREE, FREE]], np.int32)
    assert [row.tolist() for row in Neighbours(table)] == [[1, 2], [], [0, 1]]


@pytest.mark.parametrize("make, message", [
    (lambda: RoarGraph(M=0), "M must be >= 1; got 0"), (lambda: RoarGraph(neighbours=0), "neighbours must be >= 1"),
    (lambda: RoarGraph(ef_construction=0), "ef_construction must be >= 1"),
    (lambda: RoarGraph().build(KEYS, queries=np.ones((4, 3))), r"queries has width 3 .*but the index holds width 2"),
    (lambda: RoarGraph().build(KEYS, queries=np.full((4, 2), np.nan)), "queries of shape .* holds NaN"),
    (lambda: RoarGraph().build(KEYS, "hamming", queries=ASKED), "metric must be one of"),
    (lambda: RoarGraph().build(KEYS, "cosine", queries=np.zeros((1, 2))), "row 0 of queries .* is zero"),
], ids=["M", "neighbours", "beam", "width", "nan", "metric", "zero"])
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
