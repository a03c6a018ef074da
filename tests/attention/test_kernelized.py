"""The FFT form equals the sum over pairs; the features are unbiased with the variance of the formula."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.museum.attention import kernelized as museum
from tutor.attention.dense import attend
from tutor.attention.methods.kernelized import (
    Kernelized,
    circulant,
    directions,
    exact,
    features_needed,
    log_prf,
    normalised,
    prf,
    toeplitz,
    toeplitz_multiply,
    variance,
)

COVERS = ("attention.kernelized",)
F64 = torch.float64


def make(seed=0, b=2, hq=4, hkv=2, t=13, s=13, d=6, dv=3):
    """q, k, v and a bias per head and distance."""
    g = torch.Generator().manual_seed(seed)
    sizes = (b, hq, t, d), (b, hkv, s, d), (b, hkv, s, dv), (hq, 2 * s - 1)
    return [torch.randn(size, generator=g, dtype=F64) for size in sizes]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_by_hand():
    # One feature along w = 0, width 1: phi(x) = e^{-x^2/2}. q = 0 0, k = 0 and sqrt(2 ln 2): phi = 1 and 1/2. v = 4 1.
    # b = ln 3 for the key before (t = -1), 0 for the own key, whatever for the next: c = 3, 1, ?.
    # Row 0: 1*1*4 / 1 = 4. Row 1: (3*1*4 + 1*(1/2)*1) / (3*1 + 1/2) = 12.5 / 3.5; the sums are e^lse.
    q, k = torch.zeros(1, 1, 2, 1, dtype=F64), torch.tensor([0, math.sqrt(2 * math.log(2))], dtype=F64).reshape(1, 1, 2, 1)
    v, b = torch.tensor([4, 1], dtype=F64).reshape(1, 1, 2, 1), torch.tensor([math.log(3), 0, 7], dtype=F64)
    for how in ("fft", "direct"):
        part = Kernelized(1, normalise=False).attend(q, k, v, b, w=torch.zeros(1, 1, dtype=F64), how=how)
        assert part.o.flatten().tolist() == pytest.approx([4, 12.5 / 3.5], abs=1e-12)
        assert part.lse.exp().flatten().tolist() == pytest.approx([1, 3.5], abs=1e-12)


def test_the_circulant_by_hand():
    # n = 3, c_{-2} .. c_2 = 1 2 3 4 5: rows 3 4 5 / 2 3 4 / 1 2 3. h[t mod 8] = c_{-t}: c_0 c_-1 c_-2 0 0 0 c_2 c_1.
    c = torch.arange(1.0, 6)
    assert toeplitz(c).tolist() == [[3, 4, 5], [2, 3, 4], [1, 2, 3]]
    assert circulant(c).tolist() == [3, 2, 1, 0, 0, 0, 5, 4]
    assert circulant(c, 5).tolist() == [3, 2, 1, 5, 4]
    assert circulant(torch.ones(1)).tolist() == [1]
    with pytest.raises(ValueError, match="length must be >= 2n - 1 = 5"):
        circulant(c, 4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), s=st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 31, 33]), causal=st.booleans(),
       shared=st.booleans(), short=st.integers(0, 5), hkv=st.sampled_from([1, 2, 4]), normalise=st.booleans())
def test_the_fft_equals_the_pairs(seed, s, causal, shared, short, hkv, normalise):
    q, k, v, b = make(seed, hkv=hkv, t=max(1, s - short), s=s)
    method, w = Kernelized(8, normalise), directions(8, 6, generator=draw(seed))
    b = b[0] if shared else b
    fast, slow = (method.attend(q, k, v, b, causal=causal, w=w, how=how) for how in ("fft", "direct"))
    torch.testing.assert_close(fast.o, slow.o, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fast.lse, slow.lse, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 3, 127, 128, 129])
def test_toeplitz_times_vectors(n):
    c, x = torch.randn(2, 1, 2 * n - 1, generator=draw(), dtype=F64), torch.randn(3, n, 4, generator=draw(1), dtype=F64)
    want = toeplitz(c) @ x
    torch.testing.assert_close(toeplitz_multiply(c, x), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(toeplitz_multiply(c, x, engine="monarch"), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
def test_no_bias_is_the_performer(causal):
    """Running sums, an FFT of ones, and the T x S matrix: one result."""
    q, k, v, b = make(3, t=9, s=14)
    method, w = Kernelized(8), directions(8, 6, generator=draw())
    sums = method.attend(q, k, v, causal=causal, w=w)
    for found in (method.attend(q, k, v, 0 * b, causal=causal, w=w), method.attend(q, k, v, causal=causal, w=w, how="direct")):
        torch.testing.assert_close(found.o, sums.o, rtol=0, atol=1e-10)
        torch.testing.assert_close(found.lse, sums.lse, rtol=0, atol=1e-10)
    row = prf(normalised(q[0, 3, 4]), w) @ prf(normalised(k[0, 1]), w).T                   # query 4 stands at 14 - 9 + 4 = 9
    row = row[:10] if causal else row
    torch.testing.assert_close(sums.o[0, 3, 4], row @ v[0, 1, : len(row)] / row.sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("orthogonal", [False, True], ids=["independent", "orthogonal"])
def test_the_features_are_unbiased(orthogonal):
    """A z-test over 4 000 draws of 8 features; and the spread is the formula's (less where perpendicular)."""
    x, y = torch.tensor([0.6, -0.2, 0.3, 0.5], dtype=F64), torch.tensor([0.1, 0.7, 0.4, 0.2], dtype=F64)
    g = draw(7)
    found = torch.stack([prf(x, w) @ prf(y, w) for w in (directions(8, 4, orthogonal=orthogonal, generator=g)
                                                         for _ in range(4000))])
    truth, var = torch.exp(x @ y), variance(x, y, 8)
    assert abs(float((found.mean() - truth) / (found.var() / len(found)).sqrt())) < 4
    if orthogonal:
        assert found.var() < 0.9 * var
    else:
        assert float(found.var() / var) == pytest.approx(1, abs=0.15)


def test_orthogonal_directions_are_perpendicular_and_as_long_as_gaussian_ones():
    w = directions(40, 16, orthogonal=True, generator=draw())
    products = w[:16] @ w[:16].T
    torch.testing.assert_close(products, products.diagonal().diag(), rtol=0, atol=1e-10)
    assert w.shape == (40, 16) and float(w.square().sum(-1).mean()) == pytest.approx(16, rel=0.15)


def test_opposite_vectors_are_estimated_without_error():
    x = torch.randn(5, generator=draw(), dtype=F64)
    w = directions(3, 5, generator=draw(1))
    assert float(prf(x, w) @ prf(-x, w)) == pytest.approx(float(torch.exp(-x @ x)), rel=1e-12)
    assert variance(x, -x, 3) == 0


def test_features_needed_inverts_the_variance():
    x = torch.tensor([1.2, 0.9], dtype=F64)
    y = torch.tensor([1.2, -0.9], dtype=F64)
    cosine = float(x @ y / (x @ x))
    m = features_needed(float(x.norm()), 0.1, cosine)
    assert float(variance(x, y, 1) / m) ** 0.5 == pytest.approx(0.1 * float(torch.exp(x @ y)))
    assert features_needed(30, 0.1) == math.inf and features_needed(0, 0.1) == 0


@pytest.mark.parametrize("normalise", [True, False])
def test_many_features_reach_the_kernel_itself(normalise):
    q, k, v, b = make(5, b=1, d=3)
    q, k = q / 2, k / 2
    truth = exact(q, k, v, b, normalise=normalise)
    gaps = [float((Kernelized(m, normalise).attend(q, k, v, b, generator=draw()).o - truth.o).abs().max()) for m in (30, 30_000)]
    assert gaps[1] < 0.2 * gaps[0] and gaps[1] < 0.1


def test_the_plain_kernel_is_softmax_attention():
    q, k, v, b = make(6, t=7)
    for causal in (True, False):
        found, want = exact(q, k, v, normalise=False, causal=causal), attend(q, k, v, causal=causal)
        torch.testing.assert_close(found.o, want.o, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.lse, want.lse, rtol=0, atol=1e-12)


def test_a_constant_added_to_the_bias_changes_only_the_total():
    q, k, v, b = make(8)
    method, w = Kernelized(8), directions(8, 6, generator=draw())
    one, two = method.attend(q, k, v, b, w=w), method.attend(q, k, v, b + 500, w=w)
    torch.testing.assert_close(two.o, one.o, rtol=0, atol=1e-10)
    torch.testing.assert_close(two.lse, one.lse + 500, rtol=0, atol=1e-10)


def test_long_vectors_neither_overflow_nor_vanish():
    q, k, v, b = make(9)
    for scale in (1e-200, 5.0, 40.0):
        part = Kernelized(8, normalise=False).attend(scale * q, scale * k, v, b, generator=draw(), how="direct")
        assert torch.isfinite(part.o).all() and not part.lse.isnan().any()
    with pytest.warns(UserWarning, match="rows weigh less than the rounding"):
        rounded = Kernelized(8, normalise=False).attend(40 * q, 40 * k, v, b, generator=draw())
    drowned = rounded.lse == float("-inf")
    assert drowned.any() and (rounded.o[drowned] == 0).all() and rounded.o.abs().max() <= v.abs().max() + 1e-6
    torch.testing.assert_close(rounded.lse[~drowned], part.lse[~drowned], rtol=1e-3, atol=1)
    assert not torch.isfinite(prf(torch.full((1, 4), 40.0), torch.full((1, 4), 40.0))).all()   # what the shifts are for


def test_a_zero_vector_stays_zero():
    q, k, v, b = make(10)
    q[0, 0, 3], k[0, 0] = 0, 0
    part = Kernelized(8).attend(q, k, v, generator=draw())
    assert torch.isfinite(part.o).all()
    assert normalised(torch.zeros(2, 3)).tolist() == torch.zeros(2, 3).tolist()


def test_a_causal_row_does_not_know_what_comes_later():
    q, k, v, b = make(11)
    method, w = Kernelized(8), directions(8, 6, generator=draw())
    before = method.attend(q, k, v, b, w=w).o[:, :, :6]
    k[:, :, 6:], v[:, :, 6:], b[:, 13:] = 1, 5, 9                                          # the future, and its distances
    torch.testing.assert_close(method.attend(q, k, v, b, w=w).o[:, :, :6], before, rtol=0, atol=1e-10)


def test_an_fft_drowns_weak_distances_and_says_so():
    """Factors from 1 to e^-46 in float32: the direct sum is right, the FFT is not; float64 bears a factor of 1e8."""
    q, k, v, _ = make(12, b=1, hq=1, hkv=1, s=64, t=64)
    b = torch.linspace(0, 46, 127, dtype=F64).flip(0)                                      # the oldest key counts most …
    v[..., :40, :] = 0
    method, w = Kernelized(8), directions(8, 6, generator=draw())
    truth = method.attend(q, k, v, b, w=w, how="direct")
    with pytest.warns(UserWarning) as told:
        drowned = method.attend(q, k, v, b, w=w, dtype=torch.float32)
    assert ["weak distances drown" in str(told[0].message), "are returned as empty" in str(told[1].message)] == [True, True]
    direct = method.attend(q, k, v, b, w=w, how="direct", dtype=torch.float32)
    gap = lambda part: float((part.lse - truth.lse).nan_to_num(99, posinf=99, neginf=99).abs().max())
    assert gap(drowned) > 0.1 > 1e-4 > gap(direct)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mild = method.attend(q, k, v, b / 3, w=w)
    torch.testing.assert_close(mild.o, method.attend(q, k, v, b / 3, w=w, how="direct").o, rtol=0, atol=1e-6)


def test_the_cost_counts_the_products_of_the_direct_form():
    q, k, v, b = make(13)
    method, w = Kernelized(8), directions(8, 6, generator=draw())
    with FlopCounterMode(display=False) as counter:
        method.attend(q, k, v, b, w=w, how="direct")
    assert method.cost(q, k, v, how="direct")["flops"] == counter.get_total_flops()
    wide = torch.empty(1, 1, 4096, 64)
    long = torch.empty(1, 1, 65536, 64)
    fft, direct = (Kernelized(16).cost(wide, wide, wide, how=how)["flops"] for how in ("fft", "direct"))
    assert Kernelized(16).cost(long, long, long)["flops"] < 22 * fft                       # n log n
    assert Kernelized(16).cost(long, long, long, how="direct")["flops"] > 250 * direct     # n^2
    assert Kernelized(16).cost(wide, wide, wide, biased=False)["flops"] < fft / 15


# ------------------------------------------------------------------------------------------------------ museum

def test_the_museum_differs_from_the_method():
    c, x = torch.rand(9, generator=draw(), dtype=F64), torch.randn(5, 2, generator=draw(1), dtype=F64)
    assert (museum.wraps_around(c, x) - toeplitz(c) @ x).abs().max() > 0.1
    padded = torch.cat([x, torch.zeros(5, 2, dtype=F64)])                                  # zeros behind: nothing wraps
    past = torch.cat([torch.zeros(5, dtype=F64), c[:5], torch.zeros(9, dtype=F64)])        # c_-9..c_9, only 0..-4 not 0
    torch.testing.assert_close(museum.wraps_around(past, padded)[:5], toeplitz(c).tril() @ x, rtol=0, atol=1e-12)
    torch.testing.assert_close(museum.transposed(c), circulant(c.flip(0)), rtol=0, atol=0)
    k, w = 2 * torch.randn(6, 4, generator=draw(2), dtype=F64), directions(50, 4, generator=draw(3))
    ratio = museum.shifted_key_by_key(k, w) / prf(k, w)                                    # another constant for every key
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert ratio[:, 0].max() / ratio[:, 0].min() > 2
    y = k / 4
    w = directions(200_000, 4, generator=draw(4))
    found = (museum.without_the_norm(y[0], w) * museum.without_the_norm(y[1], w)).sum()
    assert float(found) == pytest.approx(float(torch.exp((y[0] + y[1]).square().sum() / 2)), rel=0.02)


@pytest.mark.parametrize("change, message", [
    (lambda a: a | {"b": a["b"][:, 1:]}, r"shape \(2S-1,\) = \(25,\) or \(Hq, 2S-1\) = \(4, 25\)"),
    (lambda a: a | {"k": a["k"][:, :, :5], "v": a["v"][:, :, :5]}, "T = 13 queries but S = 5 keys"),
    (lambda a: a | {"w": torch.zeros(3, 5)}, r"w must have shape \(m, d\) with m >= 1 and d = 6"),
    (lambda a: a | {"how": "guess"}, "how must be 'fft' or 'direct'"),
    (lambda a: a | {"engine": "steam"}, "engine must be 'torch' or 'monarch'"),
])
def test_bad_input_is_refused(change, message):
    q, k, v, b = make()
    arguments = change({"q": q, "k": k, "v": v, "b": b, "w": directions(8, 6)})
    with pytest.raises(ValueError, match=message):
        Kernelized(8).attend(**arguments)


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="m must be >= 1"):
        Kernelized(0)
    with pytest.raises(ValueError, match="m and d must be >= 1"):
        directions(0, 4)
    with pytest.raises(ValueError, match="2n - 1 = 9; got 8"):
        toeplitz_multiply(torch.zeros(8), torch.zeros(5, 1))
    with pytest.raises(ValueError, match="cosine in"):
        features_needed(1, 0.1, 2)
    assert log_prf(torch.zeros(2, 3), torch.zeros(4, 3)).shape == (2, 4)
