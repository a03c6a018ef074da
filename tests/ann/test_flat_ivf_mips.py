"""Exact search in blocks, inverted lists, and the reduction of inner product to distance."""

import numpy as np
import pytest

from tests.ann.world import brute, clustered, gaussian
from tutor.ann import metrics
from tutor.ann.flat import Flat, flat_search
from tutor.ann.ivf import IVF
from tutor.ann.mips import lift, lift_query, relative_contrast

COVERS = ("ann.flat", "ann.ivf")


# --- flat

def test_paper_and_pencil():
    """Rows (0,0), (3,4), (1,0); query (1,1): squared distances 2, 13, 1; inner products 0, 7, 1."""
    X, q = [[0, 0], [3, 4], [1, 0]], [[1, 1]]
    found = flat_search(X, q, 3)
    assert found.ids.tolist() == [[2, 0, 1]] and found.distances.tolist() == [[1, 2, 13]] and found.cost["ndist"] == 3
    found = flat_search(X, q, 2, "ip")
    assert found.ids.tolist() == [[1, 2]] and found.distances.tolist() == [[-7, -1]]


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_blocks_do_not_change_the_answer(metric, block):
    X, Q = gaussian(N=200, nq=70)                               # more queries than one query block
    whole, parts = flat_search(X, Q, 9, metric), flat_search(X, Q, 9, metric, block=block)
    np.testing.assert_array_equal(whole.ids, parts.ids)
    np.testing.assert_array_equal(whole.ids, np.argsort(brute(X, Q, metric), axis=1, kind="stable")[:, :9])
    assert parts.cost["ndist"] == 200 * 70


def test_ties_across_blocks_go_to_the_lower_id():
    X = np.ones((10, 2))
    for block in (1, 3, 10):
        assert flat_search(X, np.zeros((2, 2)), 4, block=block).ids.tolist() == [[0, 1, 2, 3]] * 2


def test_the_product_form_fails_where_subtraction_does_not():
    """Norm 1e4, gaps of 0.1: squares of 1e8 leave float32 steps of 8, far above the squared gaps."""
    rng = np.random.default_rng(0)
    X = (1e4 * np.ones(16) / 4 + 0.1 * rng.standard_normal((500, 16))).astype(np.float32)
    Q = X[:50] + rng.normal(0, 0.01, (50, 16)).astype(np.float32)
    truth = np.argsort(brute(X, Q, "l2"), axis=1, kind="stable")[:, :1]
    assert metrics.recall(flat_search(X, Q, 1, exact=True).ids, truth) == 1
    assert metrics.recall(flat_search(X, Q, 1).ids, truth) < 0.5


def test_block_must_be_positive():
    with pytest.raises(ValueError, match="block must be >= 1; got 0"):
        Flat(block=0)


# --- inverted lists

def test_every_row_is_in_exactly_one_list_in_order():
    X, _ = gaussian()
    index = IVF(nlist=17).build(X)
    np.testing.assert_array_equal(np.sort(index.ids), np.arange(300))
    np.testing.assert_array_equal(index.rows, X[index.ids])
    assert index.offsets[0] == 0 and index.offsets[-1] == 300
    for j in range(17):
        ids = index.ids[index.offsets[j]:index.offsets[j + 1]]
        assert (index.cell[ids] == j).all() and (np.diff(ids) > 0).all()


def test_cost_is_centroids_plus_the_rows_of_opened_lists():
    X, Q = gaussian()
    index = IVF(nlist=10).build(X)
    sizes = np.diff(index.offsets)
    to_lists = brute(index.centroids, Q[:1], "l2")[0]
    for nprobe in (1, 3, 10, 50):
        opened = np.argsort(to_lists, kind="stable")[:nprobe]
        cost = index.search(Q[0], 1, nprobe=nprobe).cost
        assert cost["ndist"] == 10 + sizes[opened].sum() and cost["nlists"] == len(opened)


def test_equal_distances_in_two_lists_go_to_the_lower_id():
    """Rows 1 and -1 lie in two lists, whose order depends on the seed; both are at 1 from the query."""
    indexes = [IVF(nlist=2, seed=seed).build([[1.0], [-1.0]]) for seed in range(8)]
    assert {int(index.cell[0]) for index in indexes} == {0, 1}
    for index in indexes:
        assert index.search([0.0], 1, nprobe=2).ids.tolist() == [[0]]


def test_clusters_need_one_list():
    X, label = clustered(N=600, clusters=12)
    index = IVF(nlist=12).build(X)
    found = index.search(X[:50], 10, nprobe=1)
    assert (label[found.ids] == label[:50, None]).all()
    np.testing.assert_array_equal(found.ids, flat_search(X, X[:50], 10, exact=True).ids)
    assert found.cost["ndist"] < 0.2 * 50 * 600


@pytest.mark.parametrize("coarse", ["mean", "spherical", "lift"])
def test_inner_product_lists_are_exact_when_all_are_open(coarse):
    X, Q = gaussian()
    X = X * np.random.default_rng(0).uniform(0.1, 3, (300, 1)).astype(np.float32)
    index = IVF(coarse=coarse).build(X, "ip")
    np.testing.assert_array_equal(index.search(Q, 10, nprobe=300).ids, flat_search(X, Q, 10, "ip").ids)
    assert metrics.recall(index.search(Q, 10, nprobe=15).ids, flat_search(X, Q, 10, "ip").ids) > 0.4


def test_short_lists_pad_the_answer():
    X, _ = clustered(N=60, clusters=6)
    found = IVF(nlist=6).build(X).search(X[0], 30, nprobe=1)
    held = (found.ids[0] >= 0).sum()
    assert 0 < held < 30 and (found.ids[0, held:] == -1).all() and np.isinf(found.distances[0, held:]).all()


@pytest.mark.parametrize("how, message", [(dict(nlist=0), "nlist must be >= 1"),
                                          (dict(coarse="cosine"), "coarse must be one of")])
def test_bad_parameters_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        IVF(**how)


def test_more_lists_than_rows_are_refused():
    with pytest.raises(ValueError, match=r"k must be in \[1, 20\], the number of rows; got 30"):
        IVF(nlist=30).build(gaussian(N=20)[0])


# --- inner product to distance

def test_lifted_rows_have_one_length_and_the_order_of_inner_products():
    X, Q = gaussian(d=7)
    X = X * np.random.default_rng(0).uniform(0.1, 3, (300, 1))
    lifted = lift(X.astype(np.float64))
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), np.linalg.norm(X, axis=1).max())
    Q = Q.astype(np.float64)
    by_product, by_distance = brute(X, Q, "ip"), brute(lifted, lift_query(Q), "l2")
    constant = (Q ** 2).sum(1, keepdims=True) + (np.linalg.norm(X, axis=1).max()) ** 2
    np.testing.assert_allclose(by_distance, constant + 2 * by_product)
    np.testing.assert_array_equal(np.argsort(by_product, axis=1), np.argsort(by_distance, axis=1))


def test_equal_lengths_add_a_zero_column():
    X, _ = gaussian()
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert np.abs(lift(X)[:, -1]).max() < 1e-3


def test_lifting_costs_contrast():
    X, Q = gaussian(d=8, nq=50)
    X = X * np.random.default_rng(0).uniform(0.05, 1, (300, 1))
    before, after = relative_contrast(X, Q), relative_contrast(lift(X), lift_query(Q))
    assert 1 < after < before


def test_contrast_by_hand():
    """Distances from 0 to 1, 2, 3: mean 2, nearest 1."""
    assert relative_contrast([[1.0], [2.0], [3.0]], [[0.0]]) == pytest.approx(2)
    with pytest.raises(ValueError, match="equals a row"):
        relative_contrast([[1.0], [2.0]], [[1.0]])
