"""The baselines choose the keys that their rules name."""

from __future__ import annotations

import pytest
import torch

from tutor.attention.dense import probs
from tutor.attention.methods.dense import Dense
from tutor.attention.methods.oracle_topk import OracleTopK
from tutor.attention.methods.oracle_topp import OracleTopP
from tutor.attention.methods.random_k import RandomK
from tutor.attention.methods.streaming import Streaming
from tutor.attention.methods.window import Window
from tutor.attention.selection import mass_recall

COVERS = ("attention.dense", "attention.window", "attention.streaming", "attention.oracle_topk",
          "attention.oracle_topp", "attention.random_k")


def rows(selector, q, k, **options) -> list[list[int]]:
    """The keys of each row of head 0."""
    sel, _ = selector.select(q, k, **options)
    return [mask.nonzero()[:, 0].tolist() for mask in sel.mask()[0, 0]]


def one_head(logits: list[float], t: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k of one head whose logits are the given numbers for every query."""
    return torch.ones(1, 1, t, 1), torch.tensor(logits).reshape(1, 1, -1, 1)


ZEROS = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 6, 2)            # queries at positions 3, 4, 5


def test_dense_reads_every_key_up_to_its_own():
    assert rows(Dense(), *ZEROS) == [[0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    assert Dense().select(*ZEROS)[1]["loaded"] == 4 + 5 + 6


def test_a_window_counts_the_query_s_own_key():
    assert rows(Window(1), *ZEROS) == [[3], [4], [5]]
    assert rows(Window(2), *ZEROS) == [[2, 3], [3, 4], [4, 5]]
    assert rows(Window(99), *ZEROS) == rows(Dense(), *ZEROS)


def test_streaming_is_sinks_and_window():
    assert rows(Streaming(sinks=1, window=2), *ZEROS) == [[0, 2, 3], [0, 3, 4], [0, 4, 5]]
    assert rows(Streaming(sinks=0, window=2), *ZEROS) == rows(Window(2), *ZEROS)
    assert rows(Streaming(sinks=5, window=1), *ZEROS) == [[0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]


def test_the_oracle_takes_the_largest_logits_and_ties_to_the_lower_index():
    q, k = one_head([1.0, 3.0, 2.0, 3.0, 2.0])
    assert rows(OracleTopK(1), q, k) == [[1]]
    assert rows(OracleTopK(2), q, k) == [[1, 3]]
    assert rows(OracleTopK(3), q, k) == [[1, 2, 3]]
    assert OracleTopK(3).select(q, k)[1]["scored"] == 5


def test_the_oracle_never_looks_ahead():
    q, k = one_head([1.0, 2.0, 9.0], t=3)
    assert rows(OracleTopK(1), q, k) == [[0], [1], [2]]


def test_no_choice_of_k_keys_holds_more_mass_than_the_oracle(rng):
    q, k = torch.randn(1, 2, 6, 8, generator=rng), torch.randn(1, 2, 20, 8, generator=rng)
    best = mass_recall(q, k, OracleTopK(5).select(q, k)[0])
    want = probs(q, k).sort(dim=-1, descending=True).values[..., :5].sum(-1)
    torch.testing.assert_close(best, want)
    for selector in (Window(5), Streaming(2, 3), RandomK(5)):
        assert (mass_recall(q, k, selector.select(q, k)[0]) <= best + 1e-12).all()


def test_top_p_takes_the_shortest_prefix_that_reaches_p():
    # Weights 0.5, 0.3, 0.15, 0.05, shuffled to keys 2, 0, 3, 1.
    q, k = one_head(torch.tensor([0.3, 0.05, 0.5, 0.15]).log().tolist())
    for p, want in ((0.01, [2]), (0.49, [2]), (0.51, [0, 2]), (0.79, [0, 2]), (0.81, [0, 2, 3]), (0.999, [0, 1, 2, 3])):
        assert rows(OracleTopP(p), q, k) == [want]


def test_top_p_of_equal_weights_takes_the_lower_indices():
    assert rows(OracleTopP(0.5), *one_head([0.0] * 4)) == [[0, 1]]


def test_top_p_keeps_p_and_one_key_fewer_would_not(rng):
    q, k = torch.randn(2, 4, 8, 8, generator=rng) * 2, torch.randn(2, 2, 30, 8, generator=rng)
    sel, _ = OracleTopP(0.9).select(q, k)
    a = torch.where(sel.mask(), probs(q, k), float("inf"))
    mass = mass_recall(q, k, sel)
    assert (mass >= 0.9 - 1e-12).all() and (mass - a.amin(-1) < 0.9).all()


def test_random_keys_hold_the_own_key_and_no_key_twice(rng):
    q, k = torch.zeros(2, 4, 7, 2), torch.zeros(2, 2, 20, 2)
    sel, _ = RandomK(5).select(q, k)
    mask = sel.mask()
    assert (sel.counts() == 5).all() and mask[:, :, torch.arange(7), torch.arange(13, 20)].all()
    assert torch.equal(mask, RandomK(5).select(q, k)[0].mask())
    assert not torch.equal(mask, RandomK(5, seed=1).select(q, k)[0].mask())
    drawn = [RandomK(5).select(q, k, generator=torch.Generator().manual_seed(s))[0].mask() for s in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_random_keys_are_uniform():
    """6 others of 11 earlier keys: each is read with probability 6 / 11 = 0.545; 1200 rows put +-5 sigma at 0.072."""
    q, k = torch.zeros(1, 1200, 1, 1), torch.zeros(1, 1, 12, 1)
    share = RandomK(7).select(q, k)[0].mask()[0, :, 0].double().mean(0)
    assert share[11] == 1 and ((share[:11] - 6 / 11).abs() < 0.072).all()


@pytest.mark.parametrize("make, message", [
    (lambda: Window(0), "window must be >= 1; got 0"), (lambda: Streaming(window=0), "window must be >= 1"),
    (lambda: Streaming(sinks=-1), "sinks must be >= 0; got -1"), (lambda: OracleTopK(0), "k must be >= 1; got 0"),
    (lambda: RandomK(0), "k must be >= 1; got 0"), (lambda: OracleTopP(0.0), r"p must be in \(0, 1\]; got 0.0"),
    (lambda: OracleTopP(1.5), r"p must be in \(0, 1\]; got 1.5"),
], ids=["window", "streaming-window", "sinks", "topk", "random", "p0", "p1.5"])
def test_impossible_budgets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
