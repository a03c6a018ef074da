"""Every registered policy, in every phase, group size and budget: what all of them promise, and what each one says."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kvcache.harness import draw, held, run, step, turn
from tutor import catalog
from tutor.kvcache import RaggedCache, Rows, make
from tutor.kvcache.metrics import oracle_keep, probabilities, retained_mass
from tutor.kvcache.policies.random import lot
from tutor.kvcache.rows import column_sums, part_logits
from tutor.model.cache import FullCache, Observation, Part
from tutor.model.llama import tiny_llama

COVERS = ("kvcache.full", "kvcache.random", "kvcache.window", "kvcache.sinks_window", "kvcache.h2o")

NAMES = [m.name for m in catalog.methods("kvcache") if m.build().evicts]
FLAGS = {name: catalog.get("kvcache", name).flags for name in NAMES}
N = 24

every = pytest.mark.parametrize("name", NAMES)
groups = pytest.mark.parametrize("group", [1, 3], ids=["G1", "G3"])
phases = pytest.mark.parametrize("prefill", [N, N // 2, 0], ids=["prefill", "both", "decode"])
budgets = pytest.mark.parametrize("extra", [0, 1, 6], ids=["least", "least+1", "least+6"])


# ---------------------------------------------------------------------------------------------------- what all promise
@every
@groups
@phases
@budgets
def test_heads_hold_the_budget_sorted_and_without_repeats(name, group, prefill, extra):
    policy = make(name)
    cache, _ = run(policy, policy.least + extra, draw(N, group=group), prefill=prefill)
    assert cache.seen == N
    for head in held(cache)[0]:
        assert len(head) == policy.least + extra
        assert all(a < b for a, b in pairwise(head)) and 0 <= head[0] <= head[-1] < N


@every
@pytest.mark.parametrize("heads", [2, 6], ids=["G1", "G3"])
def test_a_budget_of_the_whole_text_changes_no_bit(name, heads):
    model = tiny_llama(n_heads=heads, n_kv_heads=2)
    ids = torch.randint(0, 97, (1, N), generator=torch.Generator().manual_seed(1))
    found = []
    for cache in (FullCache(2), RaggedCache.for_model(model, make(name), N)):
        calls = [ids[:, :9], ids[:, 9:14], *ids[:, 14:].split(1, dim=1)]
        found.append(torch.cat([model.forward(call, cache=cache, attend=model.attend).logits for call in calls], 1))
    assert torch.equal(*found)


@every
@phases
def test_rows_keep_their_content(name, prefill):
    qkv = draw(N)
    policy = make(name)
    cache, _ = run(policy, policy.least + 3, qkv, prefill=prefill)
    rows = cache._rows(0)
    for h, positions in enumerate(held(cache)[0]):
        assert torch.equal(rows.v[0, h], qkv[2][0, h, positions])
        keys = qkv[1] if policy.rerotate else turn(qkv[1], torch.arange(N))
        assert torch.equal(rows.k[0, h], keys[0, h, positions])


@every
@phases
def test_protected_rows_stay(name, prefill, monkeypatch):
    policy, keeps = make(name), []
    choose = type(policy).choose
    monkeypatch.setattr(type(policy), "choose", lambda *args: keeps.append(choose(*args)) or keeps[-1])
    run(policy, policy.least + 3, draw(N), prefill=prefill)
    assert keeps
    for keep in keeps:
        assert keep.mask[torch.isposinf(keep.scores)].all()


@every
@phases
def test_the_same_run_twice_keeps_the_same_rows(name, prefill):
    policy = make(name)
    first, again = (run(policy, policy.least + 3, draw(N), prefill=prefill)[0] for _ in range(2))
    assert held(first) == held(again)


@every
@groups
def test_permuting_heads_permutes_what_they_keep(name, group):
    q, k, v = draw(N, kv_heads=3, group=group)
    order = torch.tensor([2, 0, 1])
    shuffled = (q.unflatten(1, (3, group))[:, order].flatten(1, 2), k[:, order], v[:, order])
    policy = make(name)
    plain, permuted = (held(run(policy, policy.least + 4, qkv, prefill=N // 2)[0])[0] for qkv in ((q, k, v), shuffled))
    if "lots" in FLAGS[name]:                     # lots belong to a head's place and see no content
        assert plain == permuted
    else:
        assert permuted == [plain[i] for i in order.tolist()]


@every
def test_storage_order_does_not_matter(name):
    g = torch.Generator().manual_seed(3)
    rows = Rows(torch.randn(1, 2, 9, 4, generator=g), torch.randn(1, 2, 9, 4, generator=g),
                torch.randperm(20, generator=g)[:18].view(1, 2, 9).to(torch.int32),
                state={"acc": torch.randint(0, 3, (1, 2, 9), generator=g).float()})
    order = torch.randperm(9, generator=g)
    other = Rows(rows.k[:, :, order], rows.v[:, :, order], rows.pos[..., order],
                 state={"acc": rows.state["acc"][..., order]})
    policy = make(name)
    observation = Observation(1, 4, None, None, None, [], None, None, "decode")
    kept = [r.pos.gather(-1, policy.choose(r, observation, 6).idx) for r in (rows, other)]
    assert torch.equal(*kept)


@every
@groups
def test_no_policy_holds_more_future_mass_than_the_oracle(name, group):
    q, k, v = draw(N, group=group)
    policy = make(name)
    cache, _ = run(policy, policy.least + 4, tuple(x[:, :, :16] for x in (q, k, v)), prefill=8)
    pos = torch.arange(N, dtype=torch.int32)
    future = probabilities(turn(q, pos)[:, :, 16:], turn(k, pos)[:, :, :16], pos[16:], pos[:16])
    mask = torch.zeros(1, 2, 16, dtype=torch.bool)
    for h, positions in enumerate(held(cache)[0]):
        mask[0, h, positions] = True
    best = oracle_keep(future, mask.sum(-1), pos[None, None, :16]).mask
    ours, top = (retained_mass(future, m).mean((0, 2)) for m in (mask, best))
    assert (ours >= 0).all() and (top.view(2, -1).mean(1) >= ours.view(2, -1).mean(1) - 1e-12).all()


@every
def test_a_batch_is_two_runs(name):
    policy, both = make(name), draw(N, batch=2)
    cache, out = run(policy, policy.least + 3, both, prefill=N // 2)
    for b in range(2):
        alone, expected = run(policy, policy.least + 3, tuple(x[b:b + 1] for x in both), prefill=N // 2)
        assert held(cache)[b] == held(alone)[0]
        torch.testing.assert_close(out[b:b + 1], expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 9), st.lists(st.integers(1, 5), min_size=1, max_size=10),
       st.integers(1, 3))
def test_the_budget_is_never_exceeded(name, extra, calls, interval):
    policy = make(name)
    budget, total = policy.least + extra, sum(calls)
    q, k, v = draw(total)
    cache = RaggedCache(policy, budget, 1, rotate=turn, interval=interval)
    done, alive = 0, [set(), set()]
    for new in calls:
        step(cache, *(x[:, :, done:done + new] for x in (q, k, v)), done)
        now = [set(head) for head in held(cache)[0]]
        for before, after in zip(alive, now):
            assert after <= before | set(range(done, done + new)), "a row came back from the dead"
        limit = budget + (interval - 1 if new == 1 else 0)
        assert int(cache.rows.max()) <= limit and cache.seen == done + new
        done, alive = done + new, now


@every
def test_a_budget_below_the_protected_rows_is_refused(name):
    policy = make(name)
    with pytest.raises(ValueError, match=rf"budget={policy.least - 1} is too small .*raise the budget"):
        RaggedCache(policy, policy.least - 1, 1, rotate=turn)


@every
def test_a_budget_is_asked_for(name):
    with pytest.raises(ValueError, match="budget is None"):
        RaggedCache(make(name), None, 1, rotate=turn)


# --------------------------------------------------------------------------------------------------- what each one says
def test_window_keeps_the_latest():
    assert held(run(make("window"), 3, draw(9), prefill=5)[0]) == [[[6, 7, 8], [6, 7, 8]]]


def test_sinks_and_window_keeps_both_ends():
    assert held(run(make("sinks_window", n_sink=2), 5, draw(9), prefill=5)[0])[0] == [[0, 1, 6, 7, 8]] * 2


def test_no_sinks_is_the_window():
    sinks, window = make("sinks_window", n_sink=0, rerotate=False), make("window")
    (a, x), (b, y) = run(sinks, 4, draw(12), prefill=3), run(window, 4, draw(12), prefill=3)
    assert held(a) == held(b) and torch.equal(x, y)


def test_h2o_by_hand():
    # Keys point along one of two axes, queries along the first: a row that is looked at weighs 3, the others 1.
    # Prefill of 4 rows, rows 0 and 2 looked at (weights 3 1 3 1); row i attends to 0..i:
    #   row 0: 1            row 1: 3/4 1/4            row 2: 3/7 1/7 3/7            row 3: 3/8 1/8 3/8 1/8
    #   acc  : 1 + 3/4 + 3/7 + 3/8 = 2.554   1/4 + 1/7 + 1/8 = 0.518   3/7 + 3/8 = 0.804   1/8
    # Budget 2, half of it recent: row 3 is the recent one, row 0 the heavy hitter.
    acc = [1 + 3 / 4 + 3 / 7 + 3 / 8, 1 / 4 + 1 / 7 + 1 / 8, 3 / 7 + 3 / 8, 1 / 8]
    q = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    q[..., 0] = 2 * torch.log(torch.tensor(3.0, dtype=torch.float64))         # the scale 1/sqrt(4) halves it
    k = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    k[0, 0, [0, 2], 0] = 1
    pos = torch.arange(4, dtype=torch.int32)
    lse = part_logits(q, Part(k, k, pos), pos).logsumexp(-1).flatten(1, 2)
    observation = Observation(0, 1, q, q, pos, [Part(k, k, pos)], lse, None, "prefill")
    torch.testing.assert_close(column_sums(observation)[0, 0], torch.tensor(acc, dtype=torch.float64))
    cache = RaggedCache(make("h2o"), 2, 1)
    cache.append(0, k, k, k, pos)
    cache.observe(0, observation)
    assert held(cache) == [[[0, 3]]]
    # the survivors keep their sums, in the policy's own column
    torch.testing.assert_close(cache._rows(0).state["acc"][0, 0], torch.tensor([acc[0], acc[3]]))


@groups
def test_h2o_sums_all_attention_since_the_start(group):
    q, k, v = draw(N, group=group)
    cache, _ = run(make("h2o"), N, (q, k, v), prefill=7)
    pos = torch.arange(N, dtype=torch.int32)
    a = probabilities(turn(q, pos), turn(k, pos), pos, pos)
    expected = a.unflatten(1, (2, group)).mean(2).sum(2)
    torch.testing.assert_close(cache._rows(0).state["acc"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(expected.sum(-1), torch.full((1, 2), float(N), dtype=torch.float64))   # one each query


def test_h2o_forgets_the_sum_of_an_evicted_row():
    cache, _ = run(make("h2o"), 4, draw(N), prefill=0)
    acc = cache._rows(0).state["acc"]
    assert acc.shape == (1, 2, 4) and (acc > 0).all()
    newest = acc[..., -1]
    assert (newest <= 1).all()                    # the newest row has been attended by one query only: itself


def test_blocks_of_queries_do_not_change_column_sums():
    q, k, _ = draw(11)
    pos = torch.arange(11, dtype=torch.int32)
    part = Part(turn(k, pos), k, pos)
    lse = part_logits(turn(q, pos), part, pos).logsumexp(-1).flatten(1, 2)
    observation = Observation(0, 1, turn(q, pos), q, pos, [part], lse, None, "prefill")
    torch.testing.assert_close(column_sums(observation, block=3), column_sums(observation), rtol=1e-12, atol=0)


def test_lots_are_fair_and_depend_on_every_number():
    pos = torch.arange(20_000)
    lots = lot(0, 3, torch.tensor(1), pos)
    assert 0 <= lots.min() and lots.max() < 1
    assert abs(lots.mean() - 0.5) < 0.01 and abs(lots.var() - 1 / 12) < 0.002          # 4 standard errors and more
    assert abs(torch.corrcoef(torch.stack([lots[:-1], lots[1:]]))[0, 1]) < 0.03
    for other in (lot(1, 3, torch.tensor(1), pos), lot(0, 2, torch.tensor(1), pos), lot(0, 3, torch.tensor(2), pos)):
        assert abs(torch.corrcoef(torch.stack([lots, other]))[0, 1]) < 0.03


def test_random_keeps_a_fair_sample_whenever_rows_arrive():
    # one prefill, or row by row: the same lots, so the same survivors
    assert held(run(make("random"), 6, draw(N), prefill=N)[0]) == held(run(make("random"), 6, draw(N), prefill=0)[0])


@pytest.mark.parametrize("name, params, message", [
    ("sinks_window", {"n_sink": -1}, "n_sink must be >= 0; got -1"),
    ("h2o", {"recent": 1.0}, r"recent must be in \[0, 1\)"),
])
def test_parameters_out_of_range_are_named(name, params, message):
    with pytest.raises(ValueError, match=message):
        make(name, **params)
