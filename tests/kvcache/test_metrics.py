"""Mass, output error, regret: by hand, and the identities that hold for any attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kvcache.harness import draw, turn
from tutor.kvcache import metrics
from tutor.model.llama import tiny_llama


def attention(n, *, group=3, seed=0):
    q, k, v = draw(n, group=group, seed=seed)
    pos = torch.arange(n, dtype=torch.int32)
    return metrics.probabilities(turn(q, pos), turn(k, pos), pos, pos), v


def random_keep(n, seed):
    keep = torch.rand(1, 2, n, generator=torch.Generator().manual_seed(seed)) < 0.6
    keep[..., 0] = True                                        # every query sees row 0, so every query keeps something
    return keep


def test_mass_and_error_by_hand():
    # one query, probabilities 1/2 1/3 1/6, values 6 3 0; rows 0 and 2 stay:
    # mass 2/3; o = 3 + 1 = 4; o_keep = (1/2·6 + 1/6·0) / (2/3) = 4.5; error 0.5 / 4; lost row: o_evicted = 3
    a = torch.tensor([[[[1 / 2, 1 / 3, 1 / 6]]]], dtype=torch.float64)
    v = torch.tensor([[[[6.0], [3.0], [0.0]]]], dtype=torch.float64)
    keep = torch.tensor([[[True, False, True]]])
    assert metrics.retained_mass(a, keep).item() == pytest.approx(2 / 3)
    assert metrics.kept_output(a, v, keep).item() == pytest.approx(4.5)
    assert metrics.output_error(a, v, keep).item() == pytest.approx(0.125)
    left, right = metrics.eviction_identity(a, v, keep)
    assert left.item() == pytest.approx(0.5) and right.item() == pytest.approx((1 - 2 / 3) * (4.5 - 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.sampled_from([1, 3]), st.integers(0, 99))
def test_eviction_error_is_exact(n, group, seed):
    a, v = attention(n, group=group, seed=seed)
    left, right = metrics.eviction_identity(a, v, random_keep(n, seed))
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 12), st.integers(0, 99), st.data())
def test_mass_grows_with_the_budget_and_nothing_beats_the_oracle(n, seed, data):
    a, _ = attention(n, seed=seed)
    pos = torch.arange(n, dtype=torch.int32)[None, None]
    masses = []
    for count in range(1, n + 1):
        best = metrics.oracle_keep(a, torch.full((1, 2), count), pos).mask
        masses.append(metrics.retained_mass(a, best).mean().item())
        other = torch.zeros(1, 2, n, dtype=torch.bool)
        other[..., data.draw(st.permutations(range(n)))[:count]] = True
        assert metrics.regret(a, other, pos).item() >= -1e-12
        assert metrics.regret(a, best, pos).item() == pytest.approx(0, abs=1e-12)
    assert masses == sorted(masses) and masses[-1] == pytest.approx(1)


def test_keeping_all_loses_nothing():
    a, v = attention(7)
    keep = torch.ones(1, 2, 7, dtype=torch.bool)
    assert metrics.retained_mass(a, keep).allclose(torch.ones(1, dtype=a.dtype))
    assert metrics.output_error(a, v, keep).max() < 1e-12


def test_probabilities_are_causal_and_sum_to_one():
    a, _ = attention(6)
    assert torch.equal(a.triu(1), torch.zeros_like(a)) and a.sum(-1).allclose(torch.ones(1, dtype=a.dtype))


def test_claimed_bytes_by_hand():
    # 32 layers, 8 KV heads, width 128, 2 bytes: 2·32·8·128·2 = 131 072 bytes a token
    config = tiny_llama(n_layers=2).config
    config = type(config)(**{**vars(config), "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128})
    assert metrics.row_bytes(config, 2) == 131_072
    assert metrics.claimed_nbytes(config, 10, 2, shared=True) == 10 * (131_072 + 4 * 32)
    assert metrics.claimed_nbytes(config, 10, 2, shared=False) == 10 * (131_072 + 4 * 32 * 8)


def test_shapes_that_disagree_are_named():
    a, _ = attention(6)
    with pytest.raises(ValueError, match=r"a \(1, 6, 6, 6\) and keep \(1, 4, 6\) disagree"):
        metrics.retained_mass(a, torch.ones(1, 4, 6, dtype=torch.bool))
