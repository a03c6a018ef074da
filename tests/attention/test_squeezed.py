"""Squeezed Attention: what a centroid says of its keys, one threshold for all, one level or two."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.museum.attention.squeezed import estimate_without_sizes, two_flat_lookups, window_is_kept
from tutor.attention.dense import attend, probs
from tutor.attention.methods.squeezed import Index, Squeezed, build, calibrate, estimate, keys_of, lookup, scores
from tutor.attention.methods.squeezed_hierarchical import SqueezedHierarchical
from tutor.attention.selection import attend_selected

COVERS = ("attention.squeezed", "attention.squeezed_hierarchical")


def make(s=90, t=12, d=8, hq=4, hkv=2, b=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    topics = torch.randn(b, hkv, 1 + s // 10, d, generator=g).repeat_interleave(10, 2)[:, :, :s]     # ten keys share one
    k = torch.randn(b, hkv, s, d, generator=g) + 2 * topics
    return torch.randn(b, hq, t, d, generator=g) * 2, k


def by_hand(logits: list[float], counts: list[int], labels: list[int], window: int = 1) -> tuple[torch.Tensor, Index]:
    """A query 1 and an index whose centroids have these logits for it."""
    index = Index(torch.tensor(logits).reshape(1, 1, -1, 1), torch.tensor(labels).reshape(1, 1, -1),
                  torch.tensor(counts).reshape(1, 1, -1), window, torch.ones(1, 1, 1, 1))
    return torch.ones(1, 1, 1, 1), index


# ------------------------------------------------------------------------------------------------------- the estimate

def test_the_estimate_by_hand():
    # Two clusters of 3 and 1 keys, exp(logit) = 1 and 5: the denominator is 3 * 1 + 1 * 5 = 8, so e = 1/8 and 5/8.
    q, index = by_hand([0.0, math.log(5)], [3, 1], [0, 0, 1, 0])
    log_e, dots = scores(index, q)
    torch.testing.assert_close(log_e.exp().flatten(), torch.tensor([1 / 8, 5 / 8], dtype=torch.float64), rtol=0, atol=1e-7)
    assert dots == 2
    assert lookup(index, q, 0.2)[0].flatten().tolist() == [False, True]
    assert lookup(index, q, 0.1)[0].flatten().tolist() == [True, True]


def test_without_the_sizes_the_large_cluster_is_overrated():
    q, index = by_hand([0.0, math.log(5)], [35, 1], [0] * 35 + [1])
    counts = index.counts[:, :, None]
    assert estimate(q, index.centroids, counts).exp().flatten()[1] == pytest.approx(5 / 40)      # 35 * 1 + 1 * 5 = 40
    assert estimate_without_sizes(q, index.centroids, counts).exp().flatten()[1] == pytest.approx(5 / 6)


def test_with_a_cluster_for_every_key_the_estimate_is_the_softmax():
    q, k = make()
    index = build(k, q, window=10, frac=1.0)
    log_e, dots = scores(index, q)
    assert (index.counts == 1).all() and dots == 4 * 12 * 80
    exact = probs(q, k[:, :, :80], causal=False)
    mine = log_e.exp().gather(3, index.labels.repeat_interleave(2, 1)[:, :, None].expand(-1, -1, 12, -1))
    torch.testing.assert_close(mine, exact, rtol=0, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), frac=st.floats(0.02, 1), low=st.floats(0, 1), high=st.floats(0, 1))
def test_shares_add_to_one_and_a_lower_threshold_keeps_more(seed, frac, low, high):
    q, k = make(s=60, t=3, d=4, seed=seed)
    index = build(k, q, window=5, frac=frac)
    e = scores(index, q)[0].exp()
    total = (e * index.counts.repeat_interleave(2, 1)[:, :, None]).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    few, many = (lookup(index, q, t)[0] for t in (max(low, high), min(low, high)))
    assert (many | ~few).all()


def test_the_names_of_clusters_do_not_matter():
    q, k = make()
    index = build(k, q, window=10, frac=0.2)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    renamed = replace(index, centroids=index.centroids[:, :, order], counts=index.counts[:, :, order],
                      labels=order.argsort()[index.labels])
    (t,) = calibrate([index], 0.6)
    assert calibrate([renamed], 0.6)[0] == pytest.approx(t)
    pos = torch.arange(78, 90)
    of = lambda i: keys_of(i, lookup(i, q, t * 1.0001)[0], pos, 90)
    assert torch.equal(of(index), of(renamed))


def test_an_empty_cluster_says_nothing():
    q, index = by_hand([0.0, 50.0, 1.0], [2, 0, 1], [0, 0, 2])
    log_e, dots = scores(index, q)
    assert log_e.flatten()[1] == float("-inf") and dots == 2
    assert log_e.exp().flatten()[[0, 2]].isfinite().all() and not lookup(index, q, 0.0)[0].flatten()[1]


def test_large_logits_do_not_overflow():
    q, k = make()
    assert scores(build(k, q * 1e3, window=10), q * 1e3)[0].isfinite().all()


# -------------------------------------------------------------------------------------------------------- clustering

def test_directions_are_clustered_and_lengths_are_averaged():
    # Two directions; the keys of the first have lengths 1 and 9: one cluster, with the mean of both, (5, 0).
    k = torch.tensor([[1.0, 0], [9, 0], [0, 2], [0, 4], [0, 3], [5, 5]]).reshape(1, 1, 6, 2)
    index = build(k, k[:, :, :1], window=1, frac=0.4)
    first, second = index.labels[0, 0, 0], index.labels[0, 0, 2]
    assert index.labels[0, 0].tolist() == [first, first, second, second, second] and first != second
    assert index.centroids[0, 0, first].tolist() == [5, 0] and index.centroids[0, 0, second].tolist() == [0, 3]
    assert index.counts[0, 0, first] == 2 and index.counts[0, 0, second] == 3


@pytest.mark.parametrize("frac, clusters", [(0.05, 4), (0.5, 40), (0.001, 1)])
def test_the_number_of_clusters(frac, clusters):
    q, k = make()
    index = build(k, q, window=10, frac=frac)
    assert index.counts.shape == (1, 2, clusters) and (index.counts.sum(-1) == 80).all()
    # centroids of 2 heads, 8 wide, 4 bytes; a label for 80 keys and a count for each cluster, 4 bytes each
    assert index.cost["index_bytes"] == 2 * (clusters * 8 * 4 + 80 * 4 + clusters * 4)


def test_a_group_is_the_mean_of_all_keys_below_it():
    q, k = make()
    index = build(k, q, window=10, frac=0.3, coarse_frac=0.05)
    assert index.coarse.counts.shape == (1, 2, 4) and torch.equal(index.coarse.labels, index.parents.gather(2, index.labels))
    for head in range(2):
        for group in range(4):
            mine = index.coarse.labels[0, head] == group
            assert index.coarse.counts[0, head, group] == mine.sum()
            torch.testing.assert_close(index.coarse.centroids[0, head, group], k[0, head, :80][mine].mean(0))


# ------------------------------------------------------------------------------------------------------- calibration

@pytest.mark.parametrize("p", [0.5, 0.7, 0.9])
def test_the_threshold_leaves_out_the_share_it_was_asked_for(p):
    q, k = make(s=400, t=20)
    index = build(k, q, window=20, frac=0.3)
    (t,) = calibrate([index], p)
    kept, _ = lookup(index, q, t, question=20)
    left_out = 1 - float((kept[:, :, 0] * index.counts.repeat_interleave(2, 1)).sum() / (4 * 380))
    assert p - 1e-6 <= left_out <= p + float(index.counts.max()) / (4 * 380)


def test_one_threshold_lets_heads_differ():
    """A sharp layer and a flat one together: the share is met over both, the sharp one reads less."""
    q, k = make(s=400, t=20)
    both = [build(k, q * 3, window=20, frac=0.3), build(k, q * 0.1, window=20, frac=0.3)]
    (t,) = calibrate(both, 0.5)
    read = [float((lookup(i, i.observed, t, question=20)[0][:, :, 0] * i.counts.repeat_interleave(2, 1)).sum() / (4 * 380))
            for i in both]
    assert read[0] < 0.3 and read[1] > 0.6 and sum(read) / 2 == pytest.approx(0.5, abs=0.03)


def test_the_ends_of_the_scale():
    q, k = make(t=30)
    full = Squeezed(window=20, threshold=0.0).select(q, k)[0]
    v = torch.randn(1, 2, 90, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(attend_selected(q, k, v, full).o, attend(q, k, v).o)
    none = Squeezed(window=20, threshold=1.0).select(q, k)[0]          # no share exceeds 1: window and what follows
    assert none.counts()[0, 0, -10:].tolist() == [20 + i for i in range(9)] + [29]     # the prefix ends at 81
    assert Squeezed(sparsity=1.0, window=20).thresholds(Squeezed(window=20).index(q, k))[0] < 1


# ------------------------------------------------------------------------------------------------------- the look-up

def test_the_window_and_what_follows_are_always_read():
    q, index = by_hand([0.0, 0.0], [1, 2], [0, 1, 1], window=2)                   # keys 0-2 clustered, 3-4 window
    mask = keys_of(index, torch.tensor([[[[False, True]]]]), torch.tensor([6]), 8)
    assert mask.flatten().tolist() == [False, True, True, True, True, True, True, True]        # key 7 is cut by the mask
    mask = keys_of(index, torch.tensor([[[[False, False]]]]), torch.tensor([6]), 8, sinks=1)
    assert mask.flatten().tolist() == [True, False, False, True, True, True, True, True]
    assert window_is_kept(0.001, queries=100) and not window_is_kept(0.001, queries=2000)


def test_a_query_inside_the_prefix_counts_the_keys_before_it():
    _, index = by_hand([0.0, math.log(5)], [3, 1], [0, 0, 1, 0])
    assert index.visible(torch.tensor([-1, 0, 1, 2, 3, 9]))[0, 0].tolist() == [[0, 0], [1, 0], [2, 0], [2, 1], [3, 1], [3, 1]]
    # At position 2 it sees two keys of cluster 0 and one of cluster 1: e = 1 / 7 and 5 / 7.
    e = scores(index, torch.ones(1, 1, 1, 1), pos_q=torch.tensor([2]))[0].exp().flatten()
    torch.testing.assert_close(e, torch.tensor([1 / 7, 5 / 7], dtype=torch.float64), rtol=0, atol=1e-7)


def test_the_tokens_of_a_question_ask_together():
    q, k = make(t=30)
    method = Squeezed(sparsity=0.6, window=20, frac=0.3)
    index = method.index(q, k)
    rows = q[:, :, -6:]
    mean = scores(index, rows)[0].exp().mean(2, keepdim=True)
    together = scores(index, rows, question=6)[0].exp()
    torch.testing.assert_close(together, mean.expand_as(together))
    per_kv = scores(index, rows, share_heads=True)[0].exp()
    torch.testing.assert_close(per_kv[:, 0], scores(index, rows)[0].exp()[:, :2].mean(1))
    assert torch.equal(per_kv[:, 0], per_kv[:, 1]) and not torch.equal(per_kv[:, 1], per_kv[:, 2])
    kept = replace(method, question=6).select(rows, k, index=index)[0].mask()
    assert (kept[:, :, 0] == kept[:, :, 5])[..., :80].all()


def test_a_query_head_asks_the_clusters_of_its_own_kv_head():
    q, k = make(t=30)
    method = Squeezed(sparsity=0.6, window=20, frac=0.3)
    copied, _ = method.select(q, k.repeat_interleave(2, 1))
    assert torch.equal(method.select(q, k)[0].mask(), copied.mask())


def test_a_kept_index_answers_decoding_steps():
    q, k = make(t=30)
    method = Squeezed(sparsity=0.6, window=20, frac=0.3)
    whole, cost = method.select(q, k)
    index = method.index(q, k)
    last, again = method.select(q[:, :, -1:], k, index=index)
    assert torch.equal(last.mask()[:, :, 0], whole.mask()[:, :, -1])
    assert cost["build_dots"] > 0 and again["build_dots"] == 0 == again["index_bytes"]
    assert again["scored"] == 4 * index.counts.shape[2]


def test_a_short_text_is_read_whole():
    q, k = make(s=30, t=5)
    assert Squeezed(window=40).select(q, k)[0].nnz == 4 * (26 + 27 + 28 + 29 + 30)


# ------------------------------------------------------------------------------------------------------- two levels

def test_with_nothing_dropped_above_two_levels_are_one():
    q, k = make(s=200, t=30)
    index = build(k, q, window=20, frac=0.2, coarse_frac=0.05)
    (t,) = calibrate([index], 0.7)
    flat, two = lookup(index, q, t), lookup(index, q, 0.0, t)
    assert torch.equal(flat[0], two[0]) and two[1] == flat[1] + 4 * 30 * 9


def test_two_levels_by_hand():
    # Groups: {0, 1} with 1 + 1 keys, exp(logit) 1; {2} with 2 keys, exp(logit) 3: e = 1 / 8, 3 / 8. T1 = 0.2 drops the first.
    # Below: cluster 2 alone is left, e = 1 / 2. A flat look-up would say 3 / (1 + 1 + 2 * 3) = 3 / 8.
    q, index = by_hand([0.0, 0.0, math.log(3)], [1, 1, 2], [0, 1, 2, 2])
    _, top = by_hand([0.0, math.log(3)], [2, 2], [0, 0, 1, 1])
    index = replace(index, coarse=top, parents=torch.tensor([[[0, 0, 1]]]))
    kept, dots = lookup(index, q, 0.2, 0.4)
    assert kept.flatten().tolist() == [False, False, True] and dots == 2 + 1
    assert not lookup(index, q, 0.4)[0].any()                                      # the flat share is below 0.4
    assert not lookup(index, q, 0.2, 0.5)[0].any()                                 # and this one not above 0.5


def test_two_levels_leave_out_the_share_they_were_asked_for():
    q, k = make(s=600, t=20)
    index = build(k, q, window=20, frac=0.3, coarse_frac=0.1)
    top, t = calibrate([index], 0.5, 0.8)
    kept, dots = lookup(index, q, top, t, question=20)
    left_out = 1 - float((kept[:, :, 0] * index.counts.repeat_interleave(2, 1)).sum() / (4 * 580))
    assert 0.8 - 1e-6 <= left_out <= 0.8 + float(index.counts.max()) / (4 * 580)
    assert dots < lookup(index, q, t)[1]
    assert not torch.equal(two_flat_lookups(index, q, top, 0.8), lookup(index, q, top, t)[0])


def test_the_two_level_selector_reads_what_its_look_up_keeps():
    q, k = make(s=200, t=60)
    method = SqueezedHierarchical(sparsity=0.8, coarse_sparsity=0.5, window=20, frac=0.2, coarse_frac=0.05)
    index = method.index(q, k)
    kept, dots = lookup(index, q[:, :, -5:], *method.thresholds(index))
    sel, cost = method.select(q[:, :, -5:], k, index=index)
    assert torch.equal(sel.mask()[..., :160], keys_of(index, kept, sel.pos, 200)[..., :160]) and cost["scored"] == dots
    assert method.thresholds(index) == calibrate([index], 0.5, 0.8) and method.thresholds(index)[0] > 0


# ------------------------------------------------------------------------------------------------------------ errors

@pytest.mark.parametrize("make_it, message", [
    (lambda q, k: build(k, q, window=90), "nothing is left to cluster"),
    (lambda q, k: build(k, q, frac=0.0, window=9), r"frac must be in \(0, 1\]; got 0.0"),
    (lambda q, k: build(k, q, frac=0.5, coarse_frac=1.5, window=9), r"coarse_frac must be in \(0, 1\]; got 1.5"),
    (lambda q, k: Squeezed(share=0.0), "share must be in"), (lambda q, k: Squeezed(frac=1.2), "frac must be in"),
    (lambda q, k: Squeezed(sparsity=1.1), r"sparsity must be in \[0, 1\]; got 1.1"),
    (lambda q, k: Squeezed(window=0), "window must be >= 1"), (lambda q, k: Squeezed(sinks=-1), "sinks must be >= 0"),
    (lambda q, k: Squeezed(threshold=-0.1), "threshold must be >= 0"),
    (lambda q, k: SqueezedHierarchical(coarse_frac=0.2), "coarse_frac must be in"),
    (lambda q, k: SqueezedHierarchical(sparsity=0.3, coarse_sparsity=0.5), "coarse_sparsity must be in"),
    (lambda q, k: SqueezedHierarchical(threshold=0.1), "give both threshold and coarse_threshold"),
    (lambda q, k: calibrate([build(k, q, window=9)], 2.0), r"sparsity must be in \[0, 1\]; got 2.0"),
    (lambda q, k: lookup(build(k, q, window=9), q, 0.1, 0.2), "one threshold for each level"),
    (lambda q, k: Squeezed(window=10).select(q[:, :, -1:], k), "calibration needs queries at positions 71 to 80"),
], ids=str)
def test_impossible_requests_are_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it(*make())
