"""The prefix kernel equals float64 attention merged with the summary; as flash, it runs interpreted and compiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.tolerance import assert_partial_within
from tutor import kernels
from tutor.attention.dense import attend
from tutor.attention.methods.ntk import NTK, Summary, log_elu, ntk_attend, read, summarise

COVERS = ("attention.ntk",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels import flash  # noqa: E402
from tutor.kernels.prefix import prefix_attention, roofline  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#           B Hq Hkv H    T    S    D   M      H: heads of the summary
SHAPES = [(1, 1, 1, 1, 1, 1, 16, 1),           # one query, one key, a prefix of one row
          (1, 3, 1, 1, 1, 63, 64, 40),         # a decode step of a group of three
          (1, 3, 1, 3, 33, 33, 40, 9),         # a summary per query head; D below its tile
          (2, 4, 2, 2, 17, 50, 80, 100),       # a chunk of a prefill, two texts; more than one slice of features
          (1, 2, 2, 1, 33, 65, 24, 300),       # one summary for all heads
          (1, 1, 1, 1, 20, 45, 256, 12),       # the widest head: four slices
          (2, 6, 2, 6, 31, 32, 16, 5),
          (1, 2, 1, 1, 50, 19, 64, 7),         # T > S: 31 rows see only the prefix
          (1, 2, 1, 2, 5, 0, 32, 6),           # no own token at all
          (1, 4, 1, 4, 7, 20, 128, 3)]


def make(shape, dtype=torch.float32, seed=0, dv=None, size=1.0):
    """q, k, v of the own tokens and the summary of a prefix of M rows, all rounded to dtype."""
    b, hq, hkv, heads, t, s, d, m = shape
    g = torch.Generator().manual_seed(seed)
    draw = lambda h, n, w: torch.randn(b, h, n, w, generator=g)
    q, k, v = (size * draw(hq, t, d), size * draw(hkv, s, d), draw(hkv, s, dv or d))
    exact = summarise(size * draw(heads, m, d), draw(heads, m, dv or d))
    return [x.to(DEVICE, dtype) for x in (q, k, v)], cast(exact, dtype)


def cast(summary, dtype):
    return Summary(*(x.to(DEVICE, dtype) for x in (summary.z, summary.k, summary.shift)))


def check(rows, summary, **options):
    blocks = {name: options.pop(name, 32) for name in ("block_m", "block_n")}
    part = prefix_attention(*rows, summary, **options, **blocks)
    truth = ntk_attend(*(x.double() for x in rows), cast(summary, torch.float64), **options)
    eager, dtype = ntk_attend(*rows, summary, **options), rows[0].dtype
    assert_partial_within(part, eager, truth, dtype)
    return part


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-Hq{}-Hkv{}-H{}-T{}-S{}-D{}-M{}".format(*s))
def test_it_equals_the_reference(shape, dtype, poison):
    """Outputs are allocated full of NaN, so an entry that the kernel does not write is found."""
    check(*make(shape, dtype))


def test_by_hand():
    # Width 1, scale 1. Prefix keys 0 and 1 say 2 and 5: phi = 1 and 2, Z = 1*2 + 2*5 = 12, z = 3. Query 1: phi = 2, so the
    # prefix weighs 6 and says 24 / 6 = 4. Own key log 4 -> weight 4, value 9: (36 + 24) / (4 + 6) = 6, lse = log 10.
    as_rows = lambda *x: torch.tensor(x, device=DEVICE).reshape(1, 1, -1, 1)
    summary = summarise(as_rows(0.0, 1.0), as_rows(2.0, 5.0), scale=1.0)
    part = prefix_attention(as_rows(1.0), as_rows(4.0).log(), as_rows(9.0), summary, scale=1.0, block_m=16, block_n=16)
    assert part.o.item() == pytest.approx(6, rel=1e-6) and part.lse.exp().item() == pytest.approx(10, rel=1e-6)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999), t=st.integers(1, 20), s=st.integers(0, 20), d=st.sampled_from([1, 7, 16, 20]),
       m=st.integers(0, 9), heads=st.sampled_from([1, 2, 4]), causal=st.booleans(), scale=st.sampled_from([None, 0.3]))
def test_any_shape(seed, t, s, d, m, heads, causal, scale):
    check(*make((1, 4, 2, heads, t, s, d, m), seed=seed), causal=causal, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_values_of_another_width_and_other_strides(dtype, poison):
    (q, k, v), summary = make((2, 4, 2, 2, 9, 21, 24, 6), dtype, dv=40)
    check((q, k, v), summary)
    laid = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]                # (B, T, H, D) in memory
    turned = Summary(summary.z.mT.contiguous().mT, summary.k, summary.shift)
    assert torch.equal(check(laid, turned).o, check((q, k, v), summary).o)
    check((q[..., ::2], k[..., ::2], v), Summary(summary.z[:, :, ::2], summary.k[..., ::2], summary.shift))


@pytest.mark.parametrize("blocks", [(16, 16), (16, 64), (64, 16)], ids=lambda b: "M{}-N{}".format(*b))
def test_the_tile_sizes_do_not_matter(blocks, poison):
    check(*make((1, 3, 1, 1, 70, 90, 40, 50)), block_m=blocks[0], block_n=blocks[1])


def test_no_prefix_is_the_flash_kernel_bit_by_bit():
    (q, k, v), _ = make((1, 2, 1, 1, 37, 30, 64, 1))
    nothing = summarise(k[:, :, :0], v[:, :, :0])
    part, plain = prefix_attention(q, k, v, nothing), flash.flash_attention(q, k, v)
    assert torch.equal(part.o, plain.o) and torch.equal(part.lse, plain.lse)
    assert (part.lse[:, :, :7] == float("-inf")).all() and (part.o[:, :, :7] == 0).all()      # neither key nor prefix


def test_the_method_says_the_same():
    (q, k, v), _ = make((1, 6, 2, 2, 40, 40, 64, 1))
    reference = NTK(prefix=12).attend(q, k, v)
    late = prefix_attention(q[:, :, 12:], k[:, :, 12:], v[:, :, 12:], summarise(k[:, :, :12], v[:, :, :12]))
    torch.testing.assert_close(late.o, reference.o[:, :, 12:], rtol=0, atol=2e-6)
    torch.testing.assert_close(late.lse, reference.lse[:, :, 12:], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_logits_of_a_thousand_stay_finite(dtype):
    rows, summary = make((1, 2, 1, 1, 20, 20, 64, 30), dtype, size=30.0)
    assert float((rows[0].double() @ rows[1].double().mT).amax() / 8) > 1000
    part = check(rows, summary)
    assert part.o.isfinite().all() and part.lse.isfinite().all()


def test_sums_past_the_largest_float16_are_fine():
    """100 000 rows of the same value: Z is past 65 504, what it says is not."""
    (q, k, v), _ = make((1, 2, 1, 1, 9, 9, 32, 1), torch.float16)
    weight = torch.full((1, 1, 32), 1e5, device=DEVICE)
    long = Summary(weight[..., None].expand(1, 1, 32, 32) * 3.0, weight, torch.zeros(1, 1, device=DEVICE))
    part, truth = prefix_attention(q, k, v, long), ntk_attend(q.double(), k.double(), v.double(), cast(long, torch.float64))
    torch.testing.assert_close(part.o.double(), truth.o, rtol=0, atol=4 * 2**-10 * 3)
    torch.testing.assert_close(part.lse.double(), truth.lse, rtol=1e-5, atol=1e-5)
    assert not long.z.half().isfinite().all()


def test_a_prefix_that_weighs_next_to_nothing_does_not_hide_the_own_tokens():
    """The weight sits on a feature that is e^-60 of the largest one; the own tokens weigh as much as that."""
    q = torch.tensor([[[[0.0, -60.0]]]], device=DEVICE)
    k, v = torch.tensor([[[[0.0, 1.0]]]], device=DEVICE), torch.tensor([[[[4.0]]]], device=DEVICE)      # own logit -60
    z, weight = torch.tensor([[[[5.0], [2.0]]]], device=DEVICE), torch.tensor([[[0.0, 1.0]]], device=DEVICE)
    alone = Summary(0 * z + torch.tensor([[0.0], [2.0]], device=DEVICE), weight, torch.zeros(1, 1, device=DEVICE))
    part = prefix_attention(q, k, v, alone, scale=1.0)
    assert part.o.item() == pytest.approx(3, rel=1e-5)                                 # e^-60 (4 + 2) / (e^-60 (1 + 1))
    assert part.lse.item() == pytest.approx(-60 + 0.6931472, rel=1e-6)


@pytest.mark.parametrize("change, message", [
    (lambda q, k, v, s: (q.double(), k.double(), v.double(), s), "one dtype of"),
    (lambda q, k, v, s: (q[:, :3], k, v, s), "multiple of Hkv"),
    (lambda q, k, v, s: (q, k, v, Summary(s.z[:, :, :8], s.k[..., :8], s.shift)), "Other features"),
    (lambda q, k, v, s: (q, k, v[..., :8], s), "summary.z must be"),
    (lambda q, k, v, s: (q, k, v, Summary(*(torch.cat([x, x[:, :1]], 1) for x in (s.z, s.k, s.shift)))), "does not fit 4 query"),
    (lambda q, k, v, s: (q, k, v, Summary(s.z[:, :0], s.k[:, :0], s.shift[:, :0])), "does not fit 4 query"),
    (lambda q, k, v, s: (q, k, v, Summary(s.z.requires_grad_(), s.k, s.shift)), "no gradients"),
], ids=["float64", "groups", "features", "values", "three-heads", "no-heads", "gradient"])
def test_bad_inputs_are_refused(change, message):
    rows, summary = make((1, 4, 2, 2, 5, 6, 16, 3))
    with pytest.raises(ValueError, match=message):
        prefix_attention(*change(*rows, summary))


def test_bad_options_are_refused():
    (q, k, v), summary = make((1, 1, 1, 1, 4, 4, 16, 3))
    for options, message in (({"block_m": 24}, "power of two"), ({"scale": -1.0}, "scale must be > 0")):
        with pytest.raises(ValueError, match=message):
            prefix_attention(q, k, v, summary, **options)
    with pytest.raises(ValueError, match="k holds NaN or infinity"):
        prefix_attention(q, k * float("nan"), v, summary, check=True)
    with torch.no_grad():                                                                # nothing to be lost there
        assert prefix_attention(q.requires_grad_(), k, v, summary).o.shape == q.shape
    assert prefix_attention(q.detach()[:, :, :0], k, v, summary).o.shape == (1, 1, 0, 16)


def test_the_summary_is_one_of_elu_features():
    (q, k, v), summary = make((1, 1, 1, 1, 9, 9, 16, 3))
    part = prefix_attention(q, k[:, :, :0], v[:, :, :0], summary)
    torch.testing.assert_close(part.lse, read(q, summary, log_elu).lse, rtol=1e-5, atol=1e-5)
    assert float((part.lse - attend(q, k[:, :, :3], v[:, :, :3], causal=False).lse).abs().max()) > 0.1     # and not exp


def test_the_roofline_by_hand():
    # One head, T = S = 4, D = Dv = 8, causal, bf16: flash moves 272 bytes and does 320 operations (see test_flash.py).
    # Summary: 8 * 8 numbers of 2 bytes, 8 + 1 of 4 bytes: 164. For each of 4 queries 8 features against 8 + 1 columns: 576.
    floor = roofline(1, 1, 1, 4, 4, 8)
    assert (floor.flops, floor.bytes) == (320 + 576, 272 + 164)
    assert roofline(1, 2, 1, 4, 4, 8, heads=2).bytes == flash.roofline(1, 2, 1, 4, 4, 8).bytes + 2 * 164
    rows = flash.roofline(1, 32, 8, 1, 2**16 + 64, 128)                                  # a decode step with a long prefix
    assert roofline(1, 32, 8, 1, 64, 128).seconds < rows.seconds / 100


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_tuned_block_sizes_on_a_gpu(dtype, poison):
    rows, summary = make((2, 8, 2, 2, 513, 700, 64, 300), dtype)
    part, eager = prefix_attention(*rows, summary), ntk_attend(*rows, summary)
    truth = ntk_attend(*(x.double() for x in rows), cast(summary, torch.float64))
    assert_partial_within(part, eager, truth, dtype)
