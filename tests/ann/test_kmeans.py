"""k-means: the two half steps, seeding, empty cells, weights, directions, balance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ann.world import clustered, gaussian
from tutor.ann.kmeans import _assign_balanced, assign, kmeans

COVERS = ("ann.ivf",)


def test_paper_and_pencil():
    """0, 1, 2 and 10, 11 in two cells: means 1 and 10.5, objective 1 + 0 + 1 + 0.25 + 0.25 = 2.5."""
    found = kmeans([[0.0], [1.0], [2.0], [10.0], [11.0]], 2)
    assert sorted(found.centroids[:, 0].tolist()) == pytest.approx([1.0, 10.5])
    assert len({*found.labels[:3]}) == 1 and len({*found.labels[3:]}) == 1
    assert sorted(found.counts.tolist()) == [2, 3]
    assert found.objective[-1] == pytest.approx(2.5) and found.converged


def test_assignment_is_nearest_with_ties_to_the_lower_index():
    C = np.asarray([[0.0], [2.0], [2.0]])
    labels, gap = assign(np.asarray([[1.0], [1.9], [-5.0]]), C)
    assert labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(gap, [1, 0.01, 25])


@settings(max_examples=60, deadline=None)
@given(N=st.integers(1, 60), share=st.floats(0, 1), d=st.integers(1, 5), spherical=st.booleans(),
       init=st.sampled_from(["k-means++", "random"]), seed=st.integers(0, 10 ** 6))
def test_the_objective_never_rises_and_the_answer_is_consistent(N, share, d, spherical, init, seed):
    X = np.random.default_rng(seed).standard_normal((N, d))
    k = max(1, round(share * N))
    found = kmeans(X, k, spherical=spherical, init=init, seed=seed)
    assert (np.diff(found.objective) <= 1e-9 * (1 + found.objective[0])).all()
    assert found.counts.sum() == N and (found.counts == np.bincount(found.labels, minlength=k)).all()
    rows = X / np.linalg.norm(X, axis=1, keepdims=True) if spherical else X
    D = ((rows[:, None] - found.centroids[None]) ** 2).sum(-1)
    np.testing.assert_allclose(np.take_along_axis(D, found.labels[:, None], 1)[:, 0], D.min(1), atol=1e-9)
    assert found.objective[-1] == pytest.approx(D.min(1).sum(), abs=1e-8)
    if found.converged:                                         # each centre is the mean of its members
        for j in range(k):
            mean = rows[found.labels == j].mean(0) if (found.labels == j).any() else found.centroids[j]
            mean = mean / np.linalg.norm(mean) if spherical else mean
            np.testing.assert_allclose(found.centroids[j], mean, atol=1e-8)


def test_as_many_cells_as_distinct_rows_leaves_no_error_and_none_empty():
    X, _ = gaussian(N=40, d=3)
    for init in ("k-means++", "random"):
        found = kmeans(X, 40, init=init)
        assert (found.counts == 1).all() and found.objective[-1] < 1e-8


def test_empty_cells_take_half_of_the_heaviest():
    """Two seeds on the same spot: the second cell is empty after the first assignment and must not stay so."""
    X = np.concatenate([np.zeros((10, 1)), np.full((10, 1), 5.0)])
    for seed in range(20):                                      # random seeding often draws equal rows
        found = kmeans(X, 2, init="random", seed=seed)
        assert sorted(found.centroids[:, 0].tolist()) == pytest.approx([0, 5])
        assert (found.counts == 10).all()


def test_fewer_distinct_rows_than_cells_gives_no_nan():
    for init in ("k-means++", "random"):
        found = kmeans(np.ones((6, 2)), 4, init=init)
        assert np.isfinite(found.centroids).all() and found.objective[-1] == 0 and found.counts.sum() == 6


def test_clusters_are_found_by_careful_seeding():
    X, label = clustered(N=600, clusters=12)
    found = kmeans(X, 12)
    for j in range(12):
        assert len(set(label[found.labels == j].tolist())) == 1
    worse = [kmeans(X, 12, init="random", seed=s).objective[-1] for s in range(5)]
    assert np.median(worse) > 2 * found.objective[-1]


def test_whole_weights_equal_repeated_rows():
    X, _ = gaussian(N=50, d=4)
    w = np.random.default_rng(1).integers(1, 4, 50)
    weighted = kmeans(X, 4, weights=w, init="random", seed=3)
    repeated = np.repeat(X, w, axis=0)
    labels, gap = assign(repeated, weighted.centroids)
    assert weighted.objective[-1] == pytest.approx(gap.sum(), rel=1e-5)
    for j in range(4):                                          # a fixed point of the repeated problem too
        np.testing.assert_allclose(weighted.centroids[j], repeated[labels == j].mean(0), atol=1e-5)


def test_rows_without_weight_pull_no_centre():
    X = np.asarray([[0.0], [1.0], [10.0], [11.0], [1000.0]])
    for seed in range(5):
        found = kmeans(X, 2, weights=[1, 1, 1, 1, 0], seed=seed)
        assert sorted(found.centroids[:, 0].tolist()) == pytest.approx([0.5, 10.5])


def test_spherical_ignores_length():
    X, _ = gaussian(N=200, d=4)
    scale = np.random.default_rng(2).uniform(0.1, 10, (200, 1))
    a, b = kmeans(X, 8, spherical=True), kmeans(X * scale, 8, spherical=True)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(np.linalg.norm(a.centroids, axis=1), 1, rtol=1e-5)


def test_shifting_the_rows_shifts_the_centres():
    X, _ = gaussian(N=300, d=4)
    a, b = kmeans(X, 9), kmeans(X + 1000, 9)                    # the product form alone loses 6 digits here
    assert (a.labels == b.labels).mean() > 0.99
    assert b.objective[-1] == pytest.approx(a.objective[-1], rel=1e-2)


def test_balance_evens_out_the_cells_and_always_settles():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 8)) * rng.random((500, 1))     # dense in the middle: cells of very different size
    runs = [kmeans(X, 10, balance=b, iters=200) for b in (0.0, 0.004, 0.04, 10.0)]
    spread = [run.counts.std() for run in runs]
    assert spread[0] > 1.5 * spread[1] > 2 * spread[2] and spread[3] == 0
    for run in runs:
        assert run.converged and (np.diff(run.objective) <= 1e-9 * run.objective[0]).all()


def test_balance_by_hand():
    """Rows 0, 0.1, 0.2 and 1, centres at 0 and 1. At 0.5 per companion, cost at centre 0 against centre 1:
    row 0: 0 + 1.0 against 1 + 0.5, stays; row 1: 0.01 + 1.0 against 0.81 + 0.5, stays; row 2: 0.04 + 1.0 against
    0.64 + 0.5, stays. At 0.7 row 2 pays 0.04 + 1.4 against 0.64 + 0.7 and moves."""
    X, C = np.asarray([[0.0], [0.1], [0.2], [1.0]]), np.asarray([[0.0], [1.0]])
    start, one = np.asarray([0, 0, 0, 1]), np.ones(4)
    assert _assign_balanced(X, C, start, one, 0.5)[0].tolist() == [0, 0, 0, 1]
    assert _assign_balanced(X, C, start, one, 0.7)[0].tolist() == [0, 0, 1, 1]


def test_the_seed_decides_everything():
    X, _ = gaussian(N=300)
    a, b, c = kmeans(X, 10, seed=1), kmeans(X, 10, seed=1), kmeans(X, 10, seed=2)
    np.testing.assert_array_equal(a.centroids, b.centroids)
    assert not np.array_equal(a.labels, c.labels)


def test_cost_counts_every_distance():
    """Seeding N k, the first assignment N k, then N k for every step."""
    X, _ = gaussian(N=100)
    found = kmeans(X, 7, iters=3)
    assert found.cost["build_dots"] == 100 * 7 * (1 + len(found.objective)) - 100      # the last seed looks at nobody
    assert kmeans(X, 7, iters=0).cost["build_dots"] == 100 * 7 * 2 - 100


@pytest.mark.parametrize("how, message", [
    (dict(k=0), r"k must be in \[1, 20\]"), (dict(k=21), r"k must be in \[1, 20\].*got 21"),
    (dict(k=2, init="best"), "init must be"), (dict(k=2, balance=-1), "balance and iters must be >= 0"),
    (dict(k=2, weights=[1, 2]), r"weights must be 20 finite numbers.*\(2,\)"),
    (dict(k=2, weights=[0] * 20), "not all 0"),
], ids=["none", "too many", "init", "balance", "short weights", "no weight"])
def test_bad_arguments_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        kmeans(gaussian(N=20)[0], **how)


def test_a_zero_row_has_no_direction():
    with pytest.raises(ValueError, match="zero and has no cosine"):
        kmeans(np.zeros((3, 2)), 1, spherical=True)
