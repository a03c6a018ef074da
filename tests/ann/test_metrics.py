"""The judges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutor.ann import metrics

COVERS = ("ann.flat",)


def test_recall_by_hand():
    """First query finds 1 of 2, the second 2 of 2 in another order: 3 of 4."""
    assert metrics.recall([[5, 9], [3, 4]], [[5, 6], [4, 3]]) == 0.75
    assert metrics.recall([[5, -1]], [[5, 6]]) == 0.5
    with pytest.raises(ValueError, match="1 answers .* but 2 rows of truth"):
        metrics.recall([[1]], [[1], [2]])


def test_threshold_recall_forgives_ties_and_nothing_else():
    dist = np.asarray([[0.0, 1.0, 1.0, 2.0]])                   # rows 1 and 2 are equally near
    assert metrics.threshold_recall([[0, 2]], dist, [[0.0, 1.0]]) == 1
    assert metrics.recall([[0, 2]], [[0, 1]]) == 0.5
    assert metrics.threshold_recall([[0, 3]], dist, [[0.0, 1.0]]) == 0.5
    assert metrics.threshold_recall([[0, -1]], dist, [[0.0, 1.0]]) == 0.5
    with pytest.raises(ValueError, match="holds one id twice"):
        metrics.threshold_recall([[0, 0]], dist, [[0.0, 1.0]])


def test_mass_by_hand():
    """Logits log 1, log 2, log 5: weights 1/8, 2/8, 5/8."""
    logits = np.log([[1.0, 2.0, 5.0]])
    assert metrics.mass([[2, 0]], logits) == pytest.approx([6 / 8])
    assert metrics.mass([[2, -1]], logits + 1000) == pytest.approx([5 / 8])
    assert metrics.mass([[0, 1, 2]], logits) == pytest.approx([1])


def test_pareto_by_hand():
    cost, quality = [3, 1, 2, 2, 5], [0.9, 0.5, 0.7, 0.4, 0.9]
    assert metrics.pareto(cost, quality).tolist() == [1, 2, 0]
    assert metrics.cost_at(cost, quality, 0.6) == pytest.approx(1.5)
    assert metrics.cost_at(cost, quality, 0.4) == 1
    assert metrics.cost_at(cost, quality, 0.95) == np.inf


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_pareto_keeps_exactly_what_nothing_beats(points):
    cost, quality = map(list, zip(*points))
    front = metrics.pareto(cost, quality).tolist()
    beaten = lambda c, q: any((x <= c and y > q) or (x < c and y >= q) for x, y in points)
    assert {points[i] for i in front} == {(c, q) for c, q in points if not beaten(c, q)}
    assert len(front) == len({points[i] for i in front})
