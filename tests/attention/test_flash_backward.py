"""Gradients made again from the log-sum-exp are those of dense attention, also through a merge of two parts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.dense import attend
from tutor.attention.methods.flash import Flash, flash_backward
from tutor.attention.partial import Partial, merge

COVERS = ("attention.flash",)


def make(seed=0, b=1, hq=4, hkv=2, t=7, s=11, d=4, dv=3):
    """q, k, v that want gradients, and gradients of the output and of its log-sum-exp."""
    g = torch.Generator().manual_seed(seed)
    sizes = (b, hq, t, d), (b, hkv, s, d), (b, hkv, s, dv), (b, hq, t, dv), (b, hq, t)
    q, k, v, do, dlse = (torch.randn(size, generator=g, dtype=torch.float64) for size in sizes)
    return [x.requires_grad_() for x in (q, k, v)], do, dlse


def by_autograd(qkv, do, dlse=None, **options):
    """Autograd through dense attention; a row that sees nothing has no gradient at all."""
    part = attend(*qkv, **options)
    seen = part.lse > float("-inf")
    loss = (part.o * do).sum() + (0 if dlse is None else (part.lse * dlse)[seen].sum())
    return torch.autograd.grad(loss, qkv)


def by_hand(qkv, do, dlse=None, **options):
    tiles = {name: options.pop(name) for name in ("br", "bc") if name in options}
    with torch.no_grad():
        part = Flash(tiles.get("br", 64), tiles.get("bc", 64)).attend(*qkv, **options)
        return flash_backward(*qkv, part.o, part.lse, do, dlse, **tiles, **options)


def close(found, want, tol=1e-10):
    for x, y in zip(found, want, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tol)


def test_two_keys_by_hand():
    # One query q = 1, keys 0 and log 3, values 4 and 8, scale 1: weights 1/4 and 3/4, o = 1 + 6 = 7, L = log 4.
    # With dO = 1: D = 7; dP = 4, 8; dS = 1/4 (4 - 7), 3/4 (8 - 7) = -3/4, 3/4. dV = 1/4, 3/4.
    # dK = dS q = -3/4, 3/4; dQ = -3/4 * 0 + 3/4 log 3.
    # With dL = 2 as well: D = 5; dS = 1/4 (4 - 5), 3/4 (8 - 5) = -1/4, 9/4; dV is the same.
    q, k, v = (torch.tensor(x, dtype=torch.float64).reshape(1, 1, -1, 1) for x in ([1.0], [0.0, math.log(3)], [4.0, 8.0]))
    part = Flash(1, 1).attend(q, k, v, scale=1.0)
    assert part.o.item() == pytest.approx(7) and part.lse.item() == pytest.approx(math.log(4))
    one, two = torch.ones_like(part.o), torch.full_like(part.lse, 2.0)
    for dlse, ds in ((None, [-0.75, 0.75]), (two, [-0.25, 2.25])):
        dq, dk, dv = flash_backward(q, k, v, part.o, part.lse, one, dlse, br=1, bc=1, scale=1.0)
        assert dv.flatten().tolist() == pytest.approx([0.25, 0.75])
        assert dk.flatten().tolist() == pytest.approx(ds) and dq.item() == pytest.approx(ds[1] * math.log(3))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), t=st.integers(1, 9), s=st.integers(1, 12), br=st.integers(1, 14),
       bc=st.integers(1, 14), hkv=st.sampled_from([1, 2, 4]), causal=st.booleans(), with_lse=st.booleans())
def test_any_tiles_give_the_gradients_of_autograd(seed, t, s, br, bc, hkv, causal, with_lse):
    qkv, do, dlse = make(seed, b=2, hkv=hkv, t=t, s=s)
    dlse = dlse if with_lse else None
    close(by_hand(qkv, do, dlse, br=br, bc=bc, causal=causal, scale=0.7),
          by_autograd(qkv, do, dlse, causal=causal, scale=0.7))


def test_the_gradient_of_one_function_by_finite_differences():
    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            part = Flash(3, 4).attend(q, k, v)
            ctx.save_for_backward(q, k, v, part.o, part.lse)
            return part.o, part.lse

        @staticmethod
        def backward(ctx, do, dlse):
            return tuple(flash_backward(*ctx.saved_tensors, do, dlse, br=3, bc=4))

    qkv, _, _ = make(hq=2, hkv=1, t=4, s=6, d=3, dv=2)
    assert torch.autograd.gradcheck(Attend.apply, qkv)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 10))
def test_through_a_merge_of_two_parts(seed, cut):
    """Keys in two halves, attended apart and joined: each half's gradient needs that of its log-sum-exp."""
    qkv, do, dlse = make(seed, t=11)
    want = by_autograd(qkv, do, dlse, causal=False)
    q, k, v = (x.detach() for x in qkv)
    halves = [(k[:, :, :cut], v[:, :, :cut]), (k[:, :, cut:], v[:, :, cut:])]
    parts = [Flash(4, 3).attend(q, *half, causal=False) for half in halves]
    leaves = [Partial(part.o.requires_grad_(), part.lse.requires_grad_()) for part in parts]
    whole = merge(*leaves)
    sent = torch.autograd.grad((whole.o * do).sum() + (whole.lse * dlse).sum(), [x for p in leaves for x in (p.o, p.lse)])
    found = [flash_backward(q, *half, part.o, part.lse, sent[2 * i], sent[2 * i + 1], br=4, bc=3, causal=False)
             for i, (half, part) in enumerate(zip(halves, leaves))]
    found = [x.detach() if x.requires_grad else x for grads in found for x in grads]
    close((found[0] + found[3], torch.cat([found[1], found[4]], 2), torch.cat([found[2], found[5]], 2)), want)
    without = flash_backward(q, *halves[0], parts[0].o.detach(), parts[0].lse.detach(), sent[0], None, br=4, bc=3, causal=False)
    assert (without.k - want[1][:, :, :cut]).abs().max() > 1e-3          # leaving it out is not a small mistake


def test_rows_that_see_nothing_send_nothing_back():
    qkv, do, _ = make(t=9, s=4)                                      # the first five rows stand before the first key
    grads = by_hand(qkv, do, br=2, bc=3)
    assert all(torch.isfinite(x).all() for x in grads)
    assert (grads.q[:, :, :5] == 0).all() and (grads.q[:, :, 6:] != 0).all()
    close(grads, by_autograd(qkv, do))
    close(by_hand(qkv, do, torch.zeros(1, 4, 9, dtype=torch.float64), br=2, bc=3), grads, 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_a_block_mask_cuts_the_gradients_too(seed, share):
    qkv, do, dlse = make(seed, b=2, t=10, s=13)
    for shape in ((4, 4), (2, 4, 4, 4)):
        blocks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
        wide = blocks.repeat_interleave(3, -2)[..., :10, :].repeat_interleave(4, -1)[..., :13]
        close(by_hand(qkv, do, dlse, br=3, bc=4, block_mask=blocks), by_autograd(qkv, do, dlse, mask=wide))


def test_a_skipped_tile_is_never_touched():
    qkv, do, _ = make(t=8, s=8)
    blocks = torch.ones(2, 2, dtype=torch.bool)
    blocks[:, 1] = False
    q, k, v = (x.detach().clone() for x in qkv)
    part = Flash(4, 4).attend(q, k, v, block_mask=blocks)
    k[:, :, 4:] = v[:, :, 4:] = float("nan")
    grads = flash_backward(q, k, v, part.o, part.lse, do, br=4, bc=4, block_mask=blocks)
    assert all(torch.isfinite(x).all() for x in grads) and (grads.k[:, :, 4:] == 0).all()


def test_twice_gives_the_same_bits(rng):
    q, k, v, do = (torch.randn(1, h, 130, 32, generator=rng) for h in (4, 2, 2, 4))
    part = Flash(32, 16).attend(q, k, v)
    first, again = (flash_backward(q, k, v, part.o, part.lse, do, br=32, bc=16) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, again))


@pytest.mark.parametrize("change, message", [
    (dict(o=slice(0, 3)), "o must have shape"), (dict(do=slice(0, 3)), "do must have shape"),
    (dict(lse=slice(0, 3)), "lse must have shape"), (dict(dlse=slice(0, 3)), "dlse must have shape")])
def test_results_of_another_call_are_refused(change, message):
    qkv, do, dlse = make()
    with torch.no_grad():
        part = Flash(4, 4).attend(*qkv)
        given = {"o": part.o, "lse": part.lse, "do": do, "dlse": dlse}
        given |= {name: given[name][:, :, rows] for name, rows in change.items()}
        with pytest.raises(ValueError, match=message):
            flash_backward(*qkv, **given)
        with pytest.raises(ValueError, match="br must be >= 1"):
            flash_backward(*qkv, part.o, part.lse, do, br=0)
