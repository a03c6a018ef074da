"""Partials join into the whole, in any order and over any cut of the keys."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.dense import attend
from tutor.attention.partial import Partial, empty_like, from_logits, merge

COVERS = ("attention.dense", "attention.flash")


def random_parts(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Logits of 3 rows over 12 keys (some rows blind to some keys), values, and n disjoint sets that cover the keys."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 1, 3, 12, generator=g, dtype=torch.float64) * 20
    logits = logits.masked_fill(torch.rand(1, 1, 3, 12, generator=g) < 0.3, float("-inf"))
    owner = torch.randint(n, (12,), generator=g)
    v = torch.randn(12, 5, generator=g, dtype=torch.float64)
    return logits, v, [(owner == i).nonzero()[:, 0] for i in range(n)]


def close(a: Partial, b: Partial) -> None:
    torch.testing.assert_close(a.o, b.o, rtol=0, atol=1e-12)
    torch.testing.assert_close(a.lse, b.lse, rtol=0, atol=1e-12)


def test_by_hand():
    # Two keys with logits log 1 and log 3, values 10 and 20: weights 1/4 and 3/4, so o = 2.5 + 15 = 17.5, lse = log 4.
    one = Partial(torch.tensor([[[[10.0]]]]), torch.tensor([[[0.0]]]))
    three = Partial(torch.tensor([[[[20.0]]]]), torch.tensor([[[math.log(3.0)]]]))
    both = merge(one, three)
    assert both.o.item() == pytest.approx(17.5) and both.lse.item() == pytest.approx(math.log(4))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 6))
def test_any_partition_of_the_keys_gives_the_whole(seed, n):
    logits, v, sets = random_parts(seed, n)
    close(merge(*(from_logits(logits[..., keys], v[keys]) for keys in sets)), from_logits(logits, v))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
def test_the_order_of_joining_does_not_matter(seed, order):
    logits, v, sets = random_parts(seed, 4)
    a, b, c, d = (from_logits(logits[..., keys], v[keys]) for keys in sets)
    left = merge(merge(merge(a, b), c), d)
    close(merge(a, merge(b, merge(c, d))), left)
    close(merge(*((a, b, c, d)[i] for i in order)), left)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_joining_with_nothing_changes_nothing(seed):
    logits, v, _ = random_parts(seed, 1)
    whole = from_logits(logits, v)
    nothing = empty_like(logits, 5)
    assert nothing.o.shape == whole.o.shape
    close(merge(whole, nothing), whole)
    close(merge(nothing, whole), whole)
    close(merge(nothing, nothing), nothing)


def test_a_row_without_keys_is_zero_and_never_nan():
    logits = torch.full((1, 1, 2, 3), float("-inf"))
    logits[0, 0, 1, 2] = 5.0
    part = from_logits(logits, torch.ones(3, 4))
    assert part.o[0, 0].tolist() == [[0] * 4, [1] * 4] and part.lse[0, 0].tolist() == [float("-inf"), 5.0]
    none = from_logits(torch.zeros(1, 1, 2, 0), torch.ones(0, 4))
    assert none.o.shape == (1, 1, 2, 4) and (none.o == 0).all() and (none.lse == float("-inf")).all()


def test_logits_of_a_thousand_do_not_overflow():
    part = from_logits(torch.tensor([[[[1000.0, 999.0]]]]), torch.tensor([[1.0], [0.0]]))
    assert part.o.item() == pytest.approx(1 / (1 + math.exp(-1))) and part.lse.item() == pytest.approx(1000.3132617)
    tiny = from_logits(torch.tensor([[[[-1000.0]]]]), torch.tensor([[7.0]]))
    assert tiny.o.item() == 7.0 and tiny.lse.item() == -1000.0


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["mild", "steep"])
def test_halves_of_the_keys_join_into_dense_attention(scale, rng):
    q, k, v = (torch.randn(2, h, n, 8, generator=rng) * scale for h, n in ((4, 5), (2, 9), (2, 9)))
    first = torch.arange(9) < 4
    close(merge(attend(q, k, v, mask=first), attend(q, k, v, mask=~first)), attend(q, k, v))


def test_what_cannot_be_joined_is_refused():
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="at least one Partial"):
        merge()
    with pytest.raises(ValueError, match="different shapes"):
        merge(empty_like(q), empty_like(q[:, :1]))
    with pytest.raises(ValueError, match="lse must be o's shape"):
        Partial(q, q)
