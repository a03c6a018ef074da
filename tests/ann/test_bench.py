"""Sweeps and the price of recall."""

import numpy as np
import pytest

from tests.ann.world import built, gaussian
from tutor.ann import bench

COVERS = ("ann.flat", "ann.ivf")


def test_a_sweep_ends_where_it_is_told_and_prices_are_interpolated():
    X, Q = gaussian()
    ids = bench.truth(X, Q, 5, "l2")
    index = built("ivf")
    run = bench.sweep(index, Q, 5, ids, range(1, 70), stop=0.9)
    assert run.recall[-1] >= 0.9 > run.recall[-2]
    assert run.share[-2] <= run.share_at(0.9) <= run.share[-1]
    assert run.share_at(0.999) == np.inf
    np.testing.assert_allclose(run.per_query.mean(1), run.recall)
    low, high = run.interval()
    assert (low <= run.recall).all() and (run.recall <= high).all()
    cost = index.search(Q, 5, nprobe=3).cost["ndist"]
    assert run.effort[2] == 3 and run.share[2] == pytest.approx(cost / len(Q) / len(X))


def test_an_index_without_a_knob_is_one_point():
    X, Q = gaussian()
    run = bench.sweep(built("flat"), Q, 5, bench.truth(X, Q, 5, "l2"), [1, 2, 3])
    assert run.share.tolist() == [1] and run.recall.tolist() == [1]
    with pytest.raises(ValueError, match="grid is empty"):
        bench.sweep(built("ivf"), Q, 5, bench.truth(X, Q, 5, "l2"), [])


def test_beams_grow_from_k():
    assert bench.beams(10, 70) == [10, 15, 20, 30, 40, 60]
