"""A DFT by small products is a DFT; a convolution by it is a convolution; what is skipped was zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.museum.attention import fftconv as museum
from tutor.attention.fft_cost import INNER, plan
from tutor.attention.methods.fftconv import (
    FFTConv,
    dft_matrix,
    frequencies,
    kept,
    low_pass,
    monarch_fft,
    monarch_ifft,
    real_fft,
    real_ifft,
    twiddle,
)

COVERS = ("attention.fftconv",)
F64, C128 = torch.float64, torch.complex128


def noise(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def direct(u, h):
    """y_t = sum_{s <= t} h_{t-s} u_s, one shifted copy of u per tap."""
    y = torch.zeros_like(u)
    for tap in range(min(h.shape[-1], u.shape[-1])):
        y[..., tap:] += h[:, tap:tap + 1] * u[..., : u.shape[-1] - tap]
    return y


def close(found, want, tol=1e-10):
    torch.testing.assert_close(found, want, rtol=0, atol=tol * max(1.0, float(want.abs().max())))


def test_by_hand():
    # N = 4 = 2 x 2, x = 1 2 3 4, grid 1 2 / 3 4. F_2 on columns: 4 6 / -2 -2. Twiddle: only (1, 1), times -i: -2 2i.
    # F_2 on rows: 10 -2 / -2+2i -2-2i. Slot (k1, k2) is frequency k1 + 2 k2: X = 10, -2+2i, -2, -2-2i.
    x = torch.tensor([1, 2, 3, 4], dtype=F64)
    close(monarch_fft(x, (2, 2)), torch.tensor([10, -2, -2 + 2j, -2 - 2j], dtype=C128))
    close(monarch_fft(x, (2, 2), permuted=False), torch.tensor([10, -2 + 2j, -2, -2 - 2j], dtype=C128))
    assert frequencies((2, 2)).tolist() == [0, 2, 1, 3]
    # (1, 2) conv (1, 3): 1, 2 + 3; the third output, 6, lies beyond the input
    close(FFTConv().conv(torch.tensor([[[1.0, 2]]], dtype=F64), torch.tensor([[1.0, 3]], dtype=F64)),
          torch.tensor([[[1.0, 5]]], dtype=F64))


@pytest.mark.parametrize("n", [2**i for i in range(8, 16)])
def test_every_factor_table_up_to_the_chip_is_a_dft(n):
    chosen, x = plan(n), noise(2, n)
    if chosen.real:
        assert math.prod(chosen.factors) == n // 2
        close(real_fft(x, chosen.factors), torch.fft.rfft(x))
        close(real_ifft(torch.fft.rfft(x), chosen.factors), x)
    else:
        assert chosen.factors == INNER[n]
        found = monarch_fft(x, chosen.factors)
        close(found, torch.fft.fft(x)[..., frequencies(chosen.factors)])
        close(monarch_ifft(found, chosen.factors).real, x)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2**i for i in range(16, 23)])
def test_every_factor_table_through_slow_memory_is_a_dft(n):
    x = noise(n)
    close(monarch_fft(x, plan(n).factors, permuted=False), torch.fft.fft(x))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), factors=st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
       cut=st.floats(0, 1), real=st.booleans())
def test_any_factors_are_a_dft_of_a_padded_sequence(seed, factors, cut, real):
    n = math.prod(factors)
    x = noise(2, max(1, round(cut * n)), seed=seed, dtype=F64 if real else C128)
    found = monarch_fft(x, factors)
    close(found, torch.fft.fft(x, n)[..., frequencies(factors)])
    close(monarch_fft(x, factors, permuted=False), torch.fft.fft(x, n))
    close(monarch_ifft(found, factors)[..., : x.shape[-1]], x.to(C128))
    close(monarch_ifft(torch.fft.fft(x, n), factors, permuted=False)[..., : x.shape[-1]], x.to(C128))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 400), taps=st.integers(1, 400), gates=st.booleans(),
       order=st.sampled_from([None, 1, 2, 3]))
def test_the_convolution_is_the_sum_over_taps(seed, length, taps, gates, order):
    taps = min(taps, length)
    order = order if length + taps >= 9 else None
    u, h = noise(2, 3, length, seed=seed), noise(3, taps, seed=seed + 1)
    pre, post = (noise(2, 3, length, seed=seed + i) if gates else None for i in (2, 3))
    want = direct(u if pre is None else u * pre, h) * (1 if post is None else post)
    close(FFTConv(order).conv(u, h, pre=pre, post=post), want)


@pytest.mark.parametrize("length", [64, 65, 127, 128, 129, 200, 256, 257, 700, 1024])
def test_lengths_around_powers_of_two(length):
    u, h = noise(1, 2, length), noise(2, length, seed=1)
    close(FFTConv().conv(u, h), direct(u, h))


def test_it_is_linear():
    u, w, h, g = noise(1, 2, 150), noise(1, 2, 150, seed=1), noise(2, 150, seed=2), noise(2, 150, seed=3)
    conv = FFTConv().conv
    close(conv(2 * u - 3 * w, h), 2 * conv(u, h) - 3 * conv(w, h))
    close(conv(u, h + g), conv(u, h) + conv(u, g))


def test_an_output_does_not_know_what_follows():
    u, h = noise(1, 2, 300), noise(2, 300, seed=1)
    later = u.clone()
    later[..., 200:] = noise(1, 2, 100, seed=2)
    for order in (None, 1, 2, 3):
        close(FFTConv(order).conv(later, h)[..., :200], FFTConv(order).conv(u, h)[..., :200])
    circular = FFTConv(causal=False).conv(u[..., :256], h[:, :256])
    assert (circular - FFTConv(causal=False).conv(later[..., :256], h[:, :256]))[..., :100].abs().max() > 0.1


def test_circular_convolution_turns_with_its_input():
    u, h = noise(1, 2, 256), noise(2, 256, seed=1)
    conv = FFTConv(causal=False).conv
    close(conv(u.roll(37, -1), h), conv(u, h).roll(37, -1))
    close(conv(u, h), torch.fft.irfft(torch.fft.rfft(u) * torch.fft.rfft(h)))


def test_an_impulse_is_the_identity_and_a_late_impulse_a_delay():
    u, h = noise(1, 3, 100), torch.zeros(3, 100, dtype=F64)
    h[:, 0] = 1
    close(FFTConv().conv(u, h), u)
    close(FFTConv().conv(u, h.roll(7, -1))[..., 7:], u[..., :-7])


def test_half_precision_is_computed_in_single():
    u, h = noise(1, 2, 300).half(), noise(2, 300, seed=1).half()
    y = FFTConv().conv(u, h)
    want = direct(u.double(), h.double())
    assert y.dtype == torch.float16 and (y.double() - want).abs().max() < 1e-3 * want.abs().max()


# ------------------------------------------------------------------------------------------- partial and sparse

def test_partial_convolution():
    """All taps: nothing changes; the first 20: the filter cut, on a shorter circle; and a longer text needs no more taps."""
    u, h = noise(1, 2, 300), noise(2, 300, seed=1)
    close(FFTConv(taps=300).conv(u, h), FFTConv().conv(u, h))
    close(FFTConv(taps=20).conv(u, h), direct(u, h[:, :20]))
    assert FFTConv(taps=20).plan(300, 300).n == 512 < FFTConv().plan(300, 300).n
    longer = noise(1, 2, 900, seed=2)
    close(FFTConv(taps=20).conv(longer, h), direct(longer, h[:, :20]))


@pytest.mark.parametrize("order, keep", [(2, (32, 8)), (2, (16, 16)), (3, (4, 8, 8)), (3, (8, 8, 2))])
def test_keeping_all_frequencies_changes_nothing(order, keep):
    u, h = noise(1, 2, 250), noise(2, 250, seed=1)
    factors = FFTConv(order).plan(250, 250).factors
    close(FFTConv(order, keep=factors).conv(u, h), direct(u, h))
    assert (FFTConv(order, keep=keep).conv(u, h) - direct(u, h)).abs().max() > 0.1


def test_dropped_frequencies_let_an_output_see_what_follows():
    """The documented price: a circle with fewer frequencies rings before the impulse that it answers."""
    u, h = noise(1, 1, 128), noise(1, 128, seed=1)
    later = u.clone()
    later[..., 100:] += 10
    seen = [(FFTConv(2, keep=keep).conv(later, h) - FFTConv(2, keep=keep).conv(u, h))[..., :90].abs().max()
            for keep in ((16, 16), (16, 4))]
    assert seen[0] < 1e-10 and seen[1] > 0.1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_skipped_blocks_are_frequencies_set_to_zero(seed, data):
    factors = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
    keep = tuple(data.draw(st.integers(1, n)) for n in factors)
    n = math.prod(factors)
    x = noise(2, n, seed=seed)
    mask = torch.ones(1, dtype=torch.bool)
    for size, count in zip(factors, keep):
        held = torch.zeros(size, dtype=torch.bool)
        held[kept(size, count)] = True
        mask = (mask[:, None] & held).flatten()
    spectrum = torch.fft.fft(x)[..., frequencies(factors)]
    close(monarch_fft(x, factors, keep=keep), spectrum[..., mask])
    zeroed = torch.zeros_like(spectrum).index_copy_(-1, frequencies(factors), spectrum * mask)
    close(monarch_ifft(spectrum[..., mask], factors, keep=keep), torch.fft.ifft(zeroed))


def test_kept_indices_lie_around_zero():
    assert kept(8, 1).tolist() == [0] and kept(8, 2).tolist() == [0, 7] and kept(8, 5).tolist() == [0, 1, 2, 6, 7]
    assert kept(8, 8).tolist() == list(range(8))


def test_few_indices_of_the_last_axis_are_the_low_frequencies():
    f = frequencies((16, 16)).reshape(16, 16)[:, kept(16, 4)]
    folded = torch.minimum(f, 256 - f)
    assert folded.max() <= 32 and folded.unique().tolist() == list(range(33))


def test_low_pass_keeps_slow_waves_and_rings_backwards():
    t = torch.arange(256, dtype=F64)
    slow, fast = torch.cos(2 * math.pi * 3 * t / 256)[None], torch.cos(2 * math.pi * 90 * t / 256)[None]
    close(low_pass(slow + fast, 256, 10), slow)
    step = torch.zeros(1, 100, dtype=F64)
    step[:, :5] = 1
    rung = low_pass(step, 256, 20)
    assert rung[:, 128:].abs().max() > 0.01                         # taps at negative times: outputs would see the future
    close(low_pass(step, 256, 129)[:, :100], step)


# ------------------------------------------------------------------------------------------------------ museum

def test_the_museum_differs_from_the_method():
    x = noise(256)
    truth = torch.fft.fft(x)
    wrong = museum.without_twiddle(x, 16, 16)
    assert (wrong - truth).abs().max() > 1 and torch.allclose(wrong[0], truth[0])          # the mean survives
    rows = museum.read_row_by_row(x, 16, 16)
    assert (rows - truth).abs().max() > 1
    close(torch.empty_like(rows).index_copy_(0, frequencies((16, 16)), rows), truth)       # right numbers, wrong places
    u, h = noise(1, 1, 64), noise(1, 64, seed=1)
    wrapped = museum.wraps_around(u, h)
    assert (wrapped - direct(u, h)).abs().max() > 1
    close(wrapped[..., -1:], direct(u, h)[..., -1:])                                       # only the last output is right
    close(museum.unscaled_inverse(monarch_fft(x, (16, 16)), 16, 16).real, 16 * x)
    assert (museum.single_precision_angles(1024).to(C128) - dft_matrix(1024)).abs().max() > 1e-4


def test_the_twiddle_is_what_the_grid_lacks():
    x = noise(60)
    a = dft_matrix(6) @ x.reshape(6, 10).to(C128) * twiddle(6, 10) @ dft_matrix(10)
    close(a.T.flatten(), torch.fft.fft(x))


@pytest.mark.parametrize("run, message", [
    (lambda: monarch_fft(noise(64), (8, 4), length=64), r"product the length 64; got \(8, 4\)"),
    (lambda: monarch_fft(noise(64), (8, 4)), "x has 64 entries, the factors .* make 32"),
    (lambda: monarch_fft(noise(64), (8, 8), keep=(8,)), "keep must give 1 to N_i indices"),
    (lambda: monarch_fft(noise(64), (8, 8), keep=(8, 0)), "keep must give 1 to N_i indices"),
    (lambda: monarch_ifft(noise(64, dtype=C128), (8, 4)), "spectrum has 64 entries"),
    (lambda: FFTConv().conv(noise(1, 2, 64), noise(2, 65)), "filter is longer than the input: 65 taps, 64 entries"),
    (lambda: FFTConv().conv(noise(1, 2, 64), noise(3, 64)), r"u must be \(B, H, L\) and h \(H, taps\)"),
    (lambda: FFTConv().conv(noise(1, 2, 64), noise(2, 64), pre=noise(1, 1, 64)), "pre must have the shape of u"),
    (lambda: FFTConv(causal=False).conv(noise(1, 2, 60), noise(2, 60)), "power of two"),
    (lambda: FFTConv(taps=0), "taps must be >= 1"),
    (lambda: low_pass(noise(1, 8), 8, 6), r"bins must be in \[1, n/2 \+ 1\]"),
])
def test_bad_input_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_a_longer_filter_is_cut_when_asked():
    u, h = noise(1, 2, 64), noise(2, 100)
    close(FFTConv().conv(u, h, truncate=True), direct(u, h))
