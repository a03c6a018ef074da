"""Fixed patterns and fashionable columns: each reads the keys that its rule names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.dense import causal_pairs, probs
from tutor.attention.methods.bigbird import BigBird
from tutor.attention.methods.butterfly import Butterfly
from tutor.attention.methods.longformer import Longformer
from tutor.attention.methods.streaming import Streaming
from tutor.attention.methods.vertical import VOTERS, Vertical
from tutor.attention.methods.window import Window

COVERS = ("attention.vertical", "attention.longformer", "attention.bigbird", "attention.butterfly")


def zeros(t: int, s: int, heads: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, heads, t, 2), torch.zeros(1, 1, s, 2)


def rows(selector, q, k, **options) -> list[list[int]]:
    """The keys of each row of head 0."""
    sel, _ = selector.select(q, k, **options)
    return [mask.nonzero()[:, 0].tolist() for mask in sel.mask()[0, 0]]


# ------------------------------------------------------------------------------------------------------ vertical

def test_vertical_keeps_the_columns_with_most_votes_and_the_own_key():
    # Two queries at positions 2, 3; every query gives key j the weight w_j, w = (1, 4, 2, 1).
    # Row 2 sees w = (1, 4, 2), sum 7: (1/7, 4/7, 2/7). Row 3, sum 8: (1/8, 4/8, 2/8, 1/8).
    # Means: 0: 0.134, 1: 0.536, 2: 0.268, 3: 1/16 = 0.0625. One column: 1. Two: 1 and 2.
    q, k = torch.ones(1, 1, 2, 1), torch.tensor([1.0, 4.0, 2.0, 1.0]).log().reshape(1, 1, 4, 1)
    assert rows(Vertical(1), q, k) == [[1, 2], [1, 3]]
    assert rows(Vertical(2), q, k) == [[1, 2], [1, 2, 3]]
    assert Vertical(1).select(q, k)[1]["scored"] == 3 + 4


def test_vertical_ties_go_to_the_lower_column():
    assert rows(Vertical(2), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 5, 1)) == [[0, 1, 4]]


def test_only_the_last_rows_vote(rng):
    q, k = torch.randn(1, 2, 100, 8, generator=rng), torch.randn(1, 1, 130, 8, generator=rng)
    sel, cost = Vertical(7).select(q, k)
    pos = torch.arange(30, 130)
    votes = probs(q, k)[:, :, -VOTERS:].mean(2)
    want = torch.zeros(1, 2, 130, dtype=torch.bool).scatter(-1, votes.topk(7).indices, True)
    own = torch.arange(130) == pos[:, None]
    assert torch.equal(sel.mask(), (want[:, :, None] | own) & (torch.arange(130) <= pos[:, None]))
    assert cost["scored"] == 2 * causal_pairs(pos[-VOTERS:], 130)
    changed = q.clone()
    changed[:, :, :36] = torch.randn(1, 2, 36, 8, generator=rng)           # rows that do not vote
    assert torch.equal(Vertical(7).select(changed, k)[0].mask(), sel.mask())


# ---------------------------------------------------------------------------------------------------- longformer

def test_longformer_skips_keys_and_reads_the_globals():
    # Positions 5, 6; every second key, three of them: p, p - 2, p - 4; key 0 is global.
    assert rows(Longformer(window=3, dilation=2, globals=(0,)), *zeros(2, 7)) == [[0, 1, 3, 5], [0, 2, 4, 6]]
    assert rows(Longformer(window=1, dilation=3, globals=()), *zeros(2, 7)) == [[5], [6]]


def test_a_global_row_sees_everything_before_it():
    kept = rows(Longformer(window=1, globals=(3,)), *zeros(6, 6))
    assert kept == [[0], [1], [2], [0, 1, 2, 3], [3, 4], [3, 5]]


def test_longformer_without_holes_is_streaming_or_a_window():
    q, k = zeros(9, 14)
    assert rows(Longformer(4, 1, (0, 1)), q, k) == rows(Streaming(2, 4), q, k)
    assert rows(Longformer(4, 1, ()), q, k) == rows(Window(4), q, k)


# ------------------------------------------------------------------------------------------------------- bigbird

def test_bigbird_without_chance_by_hand():
    # Blocks of 2, the first block and two that end at the diagonal; position 9 lies in block 4: blocks 0, 3, 4.
    kept = rows(BigBird(block=2, n_win=2, n_rand=0, n_glob=1), *zeros(10, 10))
    assert kept[9] == [0, 1, 6, 7, 8, 9] and kept[8] == [0, 1, 6, 7, 8]
    assert kept[3] == [0, 1, 2, 3] and kept[0] == [0]


def test_random_blocks_are_earlier_whole_and_not_taken_twice():
    q, k = zeros(160, 160, heads=3)
    blocks = BigBird(block=8, n_win=2, n_rand=3, n_glob=1).select(q, k)[0].mask().reshape(3, 20, 8, 20, 8)
    read = blocks[:, :, -1]                                                # (heads, query block, key block, 8): last row
    assert torch.equal(read.any(-1), read.all(-1))                         # whole blocks
    count = read.any(-1).sum(-1)
    assert torch.equal(count, torch.arange(1, 21).clamp(max=1 + 2 + 3).expand(3, 20))
    assert torch.equal(blocks[:, :, 0].any(-1), read.any(-1))              # rows of a block read the same blocks


def test_bigbird_draws_by_seed_head_and_block():
    q, k = zeros(200, 200, heads=2)
    mask = lambda **o: BigBird(block=8, n_rand=2).select(q, k, **o)[0].mask()
    assert torch.equal(mask(), mask()) and not torch.equal(mask()[:, 0], mask()[:, 1])
    assert not torch.equal(mask(), BigBird(block=8, n_rand=2, seed=1).select(q, k)[0].mask())
    drawn = [mask(generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_random_blocks_are_uniform():
    """Block 11 of blocks of 1: 8 candidates (1 .. 8), 2 drawn: each with probability 1/4; 2000 heads, +-5 sigma = 0.05."""
    q, k = zeros(1, 12, heads=2000)
    share = BigBird(block=1, n_win=3, n_rand=2, n_glob=1).select(q, k)[0].mask()[0, :, 0].double().mean(0)
    assert (share[[0, 9, 10, 11]] == 1).all() and ((share[1:9] - 0.25).abs() < 0.05).all()


# ----------------------------------------------------------------------------------------------------- butterfly

def test_butterfly_by_hand():
    # Block 6 = 110b: itself; 111b lies ahead; 100b = 4 and 010b = 2 differ in one bit; and block 0.
    kept = rows(Butterfly(1), *zeros(8, 8))
    assert kept[6] == [0, 2, 4, 6] and kept[7] == [0, 3, 5, 6, 7]
    assert kept[4] == [0, 4] and kept[5] == [0, 1, 4, 5] and kept[0] == [0]


def test_butterfly_reads_one_block_for_each_one_in_its_number():
    for p, keys in enumerate(rows(Butterfly(1), *zeros(64, 64))):
        ones = bin(p).count("1")
        assert len(keys) == ones + 1 + (ones > 1)          # cleared ones, itself, and block 0 where not yet counted


def test_butterfly_reaches_every_earlier_block_in_a_logarithm_of_steps():
    """Where every chain of ones leads: from block 63 to any block below in six steps or fewer."""
    reach = torch.eye(64, dtype=torch.bool)
    wires = torch.zeros(64, 64, dtype=torch.bool)
    for p, keys in enumerate(rows(Butterfly(1), *zeros(64, 64))):
        wires[p, keys] = True
    for _ in range(6):
        reach = (reach.double() @ wires.double()) > 0
    assert reach[63].all()


# -------------------------------------------------------------------------------------------------- all of them

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 9), st.integers(0, 4), st.integers(0, 1000))
def test_any_row_may_be_asked_alone(t, s, size, extra, seed):
    """Fixed patterns depend on the position alone, whatever the chunk."""
    t = min(t, s)
    q, k = zeros(t, s, heads=2)
    row = torch.tensor([seed % t])
    for selector in (Longformer(size, extra + 1, (0, extra)), BigBird(size, 2, extra, 1, seed), Butterfly(size)):
        whole, _ = selector.select(q, k)
        alone, _ = selector.select(q[:, :, row], k, pos_q=row + s - t)
        assert torch.equal(alone.mask(), whole.mask()[:, :, row])
        assert whole.mask()[:, :, torch.arange(t), torch.arange(s - t, s)].all()       # the own key, always


@pytest.mark.parametrize("make, message", [
    (lambda: Vertical(0), "k must be >= 1; got 0"), (lambda: Longformer(0), "window must be >= 1; got 0"),
    (lambda: Longformer(dilation=0), "dilation must be >= 1; got 0"),
    (lambda: Longformer(globals=(0, -1)), r"globals must be positions >= 0 in the text; got \(0, -1\)"),
    (lambda: BigBird(block=0), "block must be >= 1"), (lambda: BigBird(n_win=0), "n_win must be >= 1"),
    (lambda: BigBird(n_rand=-1), "n_rand must be >= 0"), (lambda: BigBird(n_glob=-1), "n_glob must be >= 0"),
    (lambda: Butterfly(0), "block must be >= 1; got 0"),
], ids=["vertical", "window", "dilation", "globals", "block", "n_win", "n_rand", "n_glob", "butterfly"])
def test_impossible_budgets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
