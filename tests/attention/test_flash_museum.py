"""The museum's pieces are wrong, each in the way it says, and right where it says: lessons 02 and 03 show them."""

from __future__ import annotations

import torch

from tests.museum.attention.flash import average_outputs, gradients_without_lse, merge_without_guard, softmax_as_written
from tutor.attention.dense import attend
from tutor.attention.methods.flash import Flash, flash_backward
from tutor.attention.partial import Partial, from_logits, merge

COVERS = ("attention.flash",)


def parts(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [from_logits(torch.randn(1, 1, 3, n, generator=g, dtype=torch.float64) * spread,
                        torch.randn(1, 1, n, 2, generator=g, dtype=torch.float64)) for n, spread in ((4, 1), (9, 3))]


def test_averaged_outputs_are_right_only_for_equal_weights():
    a, b = parts()
    assert (average_outputs(a, b).o - merge(a, b).o).abs().max() > 0.1
    level = Partial(b.o, a.lse)
    torch.testing.assert_close(average_outputs(a, level).o, merge(a, level).o)


def test_without_the_guard_an_empty_row_is_nan():
    a, b = parts()
    torch.testing.assert_close(merge_without_guard(a, b).o, merge(a, b).o)
    nothing = Partial(torch.zeros_like(a.o), torch.full_like(a.lse, float("-inf")))
    assert merge_without_guard(nothing, nothing).o.isnan().all() and (merge(nothing, nothing).o == 0).all()


def test_the_textbook_softmax_overflows_where_the_online_one_does_not():
    logits = torch.tensor([[0.0, 50.0, 100.0]], dtype=torch.float16)
    v = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float16)
    assert softmax_as_written(logits, v).isnan().all() and from_logits(logits, v).o.item() == 4
    torch.testing.assert_close(softmax_as_written(logits / 50, v), from_logits(logits / 50, v).o, rtol=0, atol=0.01)


def test_a_part_needs_the_gradient_of_its_log_sum_exp():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 2, generator=g, dtype=torch.float64) for n in (3, 8, 8))
    a = Flash(2, 2).attend(q, k[:, :, :4], v[:, :, :4], causal=False)
    b = attend(q, k[:, :, 4:], v[:, :, 4:], causal=False)
    share = torch.exp(a.lse - merge(a, b).lse)
    do = torch.ones_like(a.o)
    sent, dlse = share[..., None] * do, share * ((a.o - merge(a, b).o) * do).sum(-1)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    want = torch.autograd.grad((attend(*inputs, causal=False).o * do).sum(), inputs)
    given = q, k[:, :, :4], v[:, :, :4], a.o, a.lse, sent, dlse
    right, wrong = flash_backward(*given, causal=False), gradients_without_lse(*given, causal=False)
    torch.testing.assert_close(right.k, want[1][:, :, :4])
    torch.testing.assert_close(wrong.v, want[2][:, :, :4])                 # values are right all the same
    assert (wrong.k - want[1][:, :, :4]).abs().max() > 1e-3
