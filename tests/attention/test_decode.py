"""Decoding over chosen keys equals attention over the same keys, and the fast vote elects what the reference elects."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention import dense as truth
from tutor.attention.decode import attend, dense, elect, keys_of, traffic
from tutor.attention.methods.oracle_topk import OracleTopK
from tutor.attention.methods.oracle_topp import OracleTopP
from tutor.attention.methods.token_select import TokenSelect
from tutor.attention.selection import Selection, attend_selected

COVERS = ("attention.token_select",)


def step(g, b=1, hq=6, hkv=2, s=50, d=16, dv=None):
    return (torch.randn(b, hq, 1, d, generator=g), torch.randn(b, hkv, s, d, generator=g),
            torch.randn(b, hkv, s, dv or d, generator=g))


def close(part, want):
    torch.testing.assert_close(part.o, want.o.float(), rtol=0, atol=2e-6)
    torch.testing.assert_close(part.lse, want.lse.float(), rtol=0, atol=2e-6)


def test_dense_is_dense(rng):
    q, k, v = step(rng, b=2, dv=8)
    torch.testing.assert_close(dense(q, k, v), truth.attend(q, k, v).o.float(), rtol=0, atol=2e-6)


def test_two_keys_by_hand():
    # q = 1, keys 0 and ln 3 have the weights 1/4 and 3/4; values 4 and 8: 1 + 6 = 7; lse = ln 4. Key 1 is not read.
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([0.0, 99.0, 3.0]).reshape(1, 1, 3, 1)
    k[0, 0, 2] = torch.tensor(3.0).log()
    v = torch.tensor([4.0, float("nan"), 8.0]).reshape(1, 1, 3, 1)
    for keys in (torch.tensor([0, 2]), torch.tensor([[[0, 2]]]), torch.tensor([[[2, 0, -1]]])):
        part = attend(q, k, v, keys)
        assert part.o.item() == pytest.approx(7.0, abs=1e-5) and part.lse.item() == pytest.approx(1.3862943, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(b=st.integers(1, 2), hkv=st.integers(1, 3), g=st.integers(1, 3), s=st.integers(1, 30), n=st.integers(1, 30),
       seed=st.integers(0, 99))
def test_it_is_attention_over_the_selection(b, hkv, g, s, n, seed):
    rng = torch.Generator().manual_seed(seed)
    q, k, v = step(rng, b, hkv * g, hkv, s, 8, 4)
    for sel in (OracleTopK(n).select(q, k)[0], OracleTopP(0.7).select(q, k)[0], TokenSelect(n, 1, 2).select(q, k)[0]):
        close(attend(q, k, v, keys_of(sel)), attend_selected(q, k, v, sel))


def test_rows_of_different_lengths_and_empty_ones(rng):
    q, k, v = step(rng, hq=3, hkv=1, s=9)
    sel = Selection.from_rows([[1, 4, 8], [], [2]], q, k)
    keys = keys_of(sel)
    assert keys.tolist() == [[[1, 4, 8], [-1, -1, -1], [2, -1, -1]]]
    part = attend(q, k, v, keys)
    close(part, attend_selected(q, k, v, sel))
    assert (part.o[0, 1] == 0).all() and part.lse[0, 1] == float("-inf")


def test_heads_that_agree_share_one_list(rng):
    q, k, _ = step(rng)
    assert keys_of(TokenSelect(7, 2, 9).select(q, k)[0]).shape == (18,)
    assert keys_of(OracleTopK(7).select(q, k)[0]).shape == (1, 6, 7)


def test_the_fast_vote_elects_what_the_reference_elects(rng):
    for hq, hkv, s, sizes in ((6, 2, 80, (11, 3, 8)), (9, 3, 200, (32, 4, 20)), (4, 1, 64, (5, 0, 0)), (2, 2, 20, (9, 4, 8))):
        q, k, _ = step(rng, 1, hq, hkv, s)
        want = keys_of(TokenSelect(*sizes).select(q, k)[0])
        got = elect(q, k, k_top=sizes[0], n_init=sizes[1], n_local=sizes[2])
        assert torch.equal(got, want), sizes


def test_on_the_real_heads_it_is_the_reference():
    from tutor.data import capture

    recorded = capture("reference_4096")
    q, k, v = recorded.q(20)[:, :, -1:], recorded.k(20), recorded.v(20)
    keys = elect(q, k, k_top=448, n_init=4, n_local=60)
    sel, _ = TokenSelect(448, 4, 60).select(q, k)
    assert torch.equal(keys, keys_of(sel))
    torch.testing.assert_close(attend(q, k, v, keys).o, attend_selected(q, k, v, sel).o.float(), rtol=1e-4, atol=1e-5)


def test_bytes_by_hand():
    # 100 keys of 8 floats (32 bytes), 2 KV heads: dense 2 * 2 * 100 * 32 = 12 800. Ten keys, thrice, k and v, 2 heads:
    # 3 * 2 * 2 * 10 * 32 = 3 840; six query heads each for itself: 11 520. The vote reads 2 * 100 * 32 = 6 400.
    assert traffic(100, 10, hq=6, hkv=2, d=8) == {"dense": 12_800, "attend": 3_840, "vote": 6_400}
    assert traffic(100, 10, hq=6, hkv=2, d=8, shared=False)["attend"] == 11_520


@pytest.mark.parametrize("change, message", [
    (lambda q, k, v: attend(torch.cat((q, q), 2), k, v, torch.tensor([0])), "one query a head; got T = 2"),
    (lambda q, k, v: attend(q, k, v, torch.tensor([0.5])), "whole numbers"),
    (lambda q, k, v: attend(q, k, v, torch.zeros(1, 2, 4, dtype=torch.long)), r"shape \(K,\) or \(B, Hq, K\)"),
    (lambda q, k, v: attend(q, k, v, torch.tensor([3, 50])), r"keys must be in \[0, 50\).*got 3 to 50"),
    (lambda q, k, v: attend(q, k, v, torch.tensor([-2, 5])), "or -1 for none"),
    (lambda q, k, v: elect(q.repeat(2, 1, 1, 1), k.repeat(2, 1, 1, 1), k_top=1, n_init=0, n_local=0), "one text votes"),
    (lambda q, k, v: keys_of(OracleTopK(2).select(k, k)[0]), "one query a head; the selection has T = 50"),
], ids=["two-queries", "floats", "shape", "beyond", "negative", "texts", "prefill"])
def test_bad_inputs_are_refused(change, message, rng):
    with pytest.raises(ValueError, match=message):
        change(*step(rng))
