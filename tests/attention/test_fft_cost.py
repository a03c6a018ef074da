"""FlashFFTConv: every length has a plan, the operations counted are those that run, and the cost model is the formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tutor.attention.fft_cost import INNER, MACHINES, Machine, Plan, best_order, factorise, operations, plan, seconds
from tutor.attention.methods.fftconv import FFTConv, monarch_fft, monarch_ifft

COVERS = ("attention.fftconv",)


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("n", [2**i for i in range(8, 23)])
def test_every_length_has_a_plan_and_its_inner_part_fits_the_chip(n):
    chosen = plan(n)
    assert math.prod(chosen.factors) * (2 if chosen.real else 1) == n and set(chosen.factors) <= {16, 32}
    assert math.prod(chosen.factors[chosen.outer:]) <= 32768 and (chosen.outer == 0) == (n <= 32768)


@pytest.mark.parametrize("factors, keep, length", [((16, 16), None, 256), ((16, 16), None, 128), ((8, 4, 8), None, 100),
                                                   ((16, 16), (16, 4), 128), ((8, 4, 8), (2, 3, 5), 100), ((64,), None, 64)])
def test_the_operations_counted_are_those_that_run(factors, keep, length):
    """torch counts a complex product as if it were real: a quarter of the operations."""
    n, x = math.prod(factors), noise(1, length, dtype=torch.complex128)
    rows = -(-length // (n // factors[0]))
    with FlopCounterMode(display=False) as counter:
        monarch_ifft(monarch_fft(x, factors, keep=keep), factors, keep=keep, rows=rows)
    found = operations(Plan(n, factors), length, keep=keep)
    assert found.ran == 4 * counter.get_total_flops()
    assert found.full == 16 * n * sum(factors)


def test_operations_by_hand():
    # N = 1024 = 32 x 32: 16 * 1024 * (32 + 32) = 1 048 576; half padding saves half of the first product, a quarter of all.
    # keep 8 of 32 in the second: first product 16 * 32 * 16 * 32 = 262 144, second 16 * 32 * 8 * 32 = 131 072.
    assert operations(Plan(1024, (32, 32))) == (1_048_576, 1_048_576)
    assert operations(Plan(1024, (32, 32)), 512).skipped == 0.25
    assert operations(Plan(1024, (32, 32)), 512, keep=(32, 8)).ran == 262_144 + 131_072
    assert operations(Plan(2048, (32, 32), real=True), 1024) == (786_432, 1_048_576)
    u, h = noise(2, 3, 512), noise(3, 512)
    assert FFTConv().cost(u, h)["flops"] == 6 * 786_432
    assert FFTConv().cost(u, h)["bytes_read"] == 8 * (6 * 512 + 3 * 512)


def test_the_cost_model_by_hand():
    # N = 1024 = 32 x 32 on rates 100 and 10, bandwidths 2 and 8, chip 200 bytes: stage 0 holds 4096 bytes, slow; stage 1 128,
    # fast. 16 * 1024 * 32 / 100 twice, + 4096 / 2 + 4096 / 8. As 128 x 8 the second stage runs at the general rate.
    tiny = Machine("tiny", 100, 10, 2, 8, 200)
    assert seconds(Plan(1024, (32, 32)), tiny) == pytest.approx(2 * 16 * 1024 * 32 / 100 + 2048 + 512)
    assert seconds(Plan(1024, (128, 8)), tiny, batch=2, heads=3) == pytest.approx(
        6 * (16 * 1024 * 128 / 100 + 16 * 1024 * 8 / 10 + 2048 + 512))


def test_the_cost_model_chooses_the_orders_of_the_published_table():
    a100 = next(m for name, m in MACHINES.items() if name.startswith("A100"))
    for n, factors in INNER.items():
        assert best_order(n, a100) == len(factors), n
    flat = MACHINES["no matrix units"]
    assert all(best_order(n, flat) > len(f) for n, f in INNER.items())
    assert [best_order(n, flat) for n in (1, 2)] == [1, 1]


def test_factorise():
    assert factorise(4096, 3) == (16, 16, 16) and factorise(2048, 2) == (64, 32) and factorise(256, 8) == (2,) * 8
    assert factorise(1, 1) == (1,)


@pytest.mark.parametrize("run, message", [
    *[(lambda bad=bad: factorise(*bad), "power of two and order") for bad in ((12, 2), (8, 4), (8, 0), (0, 1))],
    (lambda: plan(300), "n must be a power of two from 256"),
    (lambda: plan(128), "n must be a power of two from 256"),
    (lambda: Machine("x", 1, 1, 0, 1, 1), "slow must be > 0"),
])
def test_bad_input_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run()
