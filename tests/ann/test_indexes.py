"""Promises that every index of the catalog keeps, whatever it does inside."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ann.world import brute, built, full, gaussian, own_distances, registered, within_reach
from tutor.ann import metrics

COVERS = ("ann.flat", "ann.ivf", "ann.hnsw", "ann.faiss_replay")
INDEXES = registered()
every_index = pytest.mark.parametrize("entry", INDEXES, ids=[m.name for m in INDEXES])
every_metric = pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])


@every_index
@every_metric
def test_full_effort_equals_brute_force(entry, metric):
    X, Q = gaussian()
    index = built(entry.name, metric)
    found = index.search(Q, 10, **full(index))
    D = brute(X, Q, metric)
    np.testing.assert_array_equal(found.ids, np.argsort(D, axis=1, kind="stable")[:, :10])


@every_index
@every_metric
def test_returned_distances_are_the_true_ones_and_ascend(entry, metric):
    X, Q = gaussian()
    found = built(entry.name, metric).search(Q, 10)
    D = brute(X, Q, metric)
    np.testing.assert_allclose(found.distances, np.take_along_axis(D, found.ids, 1), rtol=1e-5, atol=1e-5)
    assert (np.diff(found.distances, axis=1) >= 0).all()


@every_index
def test_no_id_is_returned_twice(entry):
    _, Q = gaussian()
    for k in (1, 10, 50):
        for row in built(entry.name).search(Q, k).ids:
            given = row[row >= 0]                               # few opened lists may hold fewer than k rows
            assert len(set(given.tolist())) == len(given) >= min(k, 5)
            assert (row[len(given):] == -1).all()


@every_index
def test_recall_grows_with_effort(entry):
    X, _ = gaussian()
    Q = gaussian(nq=200, seed=5)[1]
    index = built(entry.name)
    truth = np.argsort(brute(X, Q, "l2"), axis=1, kind="stable")[:, :10]
    if not index.effort:
        assert metrics.recall(index.search(Q, 10).ids, truth) == 1
        return
    found = [index.search(Q, 10, **{index.effort: e}).ids for e in (10, 20, 40, 80, 300)]
    recalls = [metrics.recall(ids, truth) for ids in found]
    assert recalls[0] < 1 and recalls[-1] == 1
    assert all(a <= b for a, b in zip(recalls, recalls[1:])), recalls
    if "nested" in entry.flags:                                 # each query by itself never loses a neighbour
        per_query = np.asarray([[metrics.recall(i, t) for i, t in zip(ids, truth)] for ids in found])
        assert (np.diff(per_query, axis=0) >= 0).all()


@every_index
def test_cost_grows_with_effort_and_is_the_sum_over_queries(entry):
    _, Q = gaussian()
    index = built(entry.name)
    alone = [index.search(q, 10).cost for q in Q]
    assert sum(alone) == index.search(Q, 10).cost
    assert alone[0]["ndist"] > 0
    if index.effort:
        cheap, dear = (index.search(Q, 10, **{index.effort: e}).cost["ndist"] for e in (10, 100))
        assert cheap < dear


@every_index
@pytest.mark.parametrize("k", [1, 7, 40])
def test_k_from_one_to_all(entry, k):
    X, Q = gaussian(N=40)
    index = entry.build().build(X)
    found = index.search(Q, k, **full(index))
    assert found.ids.shape == found.distances.shape == (len(Q), k)
    np.testing.assert_array_equal(found.ids, np.argsort(brute(X, Q, "l2"), axis=1, kind="stable")[:, :k])


@every_index
def test_a_single_row_and_one_dimension(entry):
    one = entry.build().build(np.asarray([[3.0]]))
    found = one.search([5.0], 1, **full(one))
    assert found.ids.tolist() == [[0]] and found.distances.tolist() == [[4.0]]
    line = np.arange(50, dtype=np.float32)[:, None] ** 1.5
    index = entry.build().build(line)
    found = index.search(np.asarray([[0.0], [400.0]]), 3, **full(index))
    assert found.ids[0].tolist() == [0, 1, 2] and found.ids[1, 0] == 49


@every_index
def test_padding_fills_with_minus_one_and_infinity(entry):
    X, Q = gaussian(N=5)
    index = entry.build().build(X)
    found = index.search(Q, 8, pad=True, **{index.effort: 8} if index.effort else {})
    assert (found.ids[:, 5:] == -1).all() and np.isinf(found.distances[:, 5:]).all()
    assert (np.sort(found.ids[:, :5], axis=1) == np.arange(5)).all()


@every_index
def test_float16_is_widened_and_float64_kept(entry):
    X, Q = gaussian(N=60)
    half = entry.build().build(X.astype(np.float16))
    assert half.X.dtype == np.float32
    double = entry.build().build(X.astype(np.float64)).search(Q, 3)
    assert double.distances.dtype == np.float64
    found = half.search(Q.astype(np.float16), 3, **full(half))
    expected = np.argsort(brute(X.astype(np.float16), Q.astype(np.float16), "l2"), axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.ids, expected)


@every_index
def test_same_input_gives_the_same_answer_and_cost(entry):
    X, Q = gaussian()
    a, b = (entry.build().build(X).search(Q, 10) for _ in range(2))
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.distances, b.distances)
    assert a.cost == b.cost


@every_index
def test_permuting_rows_permutes_ids_at_full_effort(entry):
    X, Q = gaussian(N=120)
    order = np.random.default_rng(3).permutation(len(X))
    index = entry.build().build(X[order])
    found = index.search(Q, 5, **full(index))
    np.testing.assert_array_equal(order[found.ids], np.argsort(brute(X, Q, "l2"), axis=1, kind="stable")[:, :5])


@every_index
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_duplicate_rows_and_ties_keep_the_exact_distances(entry, data):
    """Small whole numbers: many equal rows, many equal distances, all exact in float32."""
    N, d = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4))
    X = np.asarray(data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=d, max_size=d), min_size=N, max_size=N)))
    q = np.asarray(data.draw(st.lists(st.integers(-3, 3), min_size=d, max_size=d)))
    k = data.draw(st.integers(1, N))
    index = entry.build().build(X)
    found = index.search(q, k, pad=True, **full(index))
    reach = within_reach(index, q.astype(np.float32))
    expected = np.sort(own_distances(index, q.astype(np.float32))[reach])[:k]
    np.testing.assert_array_equal(found.distances[0, :len(expected)], expected)
    assert (found.ids[0, len(expected):] == -1).all()
    ids = found.ids[0][found.ids[0] >= 0]
    assert len(set(ids.tolist())) == len(ids)
    if reach.all():                                             # equal distances are ordered by id
        assert ids.tolist() == np.argsort(own_distances(index, q.astype(np.float32)), kind="stable")[:k].tolist()
    else:
        assert "peer" in entry.flags                            # our own graphs are always repaired


# --- refusals

@every_index
@pytest.mark.parametrize("bad, message", [
    (np.zeros((0, 4)), r"X must be a matrix.*\(0, 4\)"),
    (np.zeros(4), r"X must be a matrix.*\(4,\)"),
    (np.asarray([[1.0, np.nan]]), r"X of shape \(1, 2\) holds NaN or infinity, first in row 0"),
    (np.asarray([[1.0, 2.0], [np.inf, 0.0]]), r"first in row 1"),
], ids=["no rows", "one axis", "nan", "inf"])
def test_bad_rows_are_refused(entry, bad, message):
    with pytest.raises(ValueError, match=message):
        entry.build().build(bad)


@every_index
def test_bad_questions_are_refused(entry):
    X, Q = gaussian(N=20)
    with pytest.raises(RuntimeError, match=r"search was called before build; call \.build"):
        entry.build().search(Q, 1)
    with pytest.raises(ValueError, match="metric must be one of .*got 'hamming'"):
        entry.build().build(X, "hamming")
    with pytest.raises(ValueError, match=r"row 2 of X \(shape \(20, 12\)\) is zero and has no cosine"):
        entry.build().build(np.where(np.arange(20)[:, None] == 2, 0, X), "cosine")
    index = entry.build().build(X)
    with pytest.raises(ValueError, match=r"q has width 11 \(shape \(20, 11\)\), but the index holds width 12"):
        index.search(Q[:, :11], 1)
    with pytest.raises(ValueError, match="q of shape .* holds NaN"):
        index.search(np.full(12, np.nan), 1)
    with pytest.raises(ValueError, match="k must be >= 1; got 0"):
        index.search(Q, 0, **full(index))
    with pytest.raises(ValueError, match="k=21 exceeds the 20 rows.*pad=True"):
        index.search(Q, 21, **({index.effort: 21} if index.effort else {}))
    if index.effort:
        with pytest.raises(ValueError, match=f"{index.effort} must be >= 1; got 0"):
            index.search(Q, 1, **{index.effort: 0})
    with pytest.raises(ValueError, match="zero and has no cosine"):
        entry.build().build(X, "cosine").search(np.zeros(12), 1)


@pytest.mark.parametrize("entry", [m for m in INDEXES if m.build.effort == "ef"], ids=lambda m: m.name)
def test_a_beam_below_k_is_lifted_with_a_warning(entry):
    _, Q = gaussian()
    index = built(entry.name)
    with pytest.warns(UserWarning, match="ef=3 is below k=10 and was lifted to 10"):
        lifted = index.search(Q, 10, ef=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(lifted.ids, index.search(Q, 10, ef=10).ids)
