"""The flash kernel equals float64 attention by the tolerance rule, interpreted on a CPU and compiled on a GPU alike."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.tolerance import assert_partial_within
from tutor import kernels
from tutor.attention.dense import attend
from tutor.attention.methods.flash import Flash

COVERS = ("attention.flash",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.flash import flash_attention, roofline  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#           B Hq Hkv   T    S    D
SHAPES = [(1, 1, 1, 1, 1, 16),         # one query, one key
          (1, 2, 1, 1, 63, 64),        # a decode step
          (1, 3, 1, 63, 63, 40),       # an odd prefill; D below its tile
          (1, 6, 2, 111, 111, 64),     # three query heads to a KV head, as in the real model
          (2, 4, 2, 17, 50, 80),       # a chunk of a prefill, two texts
          (1, 2, 2, 33, 65, 128),      # one key more than two tiles
          (1, 1, 1, 20, 45, 256),      # the widest head
          (2, 6, 2, 31, 32, 16),
          (1, 2, 1, 64, 64, 64),       # whole tiles only
          (1, 2, 1, 50, 19, 64),       # T > S: the first 31 rows see nothing
          (1, 4, 1, 7, 1, 80),         # one key for seven queries
          (3, 1, 1, 5, 96, 40),
          (1, 5, 5, 45, 111, 24)]


def make(shape, dtype, seed=0, dv=None):
    b, hq, hkv, t, s, d = shape
    g = torch.Generator().manual_seed(seed)
    sizes = ((hq, t, d), (hkv, s, d), (hkv, s, dv or d))
    return [torch.randn(b, *size, generator=g).to(dtype).to(DEVICE) for size in sizes]


def check(q, k, v, **options):
    blocks = {name: options.pop(name) for name in ("block_m", "block_n") if name in options}
    part = flash_attention(q, k, v, **options, **(blocks or {"block_m": 32, "block_n": 32}))
    ref, eager = attend(q, k, v, **options), attend(q, k, v, dtype=q.dtype, **options)
    assert_partial_within(part, eager, ref, q.dtype)
    return part


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-Hq{}-Hkv{}-T{}-S{}-D{}".format(*s))
def test_it_equals_float64_attention(shape, dtype, poison):
    """Outputs are allocated full of NaN, so an entry that the kernel does not write is found."""
    check(*make(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_without_the_causal_mask(dtype, poison):
    check(*make((2, 4, 2, 19, 45, 64), dtype), causal=False)
    check(*make((1, 1, 1, 40, 33, 16), dtype), causal=False, scale=0.3)


@pytest.mark.parametrize("blocks", [(16, 16), (16, 64), (64, 16), (64, 32)], ids=lambda b: "M{}-N{}".format(*b))
def test_the_tile_sizes_do_not_matter(blocks, poison):
    check(*make((1, 3, 1, 70, 90, 40), torch.float32), block_m=blocks[0], block_n=blocks[1])


def test_non_contiguous_inputs(poison):
    q, k, v = make((2, 4, 2, 21, 37, 32), torch.float32)
    laid = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]       # (B, T, H, D) in memory
    assert not laid[0].is_contiguous()
    assert torch.equal(check(*laid).o, check(q, k, v).o)
    wide = torch.randn(2, 2, 37, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    check(q, k, wide[..., ::2])                                                      # every second column
    check(q, k[:, :1].expand(2, 2, 37, 32), v)                                       # a stride of zero


def test_values_may_be_of_another_width(poison):
    check(*make((1, 2, 1, 18, 40, 64), torch.float32, dv=24))
    check(*make((1, 2, 1, 18, 40, 24), torch.float16, dv=72))


def test_rows_before_the_first_key_are_zero():
    q, k, v = make((1, 2, 1, 9, 4, 16), torch.float32)
    part = flash_attention(q, k, v, block_m=16, block_n=16)
    assert (part.o[:, :, :5] == 0).all() and (part.lse[:, :, :5] == float("-inf")).all()
    assert (part.o[:, :, 5:] != 0).all() and torch.isfinite(part.lse[:, :, 5:]).all()


def test_no_keys_and_no_queries():
    q, k, v = make((1, 2, 1, 3, 0, 16), torch.float32)
    part = flash_attention(q, k, v)
    assert (part.o == 0).all() and (part.lse == float("-inf")).all()
    q, k, v = make((1, 2, 1, 0, 3, 16), torch.float32)
    assert flash_attention(q, k, v).o.shape == (1, 2, 0, 16)


def test_large_logits_do_not_overflow():
    q, k, v = make((1, 1, 1, 40, 40, 64), torch.float16)
    part = check(q * 30, k * 30, v)
    assert torch.isfinite(part.o).all()


def test_the_reference_method_says_the_same():
    q, k, v = make((1, 6, 2, 37, 50, 64), torch.float32)
    kernel = flash_attention(q, k, v, block_m=16, block_n=32)
    reference = Flash(16, 32).attend(q.cpu(), k.cpu(), v.cpu())
    torch.testing.assert_close(kernel.o.cpu(), reference.o, rtol=0, atol=2e-6)
    torch.testing.assert_close(kernel.lse.cpu(), reference.lse, rtol=0, atol=2e-6)


@pytest.mark.parametrize("change, message", [
    (lambda q, k, v: (q[0], k, v), "four axes"),
    (lambda q, k, v: (q.int(), k, v), "floating point"),
    (lambda q, k, v: (q.double(), k.double(), v.double()), "one dtype of"),
    (lambda q, k, v: (q.half(), k, v), "one dtype of"),
    (lambda q, k, v: (q[:, :3], k, v), "multiple of Hkv"),
    (lambda q, k, v: (q, k[..., :8], v), "head width"),
    (lambda q, k, v: (q, k, v[:, :, :4]), "share batch, heads and length"),
    (lambda q, k, v: (torch.cat([q] * 20, -1), torch.cat([k] * 20, -1), v), "up to 256"),
], ids=["rank", "integer", "float64", "mixed", "groups", "width", "length", "too-wide"])
def test_bad_inputs_are_refused(change, message):
    q, k, v = make((1, 4, 2, 5, 6, 16), torch.float32)
    with pytest.raises(ValueError, match=message):
        flash_attention(*change(q, k, v))


@pytest.mark.parametrize("block", [0, 8, 24])
def test_bad_tiles_are_refused(block):
    with pytest.raises(ValueError, match="power of two"):
        flash_attention(*make((1, 1, 1, 4, 4, 16), torch.float32), block_m=block)


def test_the_roofline_by_hand():
    # One head, T = S = 4, D = Dv = 8, causal, bf16: pairs 1+2+3+4 = 10; two products: 2 * 10 * (8 + 8) = 320.
    # q, o: 4 * 16 values; k, v: 4 * 16 values; 128 values * 2 bytes = 256; lse: 4 rows * 4 bytes = 16.
    floor = roofline(1, 1, 1, 4, 4, 8)
    assert (floor.flops, floor.bytes) == (320, 272)
    assert floor.seconds == max(272 / 3.35e12, 320 / 989e12) and floor.bound_by == "memory"
    assert roofline(1, 32, 8, 16384, 16384, 128).bound_by == "compute"
    assert roofline(1, 32, 8, 1, 16384, 128).bound_by == "memory"
    assert roofline(1, 1, 1, 4, 4, 8, causal=False).flops == 512
    with pytest.raises(ValueError, match="hardware must be one of"):
        roofline(1, 1, 1, 4, 4, 8, on="abacus")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_tuned_block_sizes_on_a_gpu(dtype, poison):
    q, k, v = make((2, 8, 2, 513, 700, 64), dtype)
    part, ref, eager = flash_attention(q, k, v), attend(q, k, v), attend(q, k, v, dtype=dtype)
    assert_partial_within(part, eager, ref, dtype)


def test_the_kernel_refuses_nan_when_asked():
    x = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="k holds NaN or infinity"):
        flash_attention(x, torch.full_like(x, float("nan")), x, check=True)
