"""Three forms of one definition agree, hand their state to each other, and have the gradients that autograd finds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tutor.attention.methods.lightning import Lightning, lightning_backward, naive, recurrence, recurrent_step, slopes, tiled

COVERS = ("attention.lightning",)


def make(seed=0, b=2, hq=4, hkv=2, t=11, d=4, dv=3):
    """q, k, v, decay rates that differ by head, and a state of earlier tokens."""
    g = torch.Generator().manual_seed(seed)
    sizes = (b, hq, t, d), (b, hkv, t, d), (b, hkv, t, dv), (hkv,), (b, hkv, d, dv)
    q, k, v, s, state = (torch.randn(size, generator=g, dtype=torch.float64) for size in sizes)
    return q, k, v, s.abs(), state


def close(found, want, tol=1e-12):
    for x, y in zip(found, want, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tol)


@pytest.mark.parametrize("block", [1, 4, 5, 11, 64])
def test_tiles_of_the_quadratic_form_are_the_definition(block):
    q, k, v, s, _ = make()
    close([tiled(q, k, v, s, block=block)], [naive(q, k, v, s).o])


def test_by_hand():
    # lambda = 1/2, all widths 1, q = 1 2 1, k = 1 2 3, v = 4 5 6.
    # State: 4; 4/2 + 10 = 12; 12/2 + 18 = 24. Output q KV: 4, 24, 24.
    # In blocks of 2, row 2: inside 1*3*6 = 18, from the state 1/2 * 12 = 6: 24.
    q, k, v = (torch.tensor(x, dtype=torch.float64).reshape(1, 1, 3, 1) for x in ([1, 2, 1], [1, 2, 3], [4, 5, 6]))
    s = torch.tensor([math.log(2)], dtype=torch.float64)
    for o, state in (naive(q, k, v, s), recurrence(q, k, v, s), Lightning(2).attend(q, k, v, s)):
        assert o.flatten().tolist() == pytest.approx([4, 24, 24], abs=1e-12)
        assert state.item() == pytest.approx(24, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), t=st.integers(0, 13), block=st.integers(1, 16), hkv=st.sampled_from([1, 2, 4]),
       begun=st.booleans(), d=st.integers(1, 5), dv=st.integers(1, 5))
def test_the_three_forms_agree_for_any_block(seed, t, block, hkv, begun, d, dv):
    q, k, v, s, state = make(seed, hkv=hkv, t=t, d=d, dv=dv)
    state = state if begun else None
    truth = naive(q, k, v, s, state=state)
    close(Lightning(block).attend(q, k, v, s, state=state), truth)
    close(recurrence(q, k, v, s, state=state), truth)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 11), block=st.integers(1, 12))
def test_a_text_in_two_pieces_is_the_text(seed, cut, block):
    q, k, v, s, _ = make(seed)
    first = Lightning(block).attend(*(x[:, :, :cut] for x in (q, k, v)), s)
    then = Lightning(block).attend(*(x[:, :, cut:] for x in (q, k, v)), s, state=first.state)
    close((torch.cat([first.o, then.o], 2), then.state), naive(q, k, v, s))


def test_a_prefill_in_blocks_is_handed_to_decode():
    q, k, v, s, _ = make(t=12)
    truth = naive(q, k, v, s)
    _, state = Lightning(4).attend(*(x[:, :, :9] for x in (q, k, v)), s)          # two blocks and a short one
    for t in range(9, 12):
        o, state = recurrent_step(*(x[:, :, t:t + 1] for x in (q, k, v)), s, state)
        close((o,), (truth.o[:, :, t:t + 1],))
    close((state,), (truth.state,))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), t=st.integers(1, 9), block=st.integers(1, 11), hkv=st.sampled_from([1, 2, 4]))
def test_gradients_are_those_of_autograd(seed, t, block, hkv):
    q, k, v, s, state = make(seed, hkv=hkv, t=t)
    for x in (q, k, v, state):
        x.requires_grad_()
    out = naive(q, k, v, s, state=state)
    upstream = [torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype) for x in out]
    truth = torch.autograd.grad(out, (q, k, v, state), upstream)
    with torch.no_grad():
        close(lightning_backward(upstream[0], q, k, v, s, block=block, state=state, dstate=upstream[1]), truth, 1e-10)
        plain = lightning_backward(upstream[0], q, k, v, s, block=block)
        close(plain, lightning_backward(upstream[0], q, k, v, s, block=t, state=0 * state, dstate=0 * state), 1e-10)


@pytest.mark.parametrize("rate", [50.0, 1e4])
def test_strong_decay_neither_overflows_nor_reaches_back(rate):
    # e^{50 * 64}, which the inverse power of a block of 64 would need, is infinite even in float64.
    assert torch.tensor(rate * 64, dtype=torch.float64).exp().isinf()
    q, k, v, _, state = make(t=150)
    s = torch.full((2,), rate, dtype=torch.float64)
    own = (q * k.repeat_interleave(2, 1)).sum(-1, keepdim=True) * v.repeat_interleave(2, 1)    # all but the own key is gone
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    found = Lightning(64).attend(q, k, v, s, state=state)
    torch.testing.assert_close(found.o, own, rtol=0, atol=1e-12)
    by_autograd = torch.autograd.grad(found.o.sum(), (q, k, v))
    close(lightning_backward(torch.ones_like(found.o), q, k, v, s, state=state)[:3], by_autograd, 1e-10)
    single = Lightning(64).attend(q.float(), k.float(), v.float(), s.float(), state=state.float())
    assert single.o.isfinite().all() and single.state.isfinite().all()


def test_without_decay_the_state_is_the_sum_of_all_outer_products():
    q, k, v, s, _ = make()
    o, state = Lightning(4).attend(q, k, v, 0 * s)
    torch.testing.assert_close(state, torch.einsum("bhtd,bhte->bhde", k, v), rtol=0, atol=1e-12)
    last = q[:, :, -1:].unflatten(1, (2, 2)) @ state[:, :, None]
    torch.testing.assert_close(o[:, :, -1:], last.flatten(1, 2), rtol=0, atol=1e-12)


def test_each_head_has_its_own_decay_and_grouped_heads_are_copied_heads():
    q, k, v, s, state = make()
    grouped = Lightning(4).attend(q, k, v, s, state=state)
    copied = Lightning(4).attend(q, *(x.repeat_interleave(2, 1) for x in (k, v)), s.repeat_interleave(2),
                                 state=state.repeat_interleave(2, 1))
    close(grouped, (copied.o, copied.state[:, ::2]))
    other = Lightning(4).attend(q, k, v, s + torch.tensor([0.0, 1.0]), state=state)
    assert torch.equal(other.o[:, :2], grouped.o[:, :2]) and (other.o[:, 2:] != grouped.o[:, 2:]).any(-1).all()


def test_wide_heads_may_be_cut_and_their_outputs_added():
    q, k, v, s, _ = make(d=6)
    halves = [Lightning(4).attend(q[..., part], k[..., part], v, s) for part in (slice(0, 2), slice(2, 6))]
    whole = Lightning(4).attend(q, k, v, s)
    close((halves[0].o + halves[1].o, torch.cat([half.state for half in halves], 2)), whole)


def test_cost_by_hand():
    # One head, D = 2, Dv = 3, five tokens in blocks of 2, 2 and 1: inside 2 * (4 + 4 + 1) * (2 + 3) = 90 operations,
    # state read and written 2 * 2 * 5 * 6 = 120: 210. Words: q, k 5 * 2 each, v, o 5 * 3 each, state in and out 12: 62.
    q, k, v, *_ = make(b=1, hq=1, hkv=1, t=5, d=2, dv=3)
    cost = Lightning(2).cost(q, k, v)
    assert (cost["flops"], cost["words"]) == (210, 62)


@pytest.mark.parametrize(("t", "block"), [(1, 4), (11, 4), (12, 4), (11, 64)])
def test_the_cost_is_what_runs(t, block):
    q, k, v, s, _ = make(t=t)
    with FlopCounterMode(display=False) as counter:
        Lightning(block).attend(q, k, v, s)
    assert counter.get_total_flops() == Lightning(block).cost(q, k, v)["flops"]


def test_low_precision_keeps_its_state_in_float32():
    q, k, v, s, _ = make(t=300, d=32, dv=32)
    truth = naive(q, k, v, s)
    single = Lightning().attend(q.float(), k.float(), v.float(), s)
    torch.testing.assert_close(single.o.double(), truth.o, rtol=1e-5, atol=1e-4)
    low = [x.bfloat16() for x in (q, k, v)]
    half = Lightning().attend(*low, s)
    assert half.o.dtype == torch.bfloat16 and half.state.dtype == torch.float32
    torch.testing.assert_close(half.state.double(), naive(*(x.double() for x in low), s).state, rtol=1e-5, atol=1e-4)


def test_slopes_by_hand():
    # Two heads: 2^-4 and 2^-8. First of three layers times 1.00001, second times 0.50001, last times 0.00001.
    for layer, fade in enumerate((1.00001, 0.50001, 0.00001)):
        assert slopes(2, layer, 3).tolist() == pytest.approx([fade / 16, fade / 256], rel=1e-9)
    q, k, v, _, _ = make()
    close(Lightning(4).attend(q, k, v), naive(q, k, v, slopes(2)))


def test_what_cannot_be_computed_is_refused():
    q, k, v, s, state = make()
    attend = Lightning(4).attend
    with pytest.raises(ValueError, match="block must be >= 1"):
        Lightning(0)
    with pytest.raises(ValueError, match="block must be >= 1"):
        lightning_backward(torch.zeros(2, 4, 11, 3), q, k, v, s, block=0)
    for bad in (-s, s * float("nan"), s * float("inf")):
        with pytest.raises(ValueError, match="s must be finite and >= 0"):
            attend(q, k, v, bad)
    with pytest.raises(ValueError, match=r"one decay rate per KV head, shape \(2,\); got \(4,\)"):
        attend(q, k, v, s.repeat(2))
    with pytest.raises(ValueError, match=r"state must have shape .* = \(2, 2, 4, 3\); got \(2, 2, 3, 4\)"):
        attend(q, k, v, s, state=state.transpose(-1, -2))
    with pytest.raises(ValueError, match="dstate must have shape"):
        lightning_backward(torch.zeros(2, 4, 11, 3), q, k, v, s, dstate=state[:1])
    with pytest.raises(ValueError, match="do must have the output's shape"):
        lightning_backward(q, q, k, v, s)
    with pytest.raises(ValueError, match="T = 1 and S = 11. Pass earlier keys as `state`"):
        attend(q[:, :, -1:], k, v, s)
    with pytest.raises(ValueError, match="takes one token; got q of length 11"):
        recurrent_step(q, k, v, s)
    with pytest.raises(ValueError, match="Hq must be a multiple of Hkv"):
        attend(q[:, :3], k, v, s)
    with pytest.raises(ValueError, match="0 <= layer < layers"):
        slopes(4, layer=3, layers=3)
