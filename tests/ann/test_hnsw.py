"""HNSW: the floors, the degrees, what the heuristic protects and what repair mends."""

import numpy as np
import pytest

from tests.ann.world import built, clustered, gaussian
from tutor.ann import metrics
from tutor.ann.flat import Flat
from tutor.ann.hnsw import HNSW

COVERS = ("ann.hnsw",)


def test_paper_and_pencil_line():
    """Five points on a line with room for four links each: every point ends up linked to those beside it."""
    index = HNSW(M=2, ef_construction=5).build(np.asarray([[0.0], [1.0], [2.0], [3.0], [4.0]]))
    for i, row in enumerate(index.layers[0]):
        beside = {i - 1, i + 1} & set(range(5))
        assert beside <= set(row.tolist()), (i, row)
    assert index.search([3.4], 2, ef=5).ids.tolist() == [[3, 4]]


def test_degrees_are_bounded_and_links_are_clean():
    index = HNSW(M=5, ef_construction=40, repair=False).build(gaussian(N=500, d=8)[0])
    for level, layer in enumerate(index.layers):
        rows = enumerate(layer) if level == 0 else layer.items()
        for i, row in rows:
            assert len(row) <= (10 if level == 0 else 5)
            assert len(set(row.tolist())) == len(row) and i not in row
            assert (index.levels[row] >= level).all()           # no edge leads to a row that does not live here
    assert index.levels[index.entry] == index.levels.max()


def test_levels_thin_out_by_one_over_M():
    M = 4
    levels = np.concatenate([HNSW(M=M, ef_construction=1, seed=s).build(np.zeros((200, 1))).levels for s in range(10)])
    for level in range(1, 3):                                   # P(level >= l) = M^-l, within 4 standard errors
        p = M ** -level
        assert abs((levels >= level).mean() - p) < 4 * np.sqrt(p * (1 - p) / len(levels))


def test_a_graph_with_room_for_all_is_exact():
    X, Q = gaussian(N=20)
    index = HNSW(M=20, ef_construction=20, heuristic=False, repair=False).build(X)
    assert all(len(row) == 19 for row in index.layers[0])
    np.testing.assert_array_equal(index.search(Q, 10, ef=20).ids, Flat(exact=True).build(X).search(Q, 10).ids)


def test_the_seed_decides():
    X, _ = gaussian(N=150)
    one, same, other = (HNSW(M=4, ef_construction=20, seed=s).build(X) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one.layers[0], same.layers[0]))
    assert not np.array_equal(one.levels, other.levels)


def test_ten_percent_of_the_distances_find_nearly_everything():
    X, _ = gaussian(N=2000, d=6)
    Q = gaussian(N=1, d=6, nq=100, seed=9)[1]
    index = HNSW(M=8, ef_construction=40).build(X)
    found = index.search(Q, 10, ef=40)
    truth = Flat(exact=True).build(X).search(Q, 10)
    assert metrics.recall(found.ids, truth.ids) > 0.97
    assert found.cost["ndist"] < 0.15 * len(X) * len(Q)


@pytest.fixture(scope="module")
def islands():
    X, label = clustered(N=1200, clusters=30)
    Q = X[:100] + 0.05 * np.random.default_rng(1).standard_normal((100, X.shape[1])).astype(np.float32)
    truth = Flat(exact=True).build(X).search(Q, 10).ids
    return X, label, Q, truth


def test_nearest_neighbours_alone_make_islands(islands):
    X, _, Q, truth = islands
    shape = dict(M=6, ef_construction=40, repair=False)
    diverse, nearest = (HNSW(heuristic=h, **shape).build(X) for h in (True, False))
    assert diverse.reachable().mean() > 0.99
    assert nearest.reachable().mean() < 0.9
    good, bad = (metrics.recall(index.search(Q, 10, ef=40).ids, truth) for index in (diverse, nearest))
    assert good > 0.97 and bad < good - 0.1


def test_repair_brings_every_row_back(islands):
    X, _, Q, truth = islands
    index = HNSW(M=6, ef_construction=40, heuristic=False).build(X)
    assert index.repaired > 0 and index.reachable().all()
    np.testing.assert_array_equal(index.search(Q, 10, ef=len(X)).ids, truth)


def test_build_cost_is_counted():
    small, large = (built("hnsw", N=N).build_cost["build_dots"] for N in (100, 300))
    assert 100 < small < large


@pytest.mark.parametrize("how, message", [({"M": 1}, "M must be >= 2.*got 1"),
                                          ({"ef_construction": 0}, "ef_construction must be >= 1; got 0")])
def test_bad_parameters_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        HNSW(**how)
