"""The merge form is the formula; summaries add; nothing overflows; a fit is better than a sum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.museum.attention.ntk import undivided
from tutor.attention.dense import attend, causal_pairs, logits, positions
from tutor.attention.methods.ntk import NTK, Summary, fit, log_elu, ntk_attend, read, summarise
from tutor.attention.partial import merge

COVERS = ("attention.ntk",)


def make(seed=0, b=2, hq=4, hkv=2, t=7, s=9, d=4, dv=3):
    g = torch.Generator().manual_seed(seed)
    sizes = (hq, t, d), (hkv, s, d), (hkv, s, dv)
    return [torch.randn(b, h, n, w, generator=g, dtype=torch.float64) for h, n, w in sizes]


def close(part, want, tol=1e-12):
    torch.testing.assert_close(part.o, want.o, rtol=0, atol=tol)
    torch.testing.assert_close(part.lse, want.lse, rtol=0, atol=tol)


def test_by_hand():
    # Width 1. Prefix keys 0 and 1, values 2 and 5: phi = elu + 1 = 1 and 2, so Z = 1*2 + 2*5 = 12, z = 3.
    # Query 1: phi = 2: prefix numerator 24, denominator 6. Own key log 4 -> weight 4, value 9: (36 + 24) / (4 + 6) = 6.
    # Query -log 2: phi = elu(-log 2) + 1 = 1/2: numerator 6, denominator 1.5; own weight e^{-log 2 log 4}.
    as_rows = lambda *x: torch.tensor(x, dtype=torch.float64).reshape(1, 1, -1, 1)
    summary = summarise(as_rows(0, 1), as_rows(2, 5), scale=1.0)
    assert (summary.z * summary.shift.exp()).item() == pytest.approx(12)
    assert (summary.k * summary.shift.exp()).item() == pytest.approx(3)
    q, k, v = as_rows(1, -math.log(2)), as_rows(math.log(4)), as_rows(9)
    part = ntk_attend(q, k, v, summary, causal=False, scale=1.0)
    own = math.exp(-math.log(2) * math.log(4))
    assert part.o.flatten().tolist() == pytest.approx([6, (9 * own + 6) / (own + 1.5)])
    assert part.lse.exp().flatten().tolist() == pytest.approx([10, own + 1.5])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), m=st.integers(0, 6), t=st.integers(1, 6), s=st.integers(1, 6), features=st.integers(0, 5),
       causal=st.booleans())
def test_the_merge_is_the_formula(seed, m, t, s, features, causal):
    q, k, v = make(seed, t=t, s=s)
    kp, vp = make(seed + 1, s=m)[1:]
    phi = NTK(features=features).phi(4)
    found = ntk_attend(q, k, v, summarise(kp, vp, phi), phi, causal=causal)
    fq, fk = (phi(x / 4**0.25).exp() for x in (q, kp.repeat_interleave(2, 1)))               # scale 1/2 = (1 / 4^{1/4})^2
    weights = torch.exp(logits(q, k, causal=causal))
    far = fq @ fk.transpose(-1, -2)                                                          # (B, Hq, T, m)
    total = weights.sum(-1) + far.sum(-1)
    o = (weights @ v.repeat_interleave(2, 1) + far @ vp.repeat_interleave(2, 1)) / torch.where(total > 0, total, 1)[..., None]
    torch.testing.assert_close(found.o, o, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.lse, total.log(), rtol=0, atol=1e-12)


def test_no_prefix_is_plain_attention():
    q, k, v = make()
    zeros = Summary(torch.zeros(2, 2, 4, 3).double(), torch.zeros(2, 2, 4).double(), torch.zeros(2, 2).double())
    assert (read(q, zeros).lse == float("-inf")).all() and (read(q, zeros).o == 0).all()
    for summary in (zeros, summarise(k[:, :, :0], v[:, :, :0])):
        close(ntk_attend(q, k, v, summary), attend(q, k, v))
    close(NTK(prefix=0).attend(q, k, v), attend(q, k, v))


@pytest.mark.parametrize("features", [0, 6])
def test_prefixes_one_after_the_other_add(features):
    q, k, v = make(s=9)
    phi = NTK(features=features).phi(4)
    first, second = summarise(k[:, :, :4], v[:, :, :4], phi), summarise(1.5 * k[:, :, 4:], v[:, :, 4:], phi)
    both = summarise(torch.cat([k[:, :, :4], 1.5 * k[:, :, 4:]], 2), v, phi)
    close(read(q, first + second, phi), read(q, both, phi))
    close(read(q, first + second, phi), merge(read(q, first, phi), read(q, second, phi)))


@pytest.mark.parametrize("features", [0, 8])
def test_logits_of_a_thousand_stay_finite(features):
    q, k, v = (x.float() for x in make(b=1))
    big = [60 * q / q.norm(dim=-1, keepdim=True), 60 * k / k.norm(dim=-1, keepdim=True)]
    assert float(logits(*big, causal=False).max()) > 1000
    part = NTK(prefix=4, features=features).attend(*big, v)
    assert part.o.isfinite().all() and part.lse.isfinite().all()
    phi = NTK(features=features).phi(4)
    far = read(big[0], summarise(big[1], v, phi), phi)             # log features reach -900: e to them is 0 in float32
    assert far.o.isfinite().all() and far.lse.isfinite().all()


def test_the_formula_of_the_demo_overflows_where_the_merge_does_not():
    q, k, v = (x.float() for x in make())
    kp, vp = k[:, :, :3] + 0.5, v[:, :, :3]
    torch.testing.assert_close(undivided(q, k, v, kp, vp), ntk_attend(q, k, v, summarise(kp, vp)).o, rtol=1e-4, atol=1e-5)
    assert undivided(100 * q, k, v, kp, vp).isnan().any()
    assert ntk_attend(100 * q, k, v, summarise(kp, vp)).o.isfinite().all()


def test_rows_of_the_prefix_are_exact_and_later_rows_meet_the_summary():
    q, k, v = make(t=9, s=9)
    part, truth = NTK(prefix=5).attend(q, k, v), attend(q, k, v)
    torch.testing.assert_close(part.o[:, :, :5], truth.o[:, :, :5], rtol=0, atol=1e-12)
    assert ((part.o - truth.o)[:, :, 5:].abs().amax(-1) > 1e-6).all()
    direct = ntk_attend(q[:, :, 5:], k[:, :, 5:], v[:, :, 5:], summarise(k[:, :, :5], v[:, :, :5]))
    torch.testing.assert_close(part.o[:, :, 5:], direct.o, rtol=0, atol=1e-12)
    last = NTK(prefix=5).attend(q[:, :, -1:], k, v)
    torch.testing.assert_close(last.o, part.o[:, :, -1:], rtol=0, atol=1e-12)
    some = NTK(prefix=5).attend(q[:, :, [2, 7]], k, v, pos_q=torch.tensor([2, 7]))
    torch.testing.assert_close(some.o, part.o[:, :, [2, 7]], rtol=0, atol=1e-12)
    none = NTK(prefix=5).attend(q, k[:, :, :6], v[:, :, :6])              # three rows see nothing
    assert (none.lse[:, :, :3] == float("-inf")).all() and none.lse[:, :, 3:].isfinite().all()


def test_random_features_approach_the_prefix():
    q, k, v = (0.5 * x for x in make(s=6))
    truth = attend(q, k, v, causal=False)
    worst = []
    for m in (16, 65536):
        phi = NTK(features=m).phi(4)
        worst.append(float((read(q, summarise(k, v, phi), phi).lse - truth.lse).abs().max()))
    assert worst[1] < 0.02 < worst[0]


def test_a_fit_beats_the_sum_on_queries_it_has_not_seen():
    # Learned on 300 queries, judged on 100 others: 8 features can say little of 8 keys, but the weight they can.
    q, k, v = make(3, b=1, t=400, s=8, d=8)
    seen, fresh = q[:, :, :300], q[:, :, 300:]
    truth = attend(fresh, k, v, causal=False)
    error = {name: float((read(fresh, summary).o - truth.o).norm() / truth.o.norm())
             for name, summary in (("sum", summarise(k, v)), ("fit", fit(seen, k, v)))}
    weight = {name: float((read(fresh, summary).lse - truth.lse).abs().mean())
              for name, summary in (("sum", summarise(k, v)), ("fit", fit(seen, k, v)))}
    assert error["fit"] < 0.85 * error["sum"] and weight["fit"] < 0.5 * weight["sum"], (error, weight)
    fitted = fit(seen, k, v)
    assert (fitted.k >= 0).all() and fitted.z.shape == (1, 2, 8, 3)


def test_cost_by_hand():
    # One head, width 2: 6 rows, prefix 4. Early rows read 1+2+3+4, late rows 1+2 own keys: 13 of 21 pairs.
    q, k, v = make(b=1, hq=1, hkv=1, t=6, s=6, d=2, dv=3)
    cost = NTK(prefix=4).cost(q, k, v)
    assert (cost["loaded"], cost["pairs"], cost["scored"], cost["state_bytes"]) == (13, 21, 0, 4 * 2 * 4)
    assert NTK(prefix=4, features=5).cost(q, k, v)["scored"] == 5 * (6 + 4)
    assert NTK(prefix=4000).cost(q, k, v)["loaded"] == causal_pairs(positions(q, k), 6)


def test_half_precision_comes_back():
    q, k, v = make()
    part = NTK(prefix=4).attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert part.o.dtype == torch.bfloat16 and part.lse.dtype == torch.float32
    assert torch.allclose(log_elu(torch.tensor([-2.0, 0.0, 3.0])).exp(), torch.tensor([math.exp(-2), 1.0, 4.0]))


def test_a_summary_can_be_trained():
    q, k, v = make(b=1, t=3, s=3)
    start = summarise(*make(1, b=1, s=4)[1:])
    loss = lambda q, z, w, shift: torch.cat([x.flatten() for x in vars(ntk_attend(q, k, v, Summary(z, w.abs(), shift))).values()])
    leaves = [x.clone().requires_grad_() for x in (q, start.z, start.k - 1, start.shift)]           # |k|, as in the paper's code
    assert torch.autograd.gradcheck(loss, leaves)


def test_gradients_reach_prefixes_through_the_model():
    """Prefix tuning of a tiny model: batches change nothing, and a few steps lower the loss."""
    from tutor.attention import prefix_tuning as tuning
    from tutor.model.llama import tiny_llama

    model, g = tiny_llama(dtype=torch.float32), torch.Generator().manual_seed(0)
    examples = [(torch.randint(97, (n,), generator=g), start) for n, start in ((9, 4), (6, 2), (8, 5))]
    task = tuning.Task(model, examples, range(1, 2))
    alone = [model.nll(ids[None])[0, start - 1:] for ids, start in examples]                           # each without padding
    total, words = task.loss(range(3))
    assert words == sum(map(len, alone)) == 5 + 4 + 3
    assert total.item() == pytest.approx(float(torch.cat(alone).sum()), rel=1e-5)
    assert task.judge() == pytest.approx(total.item() / 12, rel=1e-6)

    begun = tuning.started(model, examples, range(1, 2), 5)
    text = torch.cat([ids for ids, _ in examples])[None]
    seen = model.forward(text[:, :5], collect=("k",), logits="none").collected["k"][1]
    for form, floats in (("5 rows", 2 * 5 * 2 * 16), ("matrix", 2 * (16 * 16 + 16))):                  # one layer, two KV heads
        far = tuning.made(form, begun)
        assert sum(x.numel() for x in far.parameters()) == floats
        if form == "5 rows":
            torch.testing.assert_close(far.rows[1][0], seen, rtol=1e-4, atol=1e-5)
        before = task.judge(far)
        losses = tuning.train(task, far, 0.03, 12, 0)
        assert task.judge(far) < before - 0.05 and len(losses) == 12, form
        assert all(x.grad.abs().max() > 0 for x in far.parameters())
        again = tuning.made(form, begun)
        assert tuning.train(task, again, 0.03, 12, 0) == losses                               # the same for the same seed


def test_a_telegram_leaves_words_out():
    from tutor.attention.prefix_tuning import telegram

    assert telegram("The list of names, if any, is sorted.") == "list of names if any sorted STOP"
    assert telegram("Return True.") == "return True STOP" and telegram("It is.") == "STOP"


def test_what_cannot_be_computed_is_refused():
    q, k, v = make()
    good = summarise(k, v)
    with pytest.raises(ValueError, match="k must not be negative"):
        Summary(good.z, good.k - 100, good.shift)
    with pytest.raises(ValueError, match="disagree"):
        Summary(good.z[..., :2, :], good.k, good.shift)
    with pytest.raises(ValueError, match="prefix must be >= 0"):
        NTK(prefix=-1)
    with pytest.raises(ValueError, match="features must be >= 0"):
        NTK(features=-1)
    with pytest.raises(ValueError, match="scale must be > 0"):
        summarise(k, v, scale=-1.0)
    with pytest.raises(ValueError, match="phi gives 6 features, the summary has 4"):
        read(q, good, NTK(features=6).phi(4))
    with pytest.raises(ValueError, match="does not fit 3 query heads"):
        read(q[:, :3], good)
    with pytest.raises(ValueError, match="ridge must be >= 0"):
        fit(q, k, v, ridge=-1)
    with pytest.raises(ValueError, match="Hq must be a multiple of Hkv"):
        NTK().attend(q[:, :3], k, v)
