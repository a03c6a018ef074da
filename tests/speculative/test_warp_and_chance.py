"""Warping, sources of randomness and the statistics that judge them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.speculative.chooser import CoupledChooser, RandomChooser, every_run, invert
from tutor.speculative.cost import (
    PRESETS,
    VerifyCost,
    best_gamma,
    calibrate_verify_cost,
    chain_speedup,
    expected_tokens,
    mbsu,
)
from tutor.speculative.stats import chi2_fit, chi2_two_sample, n_for_power
from tutor.speculative.warp import GREEDY, Warp, WarpedRows


def test_order_is_temperature_then_top_k_then_top_p():
    # logits log(8, 4, 2, 1, 1) at temperature 1: 1/2, 1/4, 1/8, 1/16, 1/16
    logits = torch.tensor([8.0, 4, 2, 1, 1]).log()
    def close(warp, want):
        torch.testing.assert_close(warp(logits), torch.tensor(want).double(), atol=1e-6, rtol=0)

    close(Warp(), [0.5, 0.25, 0.125, 0.0625, 0.0625])
    close(Warp(top_k=2), [2 / 3, 1 / 3, 0, 0, 0])
    close(Warp(top_p=0.6), [2 / 3, 1 / 3, 0, 0, 0])                       # 1/2 is too little: the crossing token stays
    close(Warp(top_k=3, top_p=0.8), [2 / 3, 1 / 3, 0, 0, 0])              # top-k leaves 4/7, 2/7, 1/7
    close(Warp(temperature=0.5), [w / 86 for w in (64, 16, 4, 1, 1)])     # squares
    close(Warp(temperature=0.5, top_p=0.75), [64 / 80, 16 / 80, 0, 0, 0])  # at temperature 1 two make 3/4 too
    close(Warp(top_k=4), [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])             # the tie goes to the lower id


def test_greedy_is_one_hot_at_the_first_maximum():
    assert GREEDY(torch.tensor([[0.0, 2.0, 2.0], [5.0, 5.0, 1.0]])).tolist() == [[0, 1, 0], [1, 0, 0]]


@given(st.lists(st.integers(-6, 6), min_size=2, max_size=12), st.floats(0.1, 3), st.integers(0, 13), st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_warp_gives_a_distribution_that_keeps_the_order(logits, temperature, top_k, top_p):
    logits = torch.tensor(logits).float()
    p = Warp(temperature, top_k, top_p)(logits)
    assert p.dtype == torch.float64 and float(p.sum()) == pytest.approx(1, abs=1e-12)
    assert float(p[logits.argmax()]) == float(p.max()) > 0
    if top_k:
        assert int((p > 0).sum()) <= top_k


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0},
                                 {"top_p": 1.1}], ids=str)
def test_warp_refuses_nonsense(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        Warp(**bad)


def test_nan_logits_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        Warp()(torch.tensor([0.0, float("nan")]))


def test_rows_are_warped_when_first_read():
    rows = WarpedRows(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), GREEDY)
    assert rows[0].tolist() == [0, 1] and rows[0] is rows[0]              # row 1 was never touched
    with pytest.raises(ValueError, match="NaN"):
        rows[1]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any), st.floats(0, 1, exclude_max=True))
@settings(max_examples=200, deadline=None)
def test_inversion_never_returns_an_impossible_token(weights, u):
    p = torch.tensor(weights).double() / sum(weights)
    index = invert(p, u)
    assert p[index] > 0
    assert float(p[:index].sum()) <= u + 1e-12 and u < float(p[:index + 1].sum()) + 1e-12


def test_inversion_at_the_very_end():
    assert invert(torch.tensor([0.1] * 10 + [0.0]).double(), 1 - 2**-53) == 9


def test_coupled_numbers_depend_on_the_place_alone():
    p = torch.full((1000,), 1e-3).double()
    one, two = CoupledChooser(3), CoupledChooser(3)
    forward = [one.draw(p, t) for t in range(20)]
    assert [two.draw(p, t) for t in reversed(range(20))][::-1] == forward
    assert [CoupledChooser(4).draw(p, t) for t in range(20)] != forward
    assert [CoupledChooser(3, stream=1).draw(p, t) for t in range(20)] != forward
    with pytest.raises(ValueError, match="cannot be coupled"):
        one.coin(0.5)


def test_coupled_numbers_are_uniform():
    draws = torch.tensor([CoupledChooser(7).draw(torch.full((20,), 0.05).double(), t) for t in range(8000)])
    assert chi2_fit(torch.bincount(draws, minlength=20), torch.full((20,), 0.05)).p > 1e-4
    pairs = draws[:-1] * 20 + draws[1:]                                   # neighbours are independent
    assert chi2_fit(torch.bincount(pairs, minlength=400), torch.full((400,), 1 / 400)).p > 1e-4


def test_streams_of_one_seed_differ():
    p = torch.full((1000,), 1e-3).double()
    first, second = RandomChooser(0), RandomChooser(0, stream=1)
    assert [first.draw(p) for _ in range(10)] != [second.draw(p) for _ in range(10)]


def test_every_run_visits_each_leaf_once_with_its_probability():
    p = torch.tensor([0.5, 0.0, 0.5]).double()
    runs = list(every_run(lambda c: (c.draw(p), c.coin(0.25), c.coin(1.0))))
    assert len(runs) == 4 and sum(w for _, w in runs) == pytest.approx(1, abs=1e-15)
    assert dict(runs)[(2, True, True)] == pytest.approx(0.125)


def test_chi_square_against_known_values():
    fit = chi2_fit(torch.tensor([48, 35, 15, 3]), torch.tensor([58, 34.5, 7, 1.5]).double() / 101, 0)
    assert fit.dof == 3
    assert fit.statistic == pytest.approx(100 / 58 + 0.25 / 34.5 + 64 / 7 + 2.25 / 1.5, rel=1e-9)
    assert chi2_fit(torch.tensor([30, 70]), torch.tensor([0.5, 0.5])).p == pytest.approx(math.erfc(8**0.5), rel=1e-9)
    assert chi2_fit(torch.tensor([5, 1]), torch.tensor([1.0, 0.0])).p == 0           # an impossible token
    assert chi2_two_sample(torch.tensor([50, 50]), torch.tensor([50, 50])).p == 1
    two = chi2_two_sample(torch.tensor([30, 70]), torch.tensor([50, 50]))                    # 2 · (100 / 40 + 100 / 60)
    assert two.dof == 1 and two.statistic == pytest.approx(2 * (100 / 40 + 100 / 60))


def test_power_is_what_simulation_finds():
    k, delta = 8, 0.1
    n = n_for_power(delta, k, level=0.01, power=0.9)
    p = torch.full((k,), 1 / k).double()
    q = p + delta / (k / 2) * torch.tensor([1, -1] * (k // 2))            # the least visible bias of this size
    generator = torch.Generator().manual_seed(0)
    samples = (torch.multinomial(q, n, True, generator=generator).bincount(minlength=k) for _ in range(400))
    assert 0.85 < sum(chi2_fit(counts, p).p < 0.01 for counts in samples) / 400 < 0.95
    assert [n_for_power(d, 16) for d in (0.05, 0.02, 0.01)] == pytest.approx([6400, 40000, 161000], rel=0.01)


# ------------------------------------------------------------------------------------------------------ cost model

def test_expected_tokens_sums_the_series():
    for alpha, gamma in ((0.0, 3), (0.7, 4), (1.0, 5), (0.3, 0)):
        assert expected_tokens(alpha, gamma) == pytest.approx(sum(alpha**k for k in range(gamma + 1)))
    with pytest.raises(ValueError, match="alpha must be"):
        expected_tokens(1.2, 3)


def test_best_chain_length():
    # at acceptance 0.8: cheaper drafts afford longer chains
    assert [best_gamma(0.8, c) for c in (0.02, 0.05, 0.1, 0.2)] == [
        (g, pytest.approx(s, abs=0.01)) for g, s in ((11, 3.82), (8, 3.09), (6, 2.47), (4, 1.87))]
    assert best_gamma(0.1, 0.5)[0] == 0                                   # a poor, dear draft: do not speculate
    assert chain_speedup(0.8, 4, 0.1, 2.0) < chain_speedup(0.8, 4, 0.1)
    assert mbsu(3.0, 0.1, 4) == pytest.approx(3 / 1.4)


def test_ridge_of_the_presets():
    assert [round(PRESETS[name].ridge_rows()) for name in ("H100 SXM", "A100 80GB", "RTX 3090")] == [295, 153, 76]


def test_verify_cost_interpolates_and_extends():
    cost = VerifyCost((1, 4, 8), (1.0, 1.3, 2.1), 16)
    assert [cost(n) for n in (1, 2, 4, 6, 8, 12)] == pytest.approx([1.0, 1.1, 1.3, 1.7, 2.1, 2.9])
    assert cost.ratio(8) == pytest.approx(2.1) and VerifyCost((1,), (0.5,), 16)(7) == 0.5


def test_calibration_measures_every_row_count():
    from tutor.model.llama import tiny_llama
    cost = calibrate_verify_cost(tiny_llama(), (4, 1), 8, repeats=3)
    assert cost.rows == (1, 4) and all(s > 0 for s in cost.seconds)
