"""Pairs of keys: the definition in loops, the factored polynomial, and a task that needs pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.dense import attend
from tutor.attention.methods.tensor import (
    TensorAttention,
    coefficients,
    exponents,
    kron_rows,
    match3,
    match3_exact,
    match3_weights,
    monomials,
    rank,
)

COVERS = ("attention.tensor",)


def make(seed=0, b=1, h=2, t=5, s1=4, s2=6, d=3, dv=2, bound=1.0):
    g = torch.Generator().manual_seed(seed)
    sizes = (t, d), (s1, d), (s2, d), (s1, dv), (s2, dv)
    return [bound * (2 * torch.rand(b, h, n, w, generator=g, dtype=torch.float64) - 1) for n, w in sizes]


def close(part, want, tol=1e-12):
    torch.testing.assert_close(part.o, want.o, rtol=0, atol=tol)
    torch.testing.assert_close(part.lse, want.lse, rtol=0, atol=tol)


def test_by_hand():
    # Width 1, q = log 2, k1 = 1, 2 and k2 = 1, 0. Logits q k1 k2: (1,1) log 2, (1,0) 0, (2,1) log 4, (2,0) 0.
    # Weights 2 1 4 1, sum 8. Values v1 = 1, 10, v2 = 3, 5: pairs 3, 5, 30, 50: (6 + 5 + 120 + 50) / 8 = 181 / 8.
    rows = [torch.tensor(x, dtype=torch.float64).reshape(1, 1, -1, 1) for x in ([math.log(2)], [1, 2], [1, 0], [1, 10], [3, 5])]
    part = TensorAttention().attend(*rows)
    assert part.o.item() == pytest.approx(181 / 8) and part.lse.item() == pytest.approx(math.log(8))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), t=st.integers(1, 5), s1=st.integers(1, 5), s2=st.integers(1, 5), d=st.integers(1, 4))
def test_exact_is_the_definition_in_loops(seed, t, s1, s2, d):
    q, k1, k2, v1, v2 = make(seed, h=1, t=t, s1=s1, s2=s2, d=d, bound=2.0)
    part = TensorAttention().attend(q, k1, k2, v1, v2)
    for i in range(t):
        w = torch.tensor([[math.exp(float((q[0, 0, i] * k1[0, 0, a] * k2[0, 0, b]).sum()) / d) for b in range(s2)]
                          for a in range(s1)], dtype=torch.float64)
        o = sum(w[a, b] * v1[0, 0, a] * v2[0, 0, b] for a in range(s1) for b in range(s2)) / w.sum()
        torch.testing.assert_close(part.o[0, 0, i], o, rtol=0, atol=1e-12)
        assert part.lse[0, 0, i].item() == pytest.approx(math.log(w.sum()))


def test_few_rows_at_a_time_change_nothing(monkeypatch):
    rows = make(t=9)
    whole = TensorAttention().attend(*rows)
    monkeypatch.setattr("tutor.attention.methods.tensor.PAIRS", 100)
    close(TensorAttention().attend(*rows), whole)


def test_the_product_of_two_sums_is_the_sum_over_pairs():
    q, k1, k2, v1, v2 = make()
    u1, u2, u3 = TensorAttention(degree=3).features(q, k1, k2)
    left = kron_rows(u2, u3).transpose(-1, -2) @ kron_rows(v1, v2)
    right = (u2.transpose(-1, -2) @ v1) * (u3.transpose(-1, -2) @ v2)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("basis", ["taylor", "chebyshev"])
@pytest.mark.parametrize("degree", [0, 1, 3, 4])
def test_features_multiply_to_the_polynomial_of_each_logit(degree, basis):
    q, k1, k2, *_ = make()
    u1, u2, u3 = TensorAttention("poly", degree, basis, bound=1.5).features(q, k1, k2)
    assert u1.shape[-1] == rank(3, degree)
    x = torch.einsum("bhtc,bhic,bhjc->bhtij", q, k1, k2) / 3
    want = sum(c * x**m for m, c in enumerate(coefficients(degree, basis, 1.5)))
    torch.testing.assert_close(torch.einsum("bhta,bhia,bhja->bhtij", u1, u2, u3), want, rtol=0, atol=1e-12)


def test_rank_and_exponents():
    for d, degree in ((1, 5), (3, 4), (5, 2), (2, 0)):
        a = exponents(d, degree)
        assert len(a) == len({tuple(row) for row in a.tolist()}) == rank(d, degree) == math.comb(d + degree, degree)
        assert int(a.sum(-1).max()) == degree and (a.sum(-1).diff() >= 0).all()
    assert [rank(3, g) for g in (2, 4, 6)] == [10, 35, 84]
    assert monomials(torch.tensor([[2.0, 3.0]]), torch.tensor([[0, 0], [1, 2], [3, 0]])).tolist() == [[1.0, 18.0, 8.0]]


def test_the_error_falls_with_the_degree_and_chebyshev_is_better():
    rows = make(3, t=40, s1=40, s2=40)
    truth = TensorAttention().attend(*rows)
    error = {(basis, g): float((TensorAttention("poly", g, basis).attend(*rows).o - truth.o).abs().max())
             for basis in ("taylor", "chebyshev") for g in (2, 4, 6, 8)}
    for g, limit in ((2, 2e-3), (4, 1e-5), (6, 1e-7), (8, 1e-9)):
        assert error["taylor", g] < limit
    assert error["taylor", 2] > 50 * error["taylor", 4] > 2500 * error["taylor", 6]
    close(TensorAttention("poly", 12).attend(*rows), truth)
    worst = {basis: max(abs(sum(float(c) * x**m for m, c in enumerate(coefficients(4, basis, 1.0))) - math.exp(x))
                        for x in torch.linspace(-1, 1, 101).tolist()) for basis in ("taylor", "chebyshev")}
    assert worst["chebyshev"] < worst["taylor"] / 5
    wide = {bound: max(abs(sum(float(c) * x**m for m, c in enumerate(coefficients(4, "chebyshev", bound))) - math.exp(x))
                       for x in torch.linspace(-3, 3, 101).tolist()) for bound in (1.0, 3.0)}
    assert wide[3.0] < wide[1.0] / 3                                       # made for the interval that the logits need


def test_with_ones_for_the_second_key_it_is_matrix_attention():
    q, k1, _, v1, _ = make()
    one_k, one_v = torch.ones(1, 2, 1, 3).double(), torch.ones(1, 2, 1, 2).double()
    matrix = attend(q, k1, v1, causal=False, scale=1 / 3)                  # the division by D stays
    close(TensorAttention().attend(q, k1, one_k, v1, one_v), matrix)
    close(TensorAttention("poly", 14).attend(q, k1, one_k, v1, one_v), matrix)


def test_the_two_keys_may_change_places():
    q, k1, k2, v1, v2 = make()
    for method in (TensorAttention(), TensorAttention("poly", 3)):
        close(method.attend(q, k1, k2, v1, v2), method.attend(q, k2, k1, v2, v1))


def test_large_entries_break_the_polynomial_and_are_refused():
    rows = make(1, bound=3.0, d=2, t=40, s1=8, s2=8)
    with pytest.raises(ValueError, match="polynomial of degree 1 gives a denominator of -"):
        TensorAttention("poly", 1).attend(*[x.abs() * sign for x, sign in zip(rows, (-1, 1, 1, 1, 1))])
    part = TensorAttention("poly", 2).attend(*rows)
    truth = TensorAttention().attend(*rows)
    assert float((part.o - truth.o).abs().max()) > 0.1
    big = [300 * x for x in rows[:3]] + rows[3:]
    assert TensorAttention().attend(*big).o.isfinite().all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(1, 12), modulus=st.integers(2, 40))
def test_one_tensor_attention_decides_match3(seed, n, modulus):
    x = torch.randint(modulus, (n,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(match3(x, modulus), match3_exact(x, modulus))


def test_many_near_misses_are_no_match():
    # Twelve times 21: every sum is 63 = 1 modulo 31, the nearest miss. lse = 2 log 12 + beta cos(2 pi / 31), half a unit
    # below the threshold; a threshold that forgets the 144 pairs lies below it.
    x = torch.full((12,), 21)
    assert not match3(x, 31).any() and not match3_exact(x, 31).any()


def test_match3_by_hand():
    # Modulo 10: 2 + 3 + 5 = 10 matches all three, 2 + 4 + 4 too. 8 needs a pair of sum 2 or 12: with 2, 3, 5, 8 there is none.
    x = torch.tensor([2, 3, 5, 4])
    assert match3_exact(x, 10).tolist() == [True, True, True, True]
    assert match3_exact(torch.tensor([2, 3, 5, 8]), 10).tolist() == [True, True, True, False]
    q, k1, k2 = match3_weights(x, 10, beta=1.0)
    logits = torch.einsum("tc,ic,jc->tij", q[0, 0], k1[0, 0], k2[0, 0]) / 4
    want = torch.cos(2 * math.pi * (x[:, None, None] + x[:, None] + x) / 10)
    torch.testing.assert_close(logits, want.double(), rtol=0, atol=1e-6)
    wrong = match3(torch.tensor([2, 3, 5, 8]), 10, beta=0.5)               # too small: sums of many drown one match
    assert not torch.equal(wrong, torch.tensor([True, True, True, False]))


def test_cost_by_hand_and_by_counting():
    from torch.utils.flop_counter import FlopCounterMode

    # One head, T = 2, S1 = 3, S2 = 4, D = 2, Dv = 5: 24 logits, 2 * 24 * 7 = 336. Degree 1: r = 3, 2 * 3 * (5 * 9 + 2) = 282.
    q, k1, k2, v1, v2 = make(h=1, t=2, s1=3, s2=4, d=2, dv=5)
    assert TensorAttention().cost(q, k1, k2, v1)["flops"] == 336
    poly = TensorAttention("poly", 1)
    assert poly.cost(q, k1, k2, v1)["flops"] == 282 and poly.cost(q, k1, k2, v1)["pairs"] == 24
    with FlopCounterMode(display=False) as counter:
        poly.attend(q, k1, k2, v1, v2)
    assert counter.get_total_flops() == 282


def test_what_cannot_be_computed_is_refused():
    q, k1, k2, v1, v2 = make()
    wide = make(d=40)
    with pytest.raises(ValueError, match=r"C\(46, 6\) = 9366819 columns"):
        TensorAttention("poly", 6).attend(*wide)
    for options, told in ((dict(method="fast"), "method must be"), (dict(basis="legendre"), "basis must be"),
                          (dict(degree=-1), "degree must be >= 0"), (dict(bound=0.0), "bound must be > 0")):
        with pytest.raises(ValueError, match=told):
            TensorAttention(**options)
    attend_ = TensorAttention().attend
    with pytest.raises(ValueError, match="k1 and v1 must have one length"):
        attend_(q, k1[:, :, :2], k2, v1, v2)
    with pytest.raises(ValueError, match="must share a width"):
        attend_(q[..., :2], k1, k2, v1, v2)
    with pytest.raises(ValueError, match="k2 and q differ in batch or heads"):
        attend_(q, k1, k2[:, :1], v1, v2)
    with pytest.raises(ValueError, match="v2 must be floating point"):
        attend_(q, k1, k2, v1, v2.long())
