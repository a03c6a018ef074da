import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutor.cost import COUNTERS, Cost

counts = st.dictionaries(st.sampled_from(sorted(COUNTERS)), st.integers(0, 10**9), max_size=5)


def test_counters_add():
    # 3 + 4 = 7 distances, and one hop that only the second part made
    assert Cost(ndist=3) + Cost(ndist=4, nhops=1) == Cost(ndist=7, nhops=1)


@given(counts, counts, counts)
def test_addition_is_associative_and_commutative(a, b, c):
    a, b, c = Cost(**a), Cost(**b), Cost(**c)
    assert (a + b) + c == a + (b + c) == sum([c, b, a])


def test_an_untouched_counter_reads_zero_and_equals_an_absent_one():
    assert Cost()["ndist"] == 0
    assert Cost(ndist=0) == Cost()
    assert hash(Cost(ndist=0)) == hash(Cost())


@pytest.mark.parametrize("bad", [{"distances": 1}, {"ndist": -1}, {"ndist": 0.5}])
def test_bad_counters_are_refused(bad):
    with pytest.raises(ValueError, match="counter"):
        Cost(**bad)


def test_seconds_are_not_a_counter():
    assert not any("second" in unit for unit, _ in COUNTERS.values())
