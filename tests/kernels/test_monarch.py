"""The Monarch kernel equals float64 convolution by the tolerance rule, interpreted on a CPU and compiled on a GPU alike."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.tolerance import assert_within
from tutor import kernels
from tutor.attention.fft_cost import Plan, operations
from tutor.attention.methods.fftconv import FFTConv

COVERS = ("attention.fftconv",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.monarch import fft_conv, filter_spectrum, roofline  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#          B  H   L    taps
SHAPES = [(1, 1, 1, 1),            # one entry, one tap
          (2, 3, 63, 63),
          (1, 2, 111, 40),
          (2, 1, 128, 128),        # exactly half of the smallest circle
          (1, 2, 129, 128),        # the whole of it: no row is padding
          (1, 1, 250, 7),          # a short filter: more than half of the circle is input
          (1, 1, 129, 129),        # one more than fits: the next circle
          (3, 2, 300, 300),
          (1, 2, 512, 512),
          (1, 1, 1000, 25),
          (1, 1, 1500, 900),
          (1, 1, 2048, 2048)]


def make(shape, dtype, seed=0):
    batch, heads, length, taps = shape
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g).to(dtype).to(DEVICE)
    return draw(batch, heads, length), draw(heads, taps), draw(batch, heads, length), draw(batch, heads, length)


def check(u, h, **options):
    """Against float64; `eager` is the reference in the dtype of u, as a user without the kernel would call it."""
    gates = {name: options[name] for name in ("pre", "post") if name in options}
    y = fft_conv(u, h, **options)
    truth = FFTConv(2).conv(u.cpu().double(), h.cpu().double(), **{name: x.cpu().double() for name, x in gates.items()})
    eager = FFTConv(2).conv(u.cpu(), h.cpu(), **{name: x.cpu() for name, x in gates.items()})
    assert y.dtype == u.dtype and y.shape == u.shape
    assert_within(y, eager, truth, u.dtype)
    return y


# A circle of 1 needs order 1 in the reference; lengths here make circles of 4 and more except for the first shape.
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda s: "B{}-H{}-L{}-taps{}".format(*s))
def test_it_equals_float64_convolution(shape, dtype, poison):
    """Outputs are allocated full of NaN, so an entry that the kernel does not write is found."""
    u, h, _, _ = make(shape, dtype)
    check(u, h)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_gates_before_and_after(dtype, poison):
    u, h, pre, post = make((2, 2, 111, 90), dtype)
    check(u, h, pre=pre, post=post)
    check(u, h, pre=pre)
    check(u, h, post=post)


def test_one_entry(poison):
    u, h, _, _ = make(SHAPES[0], torch.float32)
    torch.testing.assert_close(fft_conv(u, h), u * h, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [256, 1024, 4096])
def test_the_circle_does_not_matter(n, poison):
    u, h, _, _ = make((1, 2, 100, 100), torch.float32)
    torch.testing.assert_close(fft_conv(u, h, n=n), fft_conv(u, h), rtol=0, atol=2e-5)


@pytest.mark.parametrize("tile", [1, 2, 3, 8])
def test_several_sequences_to_a_program(tile, poison):
    u, h, pre, post = make((5, 2, 60, 60), torch.float32)
    assert torch.equal(fft_conv(u, h, pre=pre, post=post, batch_tile=tile), fft_conv(u, h, pre=pre, post=post))


def test_non_contiguous_inputs(poison):
    u, h, pre, _ = make((2, 3, 100, 80), torch.float32)
    laid = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (u, pre)]              # (B, L, H) in memory
    assert not laid[0].is_contiguous()
    assert torch.equal(check(laid[0], h, pre=pre, post=laid[1]), check(u, h, pre=pre, post=pre))
    check(u[..., ::2], h[:, :50])


def test_an_impulse_is_the_identity_and_the_future_is_not_seen(poison):
    u, h, _, _ = make((1, 2, 200, 200), torch.float32)
    impulse = torch.zeros_like(h)
    impulse[:, 0] = 1
    torch.testing.assert_close(fft_conv(u, impulse), u, rtol=0, atol=1e-5)
    later = u.clone()
    later[..., 120:] = 100
    torch.testing.assert_close(fft_conv(later, h)[..., :120], fft_conv(u, h)[..., :120], rtol=0, atol=5e-3)


def test_large_half_precision_does_not_overflow(poison):
    """Sums of 2 048 products: an unscaled spectrum would pass 65 504."""
    u, h, _, _ = make((1, 1, 2048, 2048), torch.float16)
    y = check(8 * u, h)
    assert torch.isfinite(y).all()


def test_the_filter_carries_the_scale_of_the_inverse():
    h = torch.zeros(1, 5)
    h[0, 0] = 1
    planes = filter_spectrum(h, 256)
    assert planes.shape == (2, 1, 256) and torch.allclose(planes[0], torch.tensor(1 / 256)) and planes[1].abs().max() == 0


def test_nothing_in_nothing_out():
    assert fft_conv(torch.zeros(0, 2, 8), torch.zeros(2, 4)).shape == (0, 2, 8)
    assert fft_conv(torch.zeros(2, 2, 0), torch.zeros(2, 1)).shape == (2, 2, 0)


@pytest.mark.parametrize("change, message", [
    (lambda a: a | {"u": a["u"][0]}, r"u must be \(B, H, L\)"),
    (lambda a: a | {"h": a["h"][:1]}, r"u must be \(B, H, L\)"),
    (lambda a: a | {"u": a["u"][..., :20]}, "longer than the input: 50 taps, 20 entries"),
    (lambda a: a | {"u": a["u"].double()}, "float32, float16 or bfloat16"),
    (lambda a: a | {"pre": a["u"].half()}, "pre must have shape, dtype and device"),
    (lambda a: a | {"post": a["u"][:, :1]}, "post must have shape, dtype and device"),
    (lambda a: a | {"n": 512}, r"n must be one of \(256, 1024, 4096\)"),
    (lambda a: a | {"u": torch.zeros(1, 2, 4096)}, "beyond this kernel's 4096"),
    (lambda a: a | {"batch_tile": 0}, "batch_tile must be >= 1"),
], ids=["rank", "heads", "taps", "float64", "gate", "gate-shape", "circle", "too-long", "tile"])
def test_bad_inputs_are_refused(change, message):
    u, h, _, _ = make((1, 2, 50, 50), torch.float32)
    with pytest.raises(ValueError, match=message):
        fft_conv(**change({"u": u, "h": h}))


def test_the_roofline_by_hand():
    # L = taps = 512, circle 1024 = 32 x 32, half of it padding: rows 16. Forward: 2 real products of 16 * 1024 multiply-adds,
    # 4 of 32 * 1024; the inverse the same: 2 * (2 * 2 * 16 * 1024 + 4 * 2 * 32 * 1024) = 655 360.
    floor = roofline(2, 3, 512)
    assert floor.flops == 6 * 655_360
    assert floor.bytes == 2 * 6 * 512 * 2 + 3 * 512 * 4
    assert roofline(2, 3, 512, gates=2).bytes == 4 * 6 * 512 * 2 + 3 * 512 * 4
    # the reference counts a complex first product, 8 operations a multiply-add; here the input is real: half of the first
    complex_count = operations(Plan(1024, (32, 32)), 512).ran
    assert floor.flops // 6 == complex_count - 2 * 4 * 32 * 16 * 32
    assert roofline(64, 768, 2048).bound_by == "compute" and roofline(64, 768, 100).bound_by == "memory"
