"""HiP: groups of keys are halved until blocks are left, and the best halves stay."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.museum.attention.hip import dead_halves_score_zero
from tutor.attention.dense import logits
from tutor.attention.methods.hip import REPRESENTATIVES, HiP, descent_trace

COVERS = ("attention.hip",)


def profile(values, t: int = 1):
    """q and k of one head in which key j scores `values[j]` for each of t queries."""
    return torch.ones(1, 1, t, 1), torch.as_tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1)


def kept(method: HiP, q, k, **options) -> list[int]:
    """Keys read by the last row of head 0."""
    return method.select(q, k, **options)[0].mask()[0, 0, -1].nonzero()[:, 0].tolist()


def by_loops(method: HiP, q, k, pos) -> tuple[set[int], int]:
    """The rule for one block of one head, written as plainly as it reads: the blocks it ends with, and its products."""
    rows = [(q[r], int(pos[r])) for r in range(len(q)) if pos[r] >= 0]
    seen = min(max(p for _, p in rows) + 1, len(k))
    blocks, n, dots = math.ceil(seen / method.bk), method.mask_k // method.bk, 0
    if blocks <= n:
        return set(range(blocks)), 0

    def look(a: int, b: int) -> float:
        at = a if method.representative == "first" else a + (b - a) // 2
        keys = [j for j in range(at * method.bk, (at + 1) * method.bk) if j < len(k)]
        return max(float(x @ k[j]) for x, p in rows for j in keys if j <= p)

    groups = [(blocks * i // n, blocks * (i + 1) // n) for i in range(n)]
    while max(b - a for a, b in groups) > 1:
        halves = [half for a, b in groups for half in ((a, a + (b - a) // 2), (a + (b - a) // 2, b))]
        alive = [half for half in halves if half[1] > half[0]]
        dots += len(alive) * method.bk * len(rows)
        best = sorted(alive, key=lambda half: -look(*half))[:n]                # sorted is stable: ties to the lower
        groups = sorted(best)
    return {a for a, _ in groups}, dots


def test_a_descent_by_hand():
    # 8 keys, 2 slots: [0,4) and [4,8). Halves [0,2) [2,4) [4,6) [6,8) send keys 0, 2, 4, 6, which score 1, 5, 3, 2:
    # [2,4) and [4,6) stay. Halves 2, 3, 4, 5 score 5, 0, 3, 9: keys 2 and 5 stay, in 2 rounds of 4 products.
    q, k = profile([1, 7, 5, 0, 3, 9, 2, 8])
    method = HiP(mask_k=2, bq=1, bk=1)
    sel, cost = method.select(q, k)
    assert kept(method, q, k) == [2, 5] and cost["scored"] == 8 and cost["loaded"] == 2
    first, second = method.descend(q, k, torch.tensor([7]))
    assert first.start.tolist() == [[0, 2, 4, 6]] and first.end.tolist() == [[2, 4, 6, 8]]
    assert first.score.tolist() == [[1, 5, 3, 2]] and first.kept.tolist() == [[False, True, True, False]]
    assert second.score.tolist() == [[5, 0, 3, 9]] and second.kept.tolist() == [[True, False, False, True]]


def test_who_speaks_for_a_half_decides_what_is_found():
    # Key 7 with score 8 is heavy but no half's first key until the end; key 1 (score 7) goes with [0,2).
    q, k = profile([1, 7, 5, 0, 3, 9, 2, 8])
    found = {name: kept(HiP(2, 1, 1, name), q, k) for name in REPRESENTATIVES}
    # middle: halves send keys 1, 3, 5, 7 = 7, 0, 9, 8: [4,6) and [6,8) stay; then 4, 5, 6, 7 = 3, 9, 2, 8.
    # mean: 4, 2.5, 6, 5: the same halves stay. max_oracle: 7, 5, 9, 8: again.
    assert found == {"first": [2, 5], "middle": [5, 7], "mean": [5, 7], "max_oracle": [5, 7]}


@pytest.mark.parametrize("representative", ["first", "middle"])
@pytest.mark.parametrize("s, t, mask_k, bq, bk", [(64, 1, 8, 1, 2), (61, 13, 16, 8, 2), (97, 20, 16, 16, 1), (45, 9, 12, 4, 3)])
def test_all_heads_at_once_equal_plain_loops(representative, s, t, mask_k, bq, bk, rng):
    q, k = torch.randn(2, 4, t, 8, generator=rng), torch.randn(2, 2, s, 8, generator=rng)
    method = HiP(mask_k, bq, bk, representative)
    sel, cost = method.select(q, k)
    dots = 0
    for b in range(2):
        for h in range(4):
            for at, rows in enumerate(torch.arange(t).split(bq)):
                want, n = by_loops(method, q[b, h, rows], k[b, h // 2], s - t + rows)
                assert set(sel.blocks[b, h, at].nonzero()[:, 0].tolist()) == want
                dots += n
    assert cost["scored"] == dots


@settings(max_examples=40, deadline=None)
@given(s=st.integers(2, 90), n=st.integers(1, 12), bk=st.integers(1, 4), seed=st.integers(0, 999),
       representative=st.sampled_from(REPRESENTATIVES))
def test_groups_are_disjoint_and_cover_no_key_beyond_the_query(s, n, bk, seed, representative):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(1, 2, 1, 4, generator=g), torch.randn(1, 1, s, 4, generator=g)
    method, blocks = HiP(n * bk, 1, bk, representative), math.ceil(s / bk)
    if blocks <= n:
        return
    left = [set(range(blocks))] * 2
    rounds = list(method.descend(q, k, torch.tensor([s - 1])))
    for step in rounds:
        for head in range(2):
            start, end = step.start[head], step.end[head]
            covered = [b for a, z in zip(start.tolist(), end.tolist()) for b in range(a, z)]
            assert len(covered) == len(set(covered)) and set(covered) == left[head]
            assert step.kept[head].sum() == n and (end > start)[step.kept[head]].all()
            assert (step.score[head] == float("-inf")).equal(end == start)
            left[head] = {b for a, z in zip(start[step.kept[head]].tolist(), end[step.kept[head]].tolist()) for b in range(a, z)}
    assert all(len(x) == n for x in left)
    slots = blocks // n, math.ceil(blocks / n)                             # shortest and longest slot at the start
    assert math.floor(math.log2(slots[0])) <= len(rounds) <= math.ceil(math.log2(slots[1]))


def test_one_hill_is_climbed():
    """Scores that rise to one peak and fall again, steeply enough: the top block is found wherever it stands."""
    for peak in range(0, 128, 7):
        q, k = profile(-(torch.arange(128.0) - peak).abs())
        assert peak in kept(HiP(mask_k=8, bq=1, bk=2), q, k)


def test_an_isolated_needle_is_lost_in_the_first_round():
    values = torch.zeros(64)
    values[21] = 100.0                       # halves send keys 0, 8, 16, ...: 21 is nobody's first key until the last round
    q, k = profile(values)
    assert 21 not in kept(HiP(mask_k=4, bq=1, bk=1), q, k)
    values[24] = 200.0                       # where a half begins, it is found
    assert 24 in kept(HiP(mask_k=4, bq=1, bk=1), *profile(values))
    assert 21 in kept(HiP(4, 1, 1, "max_oracle"), *profile(values))


def test_the_cost_of_a_round():
    # 2 n = 2 * 8 halves, bk = 2 keys, bq = 4 rows, 64 blocks on 8 slots: log2(8) = 3 rounds.
    q, k = torch.randn(1, 3, 4, 8), torch.randn(1, 1, 128, 8)
    cost = HiP(mask_k=16, bq=4, bk=2).select(q, k, pos_q=torch.full((4,), 127))[1]
    assert cost["scored"] == 3 * (2 * 8) * 2 * 4 * 3
    assert HiP(16, 4, 2, "mean").select(q, k, pos_q=torch.full((4,), 127))[1]["scored"] == 3 * (2 * 8) * 4 * 3
    assert HiP(16, 4, 2, "max_oracle").select(q, k, pos_q=torch.full((4,), 127))[1]["scored"] == 3 * (128 + 64 + 32) * 4


def test_a_head_that_is_done_asks_no_more():
    # 5 keys on 2 slots, [0,2) and [2,5): halves [0,1) [1,2) [2,3) [3,5). Head 0 keeps the first two and is done after 4
    # products. Head 1 keeps the last two; [2,3) has an empty half, so the next round takes 3 more.
    k = torch.tensor([[9.0, 8, 1, 1, 1], [1, 1, 9, 8, 9]]).reshape(1, 2, 5, 1)
    sel, cost = HiP(mask_k=2, bq=1, bk=1).select(torch.ones(1, 2, 1, 1), k)
    assert cost["scored"] == 4 + 7 and sel.mask()[0, :, 0].nonzero()[:, 1].tolist() == [0, 1, 2, 4]


def test_halves_that_send_their_best_key_find_the_best_blocks(rng):
    """For one query the n heaviest blocks survive every round, so "max_oracle" is exact; "first" is not."""
    q, k = torch.randn(1, 4, 1, 16, generator=rng), torch.randn(1, 2, 300, 16, generator=rng)
    best = logits(q, k)[0, :, 0].unflatten(1, (150, 2)).amax(2).topk(16).indices.sort().values
    found = lambda name: HiP(32, 1, 2, name).select(q, k)[0].blocks[0, :, 0].nonzero()[:, 1].reshape(4, 16)
    assert torch.equal(found("max_oracle"), best) and not torch.equal(found("first"), best)


def test_ties_go_to_the_half_that_comes_first():
    assert kept(HiP(mask_k=4, bq=1, bk=1), *profile(torch.zeros(16))) == [0, 1, 2, 3]
    # Keys 0 and 8 score 1: halves 0-2, 2-4, 4-6, ... of which 0-2 and 8-10 win, and the first two of the zeros.
    assert kept(HiP(mask_k=4, bq=1, bk=1), *profile([1.0] + [0] * 7 + [1] + [0] * 7)) == [0, 1, 2, 8]


def test_a_row_votes_only_for_keys_it_sees():
    # Rows at positions 6 and 7. Key 7 would score 9 with the first row, but only the second sees it, and scores -1.
    q = torch.tensor([[1.0, 0], [0, 1]]).reshape(1, 1, 2, 2)
    k = torch.tensor([[3.0, 0], [2, 0], [1, 0], [1, 0], [0, 0], [0, 0], [0, 0], [9, -1]]).reshape(1, 1, 8, 2)
    (only,) = HiP(mask_k=4, bq=2, bk=1).descend(q, k, torch.tensor([6, 7]))
    assert only.score.tolist() == [[3, 2, 1, 1, 0, 0, 0, -1]]
    assert kept(HiP(mask_k=4, bq=2, bk=1), q, k) == [0, 1, 2, 3]


def test_short_texts_are_read_whole_and_rows_before_the_first_key_read_nothing():
    q, k = profile(torch.zeros(20), t=24)
    sel, cost = HiP(mask_k=20, bq=8, bk=2).select(q, k)
    assert sel.counts()[0, 0].tolist() == [0] * 4 + list(range(1, 21)) and cost["scored"] == 0


def test_no_row_is_left_without_a_key(rng):
    q, k = torch.randn(1, 2, 200, 8, generator=rng), torch.randn(1, 2, 200, 8, generator=rng)
    assert (HiP(mask_k=16, bq=16, bk=2).select(q, k)[0].counts() > 0).all()


def test_the_trace_tells_the_descent():
    trace = descent_trace(*profile([1, 7, 5, 0, 3, 9, 2, 8]), HiP(2, 1, 1), tokens=list("abcdefgh"))
    assert trace.steps == 2 and trace.arrays["score"].tolist() == [1, 7, 5, 0, 3, 9, 2, 8]
    assert trace.at(0)["start"].tolist() == [2, 4, 0, 6] and np.allclose(trace.at(0)["score"], [5, 3, 1, 2])
    assert trace.describe(0) == "Round 1 of 2: 2 of 4 halves stay, of 2 keys each; key 5 'f', the heaviest, is among them."
    trace = descent_trace(*profile([1, 7, 5, 0, 3, 2, 2, 8]), HiP(2, 1, 1), tokens=list("abcdefgh"))
    assert trace.describe(1).endswith("key 7 'h', the heaviest, is lost.")
    with pytest.raises(ValueError, match="one block of one head"):
        descent_trace(*profile([1.0, 2.0], t=2), HiP(2, 1, 1), tokens=["a", "b"])


def test_a_dead_half_must_never_win():
    # 5 blocks on 4 slots: [0,1) [1,2) [2,3) [3,5). Single blocks split into an empty half and themselves. All scores are
    # below 0, so empty halves that score 0 take the slots.
    assert dead_halves_score_zero(lambda a, b: -1.0 - a, 5, 4).count(-1) == 3
    assert kept(HiP(mask_k=4, bq=1, bk=1), *profile([-1.0, -2, -3, -4, -5])) == [0, 1, 2, 3]


@pytest.mark.parametrize("make, message", [
    (lambda: HiP(mask_k=1, bq=1, bk=2), "mask_k must be >= 2; got 1"),
    (lambda: HiP(mask_k=65, bq=1, bk=2), "multiple of bk = 2; got 65"),
    (lambda: HiP(bq=0), "bq must be >= 1"), (lambda: HiP(bk=0), "bk must be >= 1"),
    (lambda: HiP(mask_k=32, bq=64), "mask_k must be >= 64; got 32"),
    (lambda: HiP(representative="last"), "representative must be one of"),
], ids=["small", "odd", "bq", "bk", "below-bq", "representative"])
def test_impossible_budgets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
