"""Which rows stay: scores, counts and ties, by hand and in general."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutor.kvcache.select import keep_top

INF = float("inf")


def kept(scores, count, pos=None):
    scores = torch.tensor([[scores]])
    pos = torch.arange(scores.shape[-1], dtype=torch.int32)[None, None] if pos is None else torch.tensor([[pos]])
    return keep_top(scores, torch.tensor([[count]]), pos).idx[0, 0].tolist()


def test_highest_scores_stay_in_order_of_position():
    assert kept([0.1, 0.9, 0.3, 0.7], 2) == [1, 3]


def test_of_equal_scores_the_later_position_stays():
    assert kept([0.5, 0.5, 0.5, 0.9], 2) == [2, 3]           # 0.9, then the last of the three
    assert kept([1.0, 1.0, 1.0, 1.0], 3) == [1, 2, 3]


def test_ties_go_by_position_and_not_by_slot():
    assert kept([0.5, 0.5, 0.5], 1, pos=[9, 2, 4]) == [0]    # the row of position 9 stands in slot 0


def test_protected_rows_stay_and_count():
    assert kept([INF, 0.1, 0.2, 0.3], 2) == [0, 3]


def test_padding_is_never_kept():
    keep = keep_top(torch.tensor([[[0.1, 0.2, 9.0]]]), torch.tensor([[3]]), torch.tensor([[[0, 1, -1]]]))
    assert keep.idx.tolist() == [[[0, 1]]] and keep.counts.tolist() == [[2]]


def test_heads_may_keep_different_numbers():
    scores = torch.tensor([[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]])
    keep = keep_top(scores, torch.tensor([[1, 2]]), torch.arange(3)[None, None])
    assert keep.idx.tolist() == [[[0, -1], [1, 2]]]
    assert keep.mask.tolist() == [[[True, False, False], [False, True, True]]]


def test_too_many_protected_rows_are_refused():
    with pytest.raises(ValueError, match="budget of 1 rows is below the 2 protected"):
        kept([INF, INF, 0.0], 1)


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="scores contain NaN"):
        kept([0.0, float("nan")], 1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_kept_are_the_first_of_a_plain_sort(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    pos = data.draw(st.permutations(range(len(scores))))
    best = sorted(range(len(scores)), key=lambda j: (-scores[j], -pos[j]))[:count]
    assert kept([float(s) for s in scores], count, pos) == sorted(best, key=lambda j: pos[j])
