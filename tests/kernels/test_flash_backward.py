"""The backward kernels equal float64 gradients by the tolerance rule, interpreted on a CPU and compiled on a GPU alike."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.tolerance import assert_within
from tutor import kernels
from tutor.attention.dense import attend
from tutor.attention.methods import flash as reference
from tutor.attention.partial import merge

COVERS = ("attention.flash",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.flash import flash_attention  # noqa: E402
from tutor.kernels.flash_backward import flash_backward, roofline  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#           B Hq Hkv   T    S    D   Dv
SHAPES = [(1, 2, 1, 1, 63, 64, 64),        # a decode step
          (1, 3, 1, 63, 63, 40, 24),       # an odd prefill; D below its tile
          (1, 6, 2, 45, 45, 64, 64),       # three query heads to a KV head, as in the real model
          (2, 4, 2, 17, 50, 80, 80),       # a chunk of a prefill, two texts
          (1, 2, 2, 33, 65, 128, 128),     # one key more than two tiles
          (1, 2, 1, 64, 64, 64, 64),       # whole tiles only
          (1, 2, 1, 50, 19, 16, 32),       # T > S: the first 31 rows see nothing
          (2, 3, 3, 5, 96, 24, 40)]


def make(shape, dtype, seed=0):
    b, hq, hkv, t, s, d, dv = shape
    g = torch.Generator().manual_seed(seed)
    sizes = (hq, t, d), (hkv, s, d), (hkv, s, dv), (hq, t, dv)
    made = [torch.randn(b, *size, generator=g).to(dtype).to(DEVICE) for size in sizes]
    return made, torch.randn(b, hq, t, generator=g).to(DEVICE)


def gradients(q, k, v, do, dlse, dtype, **options):
    """By autograd through dense attention; a row that sees nothing has no gradient."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    part = attend(*inputs, dtype=dtype, **options)
    loss = (part.o * do.to(dtype)).sum()
    if dlse is not None:
        seen = part.lse > float("-inf")
        loss = loss + (part.lse[seen].to(dtype) * dlse[seen].to(dtype)).sum()
    return torch.autograd.grad(loss, inputs)


def check(q, k, v, do, dlse=None, **options):
    tiles = {name: options.pop(name) for name in ("block_m", "block_n") if name in options} or {"block_m": 32, "block_n": 32}
    part = flash_attention(q, k, v, **tiles, **options)
    found = flash_backward(q, k, v, part.o, part.lse, do, dlse, **tiles, **options)
    truth, eager = (gradients(q, k, v, do, dlse, dtype, **options) for dtype in (torch.float64, q.dtype))
    for name, *x in zip("qkv", found, eager, truth):
        assert x[0].dtype == q.dtype
        assert_within(*x, q.dtype, "gradient of " + name)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-Hq{}-Hkv{}-T{}-S{}-D{}-Dv{}".format(*s))
def test_it_equals_float64_gradients(shape, dtype, poison):
    """Outputs are allocated full of NaN, so an entry that the kernel does not write is found."""
    check(*make(shape, dtype)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 16, 16), (1, 4, 1, 7, 1, 80, 16)], ids=["T1-S1", "T7-S1"])
def test_a_single_key_gets_no_gradient_but_for_rounding(shape, dtype, poison):
    """Its weight is 1 whatever its score. dP and D are rounded apart, so their difference is a rounding of their size."""
    (q, k, v, do), _ = make(shape, dtype)
    part = flash_attention(q, k, v)
    found, truth = flash_backward(q, k, v, part.o, part.lse, do), gradients(q, k, v, do, None, torch.float64)
    assert_within(found.v, gradients(q, k, v, do, None, dtype)[2], truth[2], dtype)
    size = float((do.double().abs() @ v.double().abs().transpose(-1, -2)).max() / shape[5] ** 0.5)      # of dP, scaled
    for grad, other in ((found.q, k), (found.k, q)):
        assert float(grad.double().abs().max()) <= 4 * torch.finfo(dtype).eps * size * float(other.double().abs().max())
    assert (truth[0] == 0).all() and (truth[1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_with_a_gradient_of_the_log_sum_exp(dtype, poison):
    for shape in ((1, 4, 2, 19, 45, 64, 32), (1, 2, 1, 30, 19, 16, 16)):
        check(*make(shape, dtype)[0], make(shape, dtype)[1])


def test_without_the_causal_mask_and_with_another_scale(poison):
    check(*make((2, 4, 2, 19, 45, 64, 64), torch.float32)[0], causal=False)
    check(*make((1, 1, 1, 40, 33, 16, 16), torch.float16)[0], causal=False, scale=0.3)


@pytest.mark.parametrize("tiles", [(16, 16), (16, 64), (64, 16)], ids=lambda b: "M{}-N{}".format(*b))
def test_the_tile_sizes_do_not_matter(tiles, poison):
    check(*make((1, 3, 1, 70, 90, 40, 40), torch.float32)[0], block_m=tiles[0], block_n=tiles[1])


def test_non_contiguous_inputs(poison):
    (q, k, v, do), dlse = make((2, 4, 2, 21, 37, 32, 32), torch.float32)
    laid = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, do)]      # (B, T, H, D) in memory
    assert not laid[0].is_contiguous()
    assert all(torch.equal(x, y) for x, y in zip(check(*laid, dlse), check(q, k, v, do, dlse)))
    check(q, k, v, do[:, :, :1].expand(2, 4, 21, 32))                                   # a stride of zero


def test_rows_before_the_first_key_have_no_gradient():
    q, k, v, do = make((1, 2, 1, 9, 4, 16, 16), torch.float32)[0]
    part = flash_attention(q, k, v)
    grads = flash_backward(q, k, v, part.o, part.lse, do)
    assert (grads.q[:, :, :5] == 0).all() and (grads.q[:, :, 6:] != 0).any()
    empty = flash_backward(q, k[:, :, :0], v[:, :, :0], torch.zeros_like(do), part.lse, do)
    assert (empty.q == 0).all() and empty.k.shape == (1, 1, 0, 16)


def test_large_logits_send_no_nan_back():
    q, k, v, do = make((1, 1, 1, 40, 40, 64, 64), torch.float16)[0]
    part = flash_attention(q * 30, k * 30, v)
    assert all(torch.isfinite(x).all() for x in flash_backward(q * 30, k * 30, v, part.o, part.lse, do))


def test_keys_that_are_not_there_do_not_outweigh_very_negative_logits(poison):
    """All logits near -400: a missing key, whose products are 0, would weigh e^400 against them."""
    q, k, v, do = make((1, 2, 1, 20, 35, 16, 16), torch.float32)[0]
    check(q * 0.1 + 10, k * 0.1 - 16, v, do, causal=False)


def test_the_reference_says_the_same_and_twice_gives_the_same_bits():
    (q, k, v, do), dlse = make((1, 6, 2, 37, 50, 64, 64), torch.float32)
    part = flash_attention(q, k, v)
    first, again = (flash_backward(q, k, v, part.o, part.lse, do, dlse) for _ in range(2))
    want = reference.flash_backward(*(x.cpu() for x in (q, k, v, part.o, part.lse, do, dlse)))
    for x, y, z in zip(first, again, want):
        assert torch.equal(x, y)
        torch.testing.assert_close(x.cpu(), z, rtol=0, atol=2e-5)


def test_autograd_reaches_it_through_a_merge():
    q, k, v, do = make((1, 2, 1, 12, 40, 16, 16), torch.float32)[0]
    inputs = [x.requires_grad_() for x in (q, k, v)]
    parts = [flash_attention(q, k[:, :, cut], v[:, :, cut], causal=False) for cut in (slice(0, 15), slice(15, None))]
    found = torch.autograd.grad((merge(*parts).o * do).sum(), inputs)
    truth, eager = (gradients(q, k, v, do, None, dtype, causal=False) for dtype in (torch.float64, torch.float32))
    for name, *x in zip("qkv", found, eager, truth):
        assert_within(*x, torch.float32, "gradient of " + name)
    with torch.no_grad():
        assert not flash_attention(*inputs).o.requires_grad


def test_bad_inputs_are_refused():
    (q, k, v, do), dlse = make((1, 2, 1, 5, 6, 16, 16), torch.float32)
    part = flash_attention(q, k, v)
    for name, given in (("o", (part.o[..., :8], part.lse, do)), ("lse", (part.o, part.lse[:, :1], do)),
                        ("do", (part.o, part.lse, do[:, :, :4])), ("dlse", (part.o, part.lse, do, dlse[0]))):
        with pytest.raises(ValueError, match=f"^{name} must have shape"):
            flash_backward(q, k, v, *given)
    with pytest.raises(ValueError, match="power of two"):
        flash_backward(q, k, v, part.o, part.lse, do, block_n=8)
    with pytest.raises(ValueError, match="one dtype of"):
        flash_backward(q.double(), k.double(), v.double(), part.o, part.lse, do)


def test_the_roofline_by_hand():
    # One head, T = S = 4, D = Dv = 8, causal, bf16: 10 pairs, five products: 2 * 10 * 5 * 8 = 800 operations.
    # q, dq, o, do and k, dk, v, dv: 8 * 4 * 8 = 256 values of 2 bytes = 512; lse: 16 bytes.
    floor = roofline(1, 1, 1, 4, 4, 8)
    assert (floor.flops, floor.bytes) == (800, 528)
    assert roofline(1, 1, 1, 4, 4, 8, causal=False).flops == 1280


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_tuned_block_sizes_on_a_gpu(dtype, poison):
    (q, k, v, do), dlse = make((2, 8, 2, 513, 700, 64, 64), dtype)
    part = flash_attention(q, k, v)
    found = flash_backward(q, k, v, part.o, part.lse, do, dlse)
    truth, eager = (gradients(q, k, v, do, dlse, kind) for kind in (torch.float64, dtype))
    for name, *x in zip("qkv", found, eager, truth):
        assert_within(*x, dtype, "gradient of " + name)
