"""Sorted hashing puts each pair in its place, the sample is unbiased, and what covers everything is exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.museum.attention import hyper as museum
from tutor.attention.dense import attend, causal_mask, causal_pairs, positions
from tutor.attention.methods.hyper import Hyper, gray_rank, hardness, hash_bins
from tutor.attention.partial import merge

COVERS = ("attention.hyper",)


def make(seed=0, b=1, hq=4, hkv=2, t=16, s=16, d=4, dv=3):
    g = torch.Generator().manual_seed(seed)
    sizes = (hq, t, d), (hkv, s, d), (hkv, s, dv)
    return [torch.randn(b, h, n, w, generator=g, dtype=torch.float64) for h, n, w in sizes]


def close(part, want, tol=1e-12):
    torch.testing.assert_close(part.o, want.o, rtol=0, atol=tol)
    torch.testing.assert_close(part.lse, want.lse, rtol=0, atol=tol)


def test_bins_and_their_order_by_hand():
    # Planes: the x and the y axis. (1,1): both bits, bin 3; (1,-1): bit 0, bin 1; (-1,1): bit 1, bin 2; (-1,-1): bin 0.
    # The Gray code of two bits runs 00 01 11 10 = bins 0 1 3 2: once around the four quadrants.
    x = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1], [0, 0]])
    bins = hash_bins(x, torch.eye(2))
    assert bins.tolist() == [3, 1, 2, 0, 0]
    assert gray_rank(torch.tensor([0, 1, 3, 2])).tolist() == [0, 1, 2, 3]
    # Three bits: 000 001 011 010 110 111 101 100.
    assert gray_rank(torch.tensor([0, 1, 3, 2, 6, 7, 5, 4])).tolist() == list(range(8))


@pytest.mark.parametrize("planes", [1, 2, 3, 7, 8, 16])
def test_neighbouring_ranks_differ_in_one_plane(planes):
    bins = torch.arange(2**planes)
    listed = bins[gray_rank(bins).argsort()]
    assert torch.equal(gray_rank(listed), bins)                            # a permutation
    apart = [(int(a) ^ int(b)).bit_count() for a, b in zip(listed, listed[1:])]
    assert set(apart) <= {1}


@pytest.mark.parametrize(("planes", "worst"), [(1, 1), (2, 1), (3, 2), (4, 2), (7, 4), (8, 4)])
def test_the_published_order_puts_bins_side_by_side_that_differ_in_several_planes(planes, worst):
    bins = torch.arange(2**planes)
    listed = bins[museum.GrayForward().rank(bins).argsort()]
    assert max((int(a) ^ int(b)).bit_count() for a, b in zip(listed, listed[1:])) == worst


def test_an_estimate_by_hand():
    # Keys +log 4, -log 2, one plane along the axis, blocks of one key, T = S = 2, q = 1 and -1, scale 1.
    # Ranks: q = (1, 0), k = (1, 0): query 0 meets key 0, query 1 meets key 1.
    # Query 0 inside: exp(log 4) = 4. Outside: key 1 alone, exp(-log 2) = 1/2. One draw weighs S/m = 2: key 1 drawn adds
    # 2 * 1/2 = 1, key 0 (its own block) adds nothing. Denominator 5 or 4; the mean is 4.5, the exact one.
    # Query 1 inside: 2; outside key 0: exp(-log 4) = 1/4; drawn: 2 * 1/4 = 1/2. Denominator 2 or 2.5.
    q = torch.tensor([1.0, -1]).double().reshape(1, 1, 2, 1)
    k = torch.tensor([math.log(4), -math.log(2)], dtype=torch.float64).reshape(1, 1, 2, 1)
    v = torch.tensor([3.0, 8]).double().reshape(1, 1, 2, 1)
    found = set()
    for seed in range(20):
        part = Hyper(planes=1, block=1, samples=1, min_len=1).attend(
            q, k, v, causal=False, scale=1.0, generator=torch.Generator().manual_seed(seed))
        # values: with key 1, query 0 says (4*3 + 1*8)/5 = 4; query 1, (2*8 + 0.5*3)/2.5 = 7 with key 0
        found.add(tuple(round(x, 9) for x in (*part.lse.exp().flatten().tolist(), *part.o.flatten().tolist())))
    assert found == {(5.0, 2.0, 4.0, 8.0), (4.0, 2.5, 3.0, 7.0)}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), t=st.integers(1, 23), s=st.integers(1, 23), causal=st.booleans(),
       sinks=st.integers(0, 5), sampling=st.sampled_from(["uniform", "vnorm"]))
def test_a_block_that_holds_every_key_is_exact(seed, t, s, causal, sinks, sampling):
    q, k, v = make(seed, t=t, s=s)
    part = Hyper(3, block=s, samples=4, min_len=1, sinks=sinks, sampling=sampling).attend(q, k, v, causal=causal, scale=0.7)
    close(part, attend(q, k, v, causal=causal, scale=0.7))


@settings(max_examples=80, deadline=None)
@given(t=st.integers(0, 40), s=st.integers(0, 40), sinks=st.integers(0, 6), min_len=st.integers(1, 12), causal=st.booleans())
def test_the_plan_covers_every_pair_once(t, s, sinks, min_len, causal):
    covered = torch.zeros(t, s, dtype=torch.int)
    for row, row_end, key, key_end, triangle, _ in Hyper(min_len=min_len, sinks=sinks).plan(t, s, causal=causal):
        piece = torch.ones(row_end - row, key_end - key, dtype=torch.int)
        covered[row:row_end, key:key_end] += piece.tril(key_end - key - (row_end - row)) if triangle else piece
    allowed = causal_mask(torch.arange(s - t, s), s) if causal else torch.ones(t, s, dtype=torch.bool)
    assert torch.equal(covered, allowed.int())


@pytest.mark.parametrize("n", [1, 2, 7, 16, 17, 31])
def test_the_recursion_with_exact_pieces_is_dense_for_odd_lengths_too(n, monkeypatch):
    def exact(self, q, k, v, planes, *, scale, generator):
        return attend(q, k, v, causal=False, scale=scale)

    monkeypatch.setattr(Hyper, "estimate", exact)
    q, k, v = make(t=n, s=n)
    close(Hyper(block=2, min_len=2).attend(q, k, v), attend(q, k, v))
    close(Hyper(block=2, min_len=2, sinks=3).attend(q[:, :, n // 2:], k, v), attend(q[:, :, n // 2:], k, v))


@pytest.mark.parametrize(("t", "s"), [(16, 16), (13, 29), (29, 13), (1, 7), (5, 5)])
@pytest.mark.parametrize("planes", [1, 3])
def test_without_samples_only_matched_blocks_are_read(t, s, planes):
    q, k, v = make(t=t, s=s)
    method = Hyper(planes, block=4, samples=0, min_len=1)
    g = torch.Generator().manual_seed(3)
    w = torch.randn(4, planes, generator=g).double()
    order = method.sort(q, k, w)
    mask = order.together()
    assert mask.shape == (1, 4, t, s)
    close(method.estimate(q, k, v, w, scale=0.5, generator=g), attend(q, k, v, causal=False, mask=mask))
    # the oracle in plain loops: sort by rank, cut in blocks, meet
    for h in range(4):
        by_rank = sorted(range(t), key=lambda i: (int(order.q_rank[0, h, i]), i))
        keys = sorted(range(s), key=lambda j: (int(order.k_rank[0, h // 2, j]), j))
        blocks = math.ceil(s / 4)
        size = math.ceil(t / blocks)
        for i, row in enumerate(by_rank):
            want = keys[4 * (i // size):4 * (i // size) + 4]
            assert mask[0, h, row].nonzero().flatten().tolist() == sorted(want)


def test_rows_come_back_where_they_were():
    q, k, v = make(t=12, s=20)
    shuffle = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    method = Hyper(block=20, samples=0, min_len=1)
    part = method.attend(q, k, v, causal=False)
    moved = method.attend(q[:, :, shuffle], k, v, causal=False)
    torch.testing.assert_close(moved.o, part.o[:, :, shuffle], rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampling", ["uniform", "vnorm"])
@pytest.mark.parametrize(("t", "s", "samples"), [(32, 32, 8), (9, 21, 1)])
def test_numerator_and_denominator_are_unbiased_and_their_quotient_is_not(sampling, t, s, samples):
    # 20 000 independent estimates (as batch rows) of one rectangle, hashed alike. The mean must lie within 4.5 standard
    # errors of the truth for every row; a chance of 7e-6 per number, and the seed is fixed.
    q, k, v = make(4, hq=2, hkv=1, t=t, s=s, d=3, dv=2)
    if sampling == "uniform":
        v[0, 0, 3] = 0      # a key that says nothing still has weight; vnorm draws it once in 10^6, which no test can average
    n = 20_000
    many = [x.expand(n, *x.shape[1:]) for x in (q, k, v)]
    method = Hyper(3, block=4, samples=samples, min_len=1, sampling=sampling)
    part = method.attend(*many, causal=False, generator=torch.Generator().manual_seed(0))
    truth = attend(q, k, v, causal=False)
    denominator = part.lse.exp()[..., None]                                # (n, 2, T, 1)
    numerator = part.o * denominator                                       # (n, 2, T, 2)
    scores = {}
    for name, found, want in (("denominator", denominator, truth.lse.exp()[..., None]),
                              ("numerator", numerator, truth.o * truth.lse.exp()[..., None]), ("quotient", part.o, truth.o)):
        error = found.std(0) / math.sqrt(n)
        scores[name] = float(((found.mean(0) - want[0]).abs() / error.clamp(min=1e-12)).max())
    assert scores["numerator"] < 4.5 and scores["denominator"] < 4.5, scores
    assert scores["quotient"] > 20, scores


@pytest.mark.parametrize("wrong", [museum.CountedTwice, museum.LeadingColumns])
def test_the_variants_of_the_museum_are_biased(wrong):
    q, k, v = make(4, hq=2, hkv=1, t=32, s=32)
    options = dict(planes=3, block=4, samples=8, min_len=1)
    draw = torch.Generator().manual_seed(0)
    totals = torch.stack([wrong(**options).attend(q, k, v, causal=False, generator=draw).lse.exp() for _ in range(10)])
    mine = torch.stack([Hyper(**options).attend(q, k, v, causal=False, generator=draw).lse.exp() for _ in range(400)])
    truth = attend(q, k, v, causal=False).lse.exp()
    assert float((mine.mean(0) / truth).mean()) == pytest.approx(1, abs=0.02)
    assert abs(float((totals.mean(0) / truth).mean()) - 1) > 0.1


def test_the_wrong_order_catches_less_mass():
    # Directions on a sphere, queries near keys, blocks of several bins. The loss is about a percentage point, 8 standard
    # errors over 12 draws of the planes: small, so that no benchmark would have found it.
    g = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 4, 1000, 16, generator=g), dim=-1)
    q = torch.nn.functional.normalize(k + 0.1 * torch.randn(1, 4, 1000, 16, generator=g), dim=-1)
    a, lost = torch.softmax(20 * q @ k.transpose(-1, -2), -1), []
    for seed in range(12):
        w = torch.randn(16, 7, generator=torch.Generator().manual_seed(seed))
        right, wrong = (float((a * kind(block=100).sort(q, k, w).together()).sum(-1).mean())
                        for kind in (Hyper, museum.GrayForward))
        lost.append(right - wrong)
    lost = torch.tensor(lost)
    assert float(lost.mean()) > max(0.005, 3 * float(lost.std()) / 12**0.5)


def test_cost_by_hand_and_by_counting():
    # 12 rows, min_len 3: triangles of 3 rows, 4 of them, 6 pairs each: 24. Rectangles 3x3 twice and 6x6, blocks of 2,
    # one sample. 3x3: 2 blocks of keys (2, 1) and of rows (2, 1): 4 + 1 = 5 pairs, 3 samples; 6x6: 3 * 4 = 12, 6 samples.
    # Loaded 24 + 2 * 8 + 18 = 58 per query head. Hashed with 5 planes, 2 query heads and 1 KV head: (2 * 3 + 3) * 5 twice
    # and (2 * 6 + 6) * 5: 180.
    q, k, v = make(b=2, hq=2, hkv=1, t=12, s=12)
    cost = Hyper(5, block=2, samples=1, min_len=3).cost(q, k, v)
    assert (cost["loaded"], cost["scored"], cost["pairs"]) == (2 * 2 * 58, 2 * 180, 2 * 2 * 78)
    method = Hyper(5, block=3, samples=0, min_len=1)
    order = method.sort(q[:, :, :7], k[:, :, :11], torch.randn(4, 5).double())
    assert method.cost(q[:, :, :7], k[:, :, :11], causal=False)["loaded"] == int(order.together().sum())
    assert Hyper(min_len=12).cost(q, k, v)["loaded"] == 4 * causal_pairs(positions(q, k), 12)
    assert Hyper(min_len=12).cost(q, k, v)["scored"] == 0


def test_the_cost_is_what_torch_multiplies():
    # Everything divides: 2 triangles of 1 024 rows and one square of 1 024, each of its rows with a block of 64 and 16
    # samples. A pair is a logit and a share of a value: 2 * (4 + 4) operations. Hashing: 6 planes, 2 * 4 operations each, for
    # the rows of 2 query heads and one KV head. A triangle is computed in 2 steps of 512 rows, each somewhat too wide.
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = make(hq=2, hkv=1, t=2048, s=2048, dv=4)
    method = Hyper(6, block=64, samples=16, min_len=1024)
    with FlopCounterMode(display=False) as counted:
        method.attend(q, k, v)
    cost = method.cost(q, k, v)
    above = 2 * 2 * 2 * 512 * 511 // 2      # of 2 heads, 2 triangles, 2 steps: beyond the diagonal
    assert cost["loaded"] == 2 * (2 * 1024 * 1025 // 2 + 1024 * 80)
    assert cost["scored"] == 6 * 3 * 1024
    assert counted.get_total_flops() == 16 * (cost["loaded"] + above) + 8 * cost["scored"]


def test_short_texts_and_decoding_are_exact():
    q, k, v = make(t=16, s=40)
    close(Hyper(min_len=17).attend(q, k, v), attend(q, k, v))
    close(Hyper(min_len=2, block=2).attend(q[:, :, -1:], k, v), attend(q[:, :, -1:], k, v))
    some = Hyper(min_len=17).attend(q[:, :, 2:5], k, v, pos_q=torch.arange(26, 29))
    close(some, attend(q[:, :, 2:5], k, v, pos_q=torch.arange(26, 29)))


def test_no_row_looks_ahead_and_rows_without_keys_are_empty():
    q, k, v = make(t=30, s=24)
    method = Hyper(3, block=4, samples=4, min_len=3, sinks=2)
    before = method.attend(q, k, v)
    later = [x.clone() for x in (k, v)]
    for x in later:
        x[:, :, 20:] += 1.0
    after = method.attend(q, *later)
    assert torch.equal(before.o[:, :, :26], after.o[:, :, :26]) and not torch.equal(before.o, after.o)
    assert (before.lse[:, :, :6] == float("-inf")).all() and (before.o[:, :, :6] == 0).all()
    assert before.lse[:, :, 6:].isfinite().all()


def test_forced_sinks_are_read_once_and_exactly():
    q, k, v = make(t=64, s=64)
    q[..., 0] += 3                                                         # all queries share a direction,
    k[:, :, 0] = torch.tensor([6.0, 0, 0, 0])                              # and key 0 stands there: a sink
    truth = attend(q, k, v, causal=False)
    error = {}
    for sinks in (0, 1):
        draw = torch.Generator().manual_seed(0)
        parts = [Hyper(3, block=4, samples=8, min_len=1, sinks=sinks).attend(q, k, v, causal=False, generator=draw)
                 for _ in range(20)]
        error[sinks] = sum(float((part.o - truth.o).norm()) for part in parts)
    assert error[1] < error[0]
    first = attend(q, k[:, :, :1], v[:, :, :1], causal=False)
    rest = Hyper(3, block=4, samples=8, min_len=1).attend(q, k[:, :, 1:], v[:, :, 1:], causal=False)
    close(Hyper(3, block=4, samples=8, min_len=1, sinks=1).attend(q, k, v, causal=False), merge(first, rest))


def test_one_seed_one_result_and_halves_are_computed_in_single_precision():
    q, k, v = make(t=64, s=64)
    method = Hyper(3, block=8, samples=8, min_len=8)
    assert torch.equal(method.attend(q, k, v).o, method.attend(q, k, v).o)
    assert not torch.equal(method.attend(q, k, v).o, Hyper(3, block=8, samples=8, min_len=8, seed=1).attend(q, k, v).o)
    half = method.attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.o.dtype == torch.bfloat16 and half.lse.dtype == torch.float32


def test_hardness_by_hand():
    # All queries look at key 0 alone: its column of ones has squared norm T, so alpha = T * T. Keys all alike: every
    # weight is 1/S, a column's squared norm T/S^2: alpha = T^2/S^2, here 1.
    q = torch.ones(1, 1, 8, 1)
    k = torch.zeros(1, 1, 8, 1)
    assert hardness(q, k).alpha.item() == pytest.approx(1)
    assert hardness(q, k).log_kappa.item() == pytest.approx(0)
    k[0, 0, 0] = 100
    assert hardness(q, k).alpha.item() == pytest.approx(64)
    q = torch.tensor([0.0, 2.0]).reshape(1, 1, 2, 1)                       # row sums 8 and 7 + e^200; without key 0: 7 and 7
    together = torch.zeros(1, 1, 2, 8, dtype=torch.bool)
    assert hardness(q, k).log_kappa.item() == pytest.approx(200 - math.log(8))
    together[..., 0] = True
    assert hardness(q, k, together).log_kappa.item() == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_computed_is_refused():
    q, k, v = make()
    for bad in (0, 17):
        with pytest.raises(ValueError, match=f"planes must be 1 to 16; got {bad}"):
            Hyper(bad)
    for name, value in (("block", 0), ("samples", -1), ("min_len", 0), ("sinks", -1)):
        with pytest.raises(ValueError, match=f"{name} must be >="):
            Hyper(**{name: value})
    with pytest.raises(ValueError, match="sampling must be 'uniform' or 'vnorm'; got 'norm'"):
        Hyper(sampling="norm")
    with pytest.raises(ValueError, match="pos_q must be consecutive"):
        Hyper().attend(q[:, :, :2], k, v, pos_q=torch.tensor([3, 9]))
    with pytest.raises(ValueError, match="below S = 16"):
        Hyper().attend(q[:, :, :2], k, v, pos_q=torch.tensor([15, 16]))
    with pytest.raises(ValueError, match="Hq must be a multiple of Hkv"):
        Hyper().attend(q[:, :3], k, v)
