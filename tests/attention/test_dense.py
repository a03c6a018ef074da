"""Dense attention is what the formula says: by hand, by loops, and by torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tutor.attention.dense import attend, causal_pairs, check_qkv, positions, probs

COVERS = ("attention.dense",)


def loops(q, k, v, causal=True):
    """The formula written with loops, in Python floats."""
    (b, hq, t, d), (hkv, s) = q.shape, k.shape[1:3]
    o, lse = torch.zeros(b, hq, t, v.shape[3], dtype=torch.float64), torch.full((b, hq, t), float("-inf")).double()
    for x in range(b):
        for h in range(hq):
            kv = h // (hq // hkv)
            for i in range(t):
                keys = [j for j in range(s) if not causal or j <= s - t + i]
                dot = [sum(float(q[x, h, i, c]) * float(k[x, kv, j, c]) for c in range(d)) for j in keys]
                e = [math.exp(z / math.sqrt(d)) for z in dot]
                if keys:
                    o[x, h, i] = sum(w / sum(e) * v[x, kv, j].double() for w, j in zip(e, keys))
                    lse[x, h, i] = math.log(sum(e))
    return o, lse


def test_by_hand():
    # D = 1, scale 1. Query 1 at position 1 sees keys 0 and log 3: weights 1/4, 3/4; values 4 and 8: o = 1 + 6 = 7.
    # Query 0 at position 0 sees key 0 alone: o = 4, lse = 0.
    q = torch.ones(1, 1, 2, 1)
    k, v = torch.tensor([[[[0.0], [math.log(3)]]]]), torch.tensor([[[[4.0], [8.0]]]])
    part = attend(q, k, v)
    assert part.o.flatten().tolist() == pytest.approx([4.0, 7.0])
    assert part.lse.flatten().tolist() == pytest.approx([0.0, math.log(4)])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 2), (2, 4, 2, 3, 7, 3), (1, 6, 2, 5, 5, 4), (1, 3, 3, 6, 4, 2)],
                         ids=lambda s: "B{}-Hq{}-Hkv{}-T{}-S{}-D{}".format(*s))
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_it_is_the_formula(shape, causal, rng):
    b, hq, hkv, t, s, d = shape
    q, k, v = (torch.randn(b, h, n, d, generator=rng) for h, n in ((hq, t), (hkv, s), (hkv, s)))
    part, (o, lse) = attend(q, k, v, causal=causal), loops(q, k, v, causal)
    torch.testing.assert_close(part.o, o, rtol=0, atol=1e-12)
    torch.testing.assert_close(part.lse, lse, rtol=0, atol=1e-12)


def test_torch_agrees_where_its_alignment_is_ours(rng):
    q, k, v = (torch.randn(2, h, 9, 8, generator=rng, dtype=torch.float64) for h in (6, 2, 2))
    peer = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v).o, peer, rtol=0, atol=1e-12)


def test_the_last_query_sees_every_key(rng):
    """Bottom-right alignment: a chunk of a prefill gives the same rows as the whole."""
    q, k, v = (torch.randn(1, 2, 10, 4, generator=rng) for _ in range(3))
    whole, chunk = attend(q, k, v), attend(q[:, :, 6:], k, v)
    torch.testing.assert_close(chunk.o, whole.o[:, :, 6:], rtol=0, atol=1e-14)
    assert (probs(q[:, :, 9:], k)[..., 9] > 0).all() and (probs(q[:, :, :1], k[:, :, :4])[..., 3] > 0).all()


def test_more_queries_than_keys_leaves_the_first_rows_empty(rng):
    q, k, v = (torch.randn(1, 1, n, 4, generator=rng) for n in (5, 2, 2))
    part = attend(q, k, v, dtype=torch.float32)
    assert (part.o[0, 0, :3] == 0).all() and (part.lse[0, 0, :3] == float("-inf")).all()
    assert part.o[0, 0, 3:].abs().min() > 0
    assert (probs(q, k)[0, 0, :3] == 0).all()


def test_a_few_rows_by_their_positions(rng):
    q, k, v = (torch.randn(1, 4, 12, 4, generator=rng) for _ in range(3))
    rows = torch.tensor([9, 2, 5])
    some = attend(q[:, :, rows], k, v, pos_q=rows)
    torch.testing.assert_close(some.o, attend(q, k, v).o[:, :, rows], rtol=0, atol=1e-14)


def test_a_mask_cuts_what_the_causal_rule_allows(rng):
    q, k, v = (torch.randn(1, 2, 6, 4, generator=rng) for _ in range(3))
    mask = torch.rand(1, 2, 6, 6, generator=rng) < 0.5
    a = probs(q, k, mask=mask)
    assert (a[~mask.expand_as(a)] == 0).all() and (a[0, 0].triu(1) == 0).all()
    torch.testing.assert_close(a @ v.double(), attend(q, k, v, mask=mask).o, rtol=0, atol=1e-14)


def test_weights_of_a_row_sum_to_one(rng):
    q, k = torch.randn(2, 6, 7, 8, generator=rng) * 50, torch.randn(2, 2, 9, 8, generator=rng)
    torch.testing.assert_close(probs(q, k).sum(-1), torch.ones(2, 6, 7, dtype=torch.float64))


def test_pairs_are_counted():
    # T = 3 queries over S = 5 keys stand at 2, 3, 4 and see 3 + 4 + 5 = 12 pairs.
    q, k = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 5, 2)
    assert causal_pairs(positions(q, k), 5) == 12
    assert causal_pairs(torch.tensor([-2, -1, 0]), 1) == 1


@pytest.mark.parametrize("change, message", [
    (dict(q=torch.zeros(3, 4)), "q must have four axes"),
    (dict(k=torch.zeros(1, 2, 5, 4, dtype=torch.long)), "k must be floating point"),
    (dict(q=torch.zeros(1, 3, 5, 4)), "Hq must be a multiple of Hkv; got 3 query heads and 2"),
    (dict(q=torch.zeros(2, 4, 5, 4)), "batch: 2 and 1"),
    (dict(q=torch.zeros(1, 4, 5, 6)), "head width: 6 and 4"),
    (dict(v=torch.zeros(1, 2, 6, 4)), "share batch, heads and length"),
], ids=["rank", "integer", "groups", "batch", "width", "length"])
def test_bad_tensors_are_named(change, message):
    tensors = {"q": torch.zeros(1, 4, 5, 4), "k": torch.zeros(1, 2, 5, 4), "v": torch.zeros(1, 2, 5, 4)} | change
    with pytest.raises(ValueError, match=message):
        attend(**tensors)


def test_the_other_errors():
    q, k, v = torch.zeros(1, 4, 5, 4), torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="first 2 causal rows see no key"):
        check_qkv(q, k, v, every_row=True)
    k[0, 1, 2, 0] = float("nan")
    check_qkv(q, k, v)
    with pytest.raises(ValueError, match="k holds NaN or infinity"):
        check_qkv(q, k, v, check=True)
    with pytest.raises(ValueError, match="mask must be bool"):
        attend(q, k, v, mask=torch.zeros(5, 3))
    with pytest.raises(ValueError, match="does not broadcast"):
        attend(q, k, v, mask=torch.zeros(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="one whole number per query row"):
        attend(q, k, v, pos_q=torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_attention_refuses_nan_when_asked(bad):
    x = torch.zeros(1, 1, 3, 4)
    broken = x.clone()
    broken[0, 0, 1, 2] = bad
    with pytest.raises(ValueError, match="v holds NaN or infinity"):
        attend(x, x, broken, check=True)
