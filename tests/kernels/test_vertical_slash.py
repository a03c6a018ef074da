"""The vertical-slash kernel equals float64 attention over the keys that the reference reads, by the tolerance rule."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.tolerance import assert_partial_within
from tutor import kernels
from tutor.attention.dense import attend, causal_mask
from tutor.attention.methods.vertical_slash import Plan, VerticalSlash

COVERS = ("attention.vertical_slash",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.vertical_slash import roofline, vertical_slash_attention  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#           B Hq Hkv   T    S    D
SHAPES = [(1, 1, 1, 1, 1, 16),         # one query, one key
          (1, 2, 1, 1, 63, 64),        # a decode step
          (1, 3, 1, 63, 63, 40),       # an odd prefill; D below its tile
          (1, 6, 2, 111, 111, 64),     # three query heads to a KV head, as in the real model
          (2, 4, 2, 17, 90, 80),       # a chunk of a prefill, two texts
          (1, 2, 2, 33, 65, 128),
          (1, 2, 1, 96, 96, 16),       # whole tiles only
          (1, 2, 1, 50, 19, 64),       # T > S: the first 31 rows see nothing
          (1, 1, 1, 20, 45, 256)]      # the widest head
METHOD = VerticalSlash(k_v=7, k_s=5, tile=16, last_q=10, sinks=2, near=1)


def make(shape, dtype, seed=0, dv=None):
    b, hq, hkv, t, s, d = shape
    g = torch.Generator().manual_seed(seed)
    sizes = ((hq, t, d), (hkv, s, d), (hkv, s, dv or d))
    return [torch.randn(b, *size, generator=g).to(dtype).to(DEVICE) for size in sizes]


def check(q, k, v, method=METHOD, **options):
    """Against dense float64 attention under the mask of the plan."""
    todo = method.plan(q.cpu(), k.cpu())
    part = vertical_slash_attention(q, k, v, todo=todo, **options)
    mask = todo.mask(q.shape[2], k.shape[2]).to(q.device)
    ref, eager = attend(q, k, v, mask=mask, **options), attend(q, k, v, mask=mask, dtype=q.dtype, **options)
    assert_partial_within(part, eager, ref, q.dtype)
    return part


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-Hq{}-Hkv{}-T{}-S{}-D{}".format(*s))
def test_it_equals_float64_attention_over_the_plan(shape, dtype, poison):
    check(*make(shape, dtype))


@pytest.mark.parametrize("method", [
    VerticalSlash(40, 1, 16, near=1), VerticalSlash(1, 40, 16, near=1), VerticalSlash(200, 200, 16), VerticalSlash(20, 3, 32),
], ids=["many-columns", "many-slashes", "everything", "larger-tiles"])
def test_other_budgets(method, poison):
    check(*make((1, 2, 1, 90, 90, 32), torch.float32), method)


def test_a_whole_budget_is_dense(poison):
    q, k, v = make((1, 4, 2, 40, 70, 64), torch.float32)
    part, truth = vertical_slash_attention(q, k, v, k_v=70, k_s=1, tile=16), attend(q, k, v)
    torch.testing.assert_close(part.o.double(), truth.o, rtol=0, atol=2e-6)
    torch.testing.assert_close(part.lse.double(), truth.lse, rtol=0, atol=2e-6)


def test_a_plan_made_by_hand(poison):
    """Row p reads keys 3..18 as a tile and 0, 30, 31 as columns, each cut at p; rows 0..2 have only key 0."""
    q, k, v = make((1, 1, 1, 40, 40, 16), torch.float32)
    starts = torch.tensor([3, 3, 3], dtype=torch.int32).reshape(1, 1, 3, 1)
    columns = torch.tensor([[0, 30, 31]] * 3, dtype=torch.int32).reshape(1, 1, 3, 3)
    part = vertical_slash_attention(q, k, v, todo=Plan(16, starts, columns))
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    mask[..., [0, *range(3, 19), 30, 31]] = True
    truth = attend(q, k, v, mask=mask.to(q.device))
    torch.testing.assert_close(part.o.double(), truth.o, rtol=0, atol=2e-6)
    assert (part.o[0, 0, :3] == v[0, 0, 0]).all()


def test_an_empty_plan_gives_zeros(poison):
    q, k, v = make((1, 1, 1, 20, 20, 16), torch.float32)
    nothing = torch.full((1, 1, 2, 0), -1, dtype=torch.int32)
    part = vertical_slash_attention(q, k, v, todo=Plan(16, nothing, nothing))
    assert (part.o == 0).all() and (part.lse == float("-inf")).all()
    q, k, v = make((1, 2, 1, 3, 0, 16), torch.float32)
    assert (vertical_slash_attention(q, k, v).o == 0).all()
    q, k, v = make((1, 2, 1, 0, 3, 16), torch.float32)
    assert vertical_slash_attention(q, k, v).o.shape == (1, 2, 0, 16)


def test_non_contiguous_inputs_scale_and_value_width(poison):
    q, k, v = make((2, 4, 2, 21, 37, 32), torch.float32)
    laid = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]       # (B, T, H, D) in memory
    assert torch.equal(check(*laid, scale=0.3).o, check(q, k, v, scale=0.3).o)
    check(*make((1, 2, 1, 18, 40, 64), torch.float32, dv=24))


def test_large_logits_do_not_overflow():
    q, k, v = make((1, 1, 1, 40, 40, 64), torch.float16)
    assert torch.isfinite(check(q * 30, k * 30, v).o).all()


def test_bad_inputs_are_refused():
    q, k, v = make((1, 2, 1, 20, 20, 16), torch.float32)
    for change, message in ((dict(tile=24), "power of two"), (dict(k_v=0), "k_v must be >= 1"),
                            (dict(todo=METHOD.plan(q[:, :1].cpu(), k.cpu())), "the plan was made for")):
        with pytest.raises(ValueError, match=message):
            vertical_slash_attention(q, k, v, **change)
    with pytest.raises(ValueError, match="one dtype of"):
        vertical_slash_attention(q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match="q holds NaN"):
        vertical_slash_attention(q * float("nan"), k, v, check=True)


def test_the_roofline_by_hand():
    # One head, two query blocks of 16: one tile and one column in the first, two tiles in the second; D = Dv = 8, bf16.
    # Tiles run: 1 + 1 chunk + 2 = 4; operations 4 * 2 * 16 * 16 * (8 + 8) = 32768.
    # q and o: 32 rows * 16 * 2 = 1024 bytes; lse 128; lists 4 * (4 + 2 + 2 * 2) = 40; k and v once: 32 * 16 * 2 = 1024.
    starts = torch.tensor([[0, -1], [0, 16]], dtype=torch.int32).reshape(1, 1, 2, 2)
    todo = Plan(16, starts, torch.tensor([5, -1], dtype=torch.int32).reshape(1, 1, 2, 1))
    floor = roofline(todo, 1, 32, 32, 8)
    assert (floor.flops, floor.bytes) == (32768, 1024 + 128 + 40 + 1024)
    assert roofline(todo, 1, 32, 32, 8, cached=False).bytes == 1024 + 128 + 40 + (3 * 16 + 1) * 16 * 2
    assert causal_mask(torch.arange(32), 32).sum() * 2 * 16 < floor.flops      # whole tiles cost more than the pairs in them
