"""The kernel of HyperAttention equals the float64 reference on the same permutation and sample, by the tolerance rule."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.tolerance import assert_partial_within
from tutor import kernels
from tutor.attention.dense import attend
from tutor.attention.methods.hyper import Drawn, Hyper, Sorted

COVERS = ("attention.hyper",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.hyper import hyper_attention, hyper_step, roofline  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#           B Hq Hkv  T    S    D   block samples
SHAPES = [(1, 1, 1, 1, 1, 16, 4, 2),           # one query, one key: every draw lies in its block
          (1, 2, 1, 1, 63, 64, 20, 7),         # one query meets one block of three
          (1, 3, 1, 63, 63, 40, 16, 5),        # a short last block; D below its tile
          (1, 6, 2, 90, 90, 64, 33, 40),       # blocks over two tiles, samples over two; three query heads to a KV head
          (2, 4, 2, 17, 50, 80, 32, 9),        # fewer queries than keys, two texts
          (1, 2, 2, 65, 33, 128, 11, 3),       # more queries than keys
          (1, 2, 1, 64, 64, 16, 32, 32),       # whole tiles only
          (1, 1, 1, 20, 45, 256, 64, 4),       # the widest head, one block
          (1, 2, 1, 5, 70, 24, 8, 6)]          # more blocks of keys than queries
METHOD = Hyper(3, block=16, samples=12, min_len=20)


def make(shape, dtype, seed=0, dv=None):
    b, hq, hkv, t, s, d = shape
    g = torch.Generator().manual_seed(seed)
    sizes = ((hq, t, d), (hkv, s, d), (hkv, s, dv or d))
    return [torch.randn(b, *size, generator=g).to(dtype).to(DEVICE) for size in sizes]


def prepare(q, k, v, method):
    planes, draw = method.start(q)
    order = method.sort(q, k, planes)
    return order, method.draw(v, order, draw)


def check(q, k, v, method, order=None, drawn=None, *, scale=None, **blocks):
    """The step against the reference in float64, given one permutation and one sample."""
    if order is None:
        order, drawn = prepare(q, k, v, method)
    part = hyper_step(q, k, v, order, drawn, scale=scale, **blocks)
    scale = q.shape[-1]**-0.5 if scale is None else scale
    truth = method.step(q.double(), k.double(), v.double(), order, drawn, scale=scale)
    eager = method.step(q, k, v, order, drawn, scale=scale)
    assert_partial_within(part, eager, truth, q.dtype)
    return part


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-Hq{}-Hkv{}-T{}-S{}-D{}-block{}-samples{}".format(*s))
def test_a_step_equals_the_reference(shape, dtype, poison):
    *sizes, block, samples = shape
    check(*make(sizes, dtype), Hyper(3, block=block, samples=samples))


def test_a_step_by_hand(poison):
    """Two blocks of one key; both samples drawn lie once inside and once outside each query's block."""
    # q = 1, -1 and keys log 4, -log 2, as in the test of the reference; the sorted order is (1, 0) on both sides.
    # Places 0 and 1 of the sorted keys are keys 1 and 0; each stands for S/m = 1 key, weight log 1 = 0.
    # Query 0 reads its key 0 (weight 4) and, of the sample, key 1 (1/2): denominator 4.5, value (4*3 + 0.5*8) / 4.5.
    # Query 1 reads its key 1 (weight 2) and key 0 (1/4): 2.25, value (2*8 + 0.25*3) / 2.25: both are exact.
    log = lambda x: float(torch.tensor(x).log())
    q, k, v = (torch.tensor(x, device=DEVICE).reshape(1, 1, 2, 1) for x in ([1.0, -1.0], [log(4.0), -log(2.0)], [3.0, 8.0]))
    back = torch.tensor([[[1, 0]]], device=DEVICE)
    order = Sorted(back, back, back, back, 1, 1)
    drawn = Drawn(torch.tensor([[[0, 1]]], device=DEVICE), torch.zeros(1, 1, 2, device=DEVICE))
    part = hyper_step(q, k, v, order, drawn, scale=1.0)
    torch.testing.assert_close(part.lse.exp().flatten().cpu(), torch.tensor([4.5, 2.25]))
    torch.testing.assert_close(part.o.flatten().cpu(), torch.tensor([16 / 4.5, 16.75 / 2.25]))
    doubled = hyper_step(q, k, v, order, drawn._replace(weight=drawn.weight + log(2.0)), scale=1.0)
    torch.testing.assert_close(doubled.lse.exp().flatten().cpu(), torch.tensor([5.0, 2.5]))


def test_other_tiles_widths_scales_and_strides(poison):
    q, k, v = make((1, 4, 2, 50, 70, 32), torch.float32, dv=24)
    method = Hyper(3, block=30, samples=25)
    for blocks in ({"block_m": 16, "block_n": 64}, {"block_m": 64, "block_n": 16}):
        check(q, k, v, method, scale=0.3, **blocks)
    laid = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]       # (B, T, H, D) in memory
    assert torch.equal(check(*laid, method).o, check(q, k, v, method).o)


def test_no_samples_and_value_norms(poison):
    q, k, v = make((1, 2, 1, 40, 60, 16), torch.float32)
    order, _ = prepare(q, k, v, METHOD)
    part = hyper_step(q, k, v, order, None)
    truth = attend(q, k, v, causal=False, mask=order.together())
    torch.testing.assert_close(part.o.double(), truth.o, rtol=0, atol=2e-6)
    check(q, k, v, Hyper(3, block=16, samples=12, sampling="vnorm"))


def test_a_block_of_all_keys_is_dense_and_its_sample_counts_nothing(poison):
    q, k, v = make((1, 2, 1, 40, 60, 16), torch.float32)
    part = check(q, k, v, Hyper(3, block=60, samples=50))
    torch.testing.assert_close(part.o.double(), attend(q, k, v, causal=False).o, rtol=0, atol=2e-6)


def test_large_logits_do_not_overflow():
    q, k, v = make((1, 1, 1, 40, 40, 64), torch.float16)
    assert torch.isfinite(check(q * 30, k * 30, v, METHOD).o).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("t", "s", "method", "causal"), [
    (75, 75, METHOD, True), (33, 70, METHOD, True), (60, 60, METHOD, False), (50, 33, METHOD, True),
    (75, 75, Hyper(3, block=16, samples=12, min_len=20, sinks=5), True), (30, 30, Hyper(), True),
], ids=["odd", "chunk", "whole", "rows-without-keys", "sinks", "short"])
def test_the_recursion_equals_the_reference(t, s, method, causal, dtype, poison):
    q, k, v = make((1, 4, 2, t, s, 32), dtype)
    part = hyper_attention(q, k, v, method=method, causal=causal, block_m=32, block_n=32)
    rounded = [x.float() for x in (q, k, v)]
    truth = method.attend(*(x.double() for x in rounded), causal=causal)
    # In half precision the reference computes in float32; what plain torch loses there is the rounding of each piece.
    eager = method.attend(q, k, v, causal=causal)
    assert_partial_within(part, eager, truth, dtype)


def test_one_generator_one_result():
    q, k, v = make((1, 2, 1, 60, 60, 16), torch.float32)
    draw = lambda seed: hyper_attention(q, k, v, method=METHOD, generator=torch.Generator().manual_seed(seed)).o
    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
    assert torch.equal(draw(0), hyper_attention(q, k, v, method=METHOD).o)           # the method's own seed is 0


def test_nothing_to_read_and_nobody_to_read_it(poison):
    for t, s in ((3, 0), (0, 3)):
        q, k, v = make((1, 2, 1, t, s, 16), torch.float32)
        for causal in (True, False):
            part = hyper_attention(q, k, v, method=METHOD, causal=causal)
            assert part.o.shape == (1, 2, t, 16) and (part.o == 0).all() and (part.lse == float("-inf")).all()
        order = METHOD.sort(q, k, METHOD.start(q)[0])
        part = hyper_step(q, k, v, order, None)
        assert (part.o == 0).all() and (part.lse == float("-inf")).all()


def test_bad_inputs_are_refused():
    q, k, v = make((1, 2, 1, 20, 20, 16), torch.float32)
    order, drawn = prepare(q, k, v, METHOD)
    with pytest.raises(ValueError, match=r"order was made for queries \(1, 2, 20\)"):
        hyper_step(q[:, :, :9], k, v, order, drawn)
    with pytest.raises(ValueError, match="drawn needs place and weight"):
        hyper_step(q, k, v, order, drawn._replace(weight=drawn.weight[..., :3]))
    with pytest.raises(ValueError, match="the last queries would meet no keys"):
        hyper_step(q, k, v, order._replace(bq=3), drawn)
    with pytest.raises(ValueError, match="power of two"):
        hyper_step(q, k, v, order, drawn, block_n=24)
    with pytest.raises(ValueError, match="one dtype of"):
        hyper_attention(q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match="q holds NaN"):
        hyper_attention(q * float("nan"), k, v, check=True)
    with pytest.raises(ValueError, match="the kernel has no backward"):
        hyper_attention(q.requires_grad_(), k, v, method=METHOD)


def test_the_roofline_by_hand():
    # T = S = 6, blocks of 4 keys: 2 blocks, 3 queries each; keys 4 and 2. Pairs: 3*4 + 3*2 + 6 rows * 5 samples = 48.
    # D = Dv = 8: 2 * 48 * 16 = 1536 operations. bf16: q, o, k, v 4 * 6 * 8 * 2 = 384 bytes; lse 24; orders 8 * 12 = 96;
    # samples 12 * 5 = 60. Without a cache each block gathers its keys and the sample: (4 + 5) + (2 + 5) = 16 rows.
    method = Hyper(block=4, samples=5)
    floor = roofline(1, 1, 1, 6, 6, 8, method=method)
    assert (floor.flops, floor.bytes) == (1536, 384 + 24 + 96 + 60)
    assert roofline(1, 1, 1, 6, 6, 8, method=method, cached=False).bytes == 192 + 16 * 16 * 2 + 24 + 96 + 60
    counted = Hyper(block=4, samples=5, min_len=1).cost(*make((1, 1, 1, 6, 6, 8), torch.float32), causal=False)
    assert floor.flops == 2 * 16 * counted["loaded"]
