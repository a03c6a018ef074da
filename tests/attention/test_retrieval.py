"""RetrievalAttention: what it keeps at hand, what it fetches, and that nobody learns from the future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.museum.attention import retrieval as museum
from tutor.ann import roargraph
from tutor.ann.graph import reachable
from tutor.ann.roargraph import FREE, Neighbours
from tutor.attention.dense import attend, causal_mask, logits
from tutor.attention.methods.retrieval import KeyIndex, Retrieval, ood_report
from tutor.attention.partial import merge
from tutor.attention.selection import Selection, attend_selected, mass_recall, top_k
from tutor.trace import Recorder

COVERS = ("attention.retrieval",)
SMALL = Retrieval(k=6, ef=12, sinks=4, window=8, neighbours=8, degree=6, beam=16, refresh=32)


def text(S: int = 160, d: int = 8, seed: int = 0, whole: bool = False, B: int = 1):
    """q, k, v of two KV heads with two query heads each; queries lie off the keys."""
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(B, 4, S, d, generator=g) * 2 + 1, torch.randn(B, 2, S, d, generator=g)
    return (q.round() if whole else q), (k.round() if whole else k), torch.randn(B, 2, S, 5, generator=g)


def rows(sel: Selection, head: int = 0) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in sel.mask()[0, head]]


# --- by hand

def test_paper_and_pencil():
    """One sink, a window of one. Scores 0 3 9 1 2 for a query of 1 at position 4: static 0 and 4, retrieved the best of
    1 to 3, which is 2 (score 9); with k = 2, also 1 (score 3). A query of -1 prefers 3 (score -1)."""
    k = torch.tensor([0.0, 3, 9, 1, 2]).reshape(1, 1, 5, 1)
    one = torch.ones(1, 1, 1, 1)
    small = Retrieval(k=1, ef=3, sinks=1, window=1)
    assert rows(small.select(one, k)[0]) == [[0, 2, 4]]
    assert rows(small.select(-one, k)[0]) == [[0, 3, 4]]
    assert rows(replace(small, k=2).select(one, k)[0]) == [[0, 1, 2, 4]]
    sel, cost = small.select(torch.ones(1, 1, 5, 1), k)           # rows 0 and 1 have an empty index: static alone
    assert rows(sel) == [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 2, 4]]
    assert cost["scored"] == 0 + 0 + 1 + 2 + 3


def test_what_a_query_could_retrieve():
    small = Retrieval(k=1, ef=1, sinks=4, window=8)
    assert [int(small.outside(p)) for p in (0, 10, 11, 12, 20)] == [0, 0, 0, 1, 9]


# --- what must always hold

@settings(max_examples=12, deadline=None)
@given(S=st.integers(1, 90), k=st.integers(1, 9), sinks=st.integers(0, 5), window=st.integers(1, 12),
       refresh=st.sampled_from([8, 32]), seed=st.integers(0, 99))
def test_static_keys_are_there_and_the_rest_is_k(S, k, sinks, window, refresh, seed):
    method = Retrieval(k=k, ef=k + 20, sinks=sinks, window=window, neighbours=4, degree=4, beam=16, refresh=refresh)
    q, key, _ = text(S, seed=seed)
    sel, cost = method.select(q, key)
    static, retrieved = method.split(sel, q, key)
    near = causal_mask(sel.pos, S) & ((torch.arange(S) < sinks) | (torch.arange(S) > sel.pos[:, None] - window))
    assert torch.equal(static.mask(), near.expand(1, 4, S, S))
    most = torch.as_tensor(np.minimum(method.outside(sel.pos.numpy()), k))
    assert (retrieved.counts() <= most).all() and retrieved.counts().float().mean() >= 0.97 * most.float().mean()
    assert not (static.mask() & retrieved.mask()).any()
    assert cost["loaded"] == static.nnz + retrieved.nnz and cost["scored"] >= retrieved.nnz


def test_a_beam_that_holds_all_is_exact_where_all_is_in_reach():
    q, k, _ = text()
    everything = replace(SMALL, ef=160)
    pos, key = torch.arange(160)[:, None], torch.arange(160)
    outside = (key >= SMALL.sinks) & (key <= pos - SMALL.window)
    best = top_k(torch.where(outside, logits(q, k), float("-inf")), SMALL.k)
    found = everything.split(everything.select(q, k)[0], q, k)[1].mask()
    assert (best == found).all(-1).float().mean() > 0.95          # a key admitted since the last repair may be cut off
    for p in (63, 100, 159):                                       # right after a lesson nothing is
        index, now = everything.prefill(q[:, :, :p + 1], k[:, :, :p + 1]), slice(p, p + 1)
        sel, _ = everything.select(q[:, :, now], k, pos_q=torch.tensor([p]), index=index)
        assert torch.equal(everything.split(sel, q[:, :, now], k)[1].mask()[:, :, 0], best[:, :, p])


def test_the_merge_of_both_parts_is_attention_over_the_selection():
    q, k, v = (x.double() for x in text())
    sel, _ = SMALL.select(q, k)
    part, want = SMALL.attend(q, k, v), attend_selected(q, k, v, sel)
    torch.testing.assert_close(part.o, want.o, rtol=0, atol=1e-12)
    torch.testing.assert_close(part.lse, want.lse, rtol=0, atol=1e-12)


def test_all_keys_retrieved_are_dense_attention():
    q, k, v = (x.double() for x in text(60))
    every = replace(SMALL, k=60, ef=60, refresh=1)
    part, truth = every.attend(q, k, v), attend(q, k, v)
    torch.testing.assert_close(part.o, truth.o, rtol=0, atol=1e-12)
    torch.testing.assert_close(part.lse, truth.lse, rtol=0, atol=1e-12)


def test_nothing_later_changes_what_a_row_reads():
    q, k, _ = text()
    before = SMALL.select(q, k)[0].mask()
    for p in (40, 64, 97):
        other_q, other_k = q.clone(), k.clone()
        other_q[:, :, p:], other_k[:, :, p:] = -3 * q[:, :, p:].flip(2), 2 * k[:, :, p:].flip(2)
        assert torch.equal(SMALL.select(other_q, other_k)[0].mask()[:, :, :p], before[:, :, :p])


def test_a_query_does_not_learn_from_itself_or_from_its_neighbours_of_the_hour():
    q, k, _ = text()
    before, other = SMALL.select(q, k)[0].mask(), q.clone()
    other[:, :, 101] *= -1                                         # inside the lesson 96 to 127
    after = SMALL.select(other, k)[0].mask()
    same = (before == after).all(-1)
    assert same[:, :, :101].all() and same[:, :, 102:128].all() and not same[:, :, 101].all()
    assert not same[:, :, 128:].all()                              # from the next lesson on, it has been learned from


def test_a_lesson_names_keys_that_the_query_itself_could_retrieve(monkeypatch):
    """No sinks, a window of one: the query at p could retrieve keys 0 to p - 1, of scores 0 3 9 1; the two best are named."""
    named = []
    monkeypatch.setattr(roargraph, "project", lambda X, top, *rest: named.extend(top.tolist()) or 0)
    k = torch.tensor([0.0, 3, 9, 1, 2]).reshape(1, 1, 5, 1)
    Retrieval(k=1, ef=1, sinks=0, window=1, neighbours=2, refresh=5, fast=False).prefill(torch.ones(1, 1, 5, 1), k)
    assert named == [[FREE, FREE], [0, FREE], [1, 0], [2, 1], [2, 1]]


def test_learning_from_queries_helps_them():
    """Queries point along two directions in which keys hardly differ: the same search, with and without lessons."""
    g = torch.Generator().manual_seed(1)
    wide = torch.cat([torch.full((2,), 0.3), torch.full((10,), 1.5)])
    k, q = torch.randn(1, 1, 600, 12, generator=g) * wide, torch.randn(1, 1, 600, 12, generator=g) * (1.8 - wide) * 3
    small = replace(SMALL, k=10, ef=10, window=16)
    last = torch.arange(512, 600)
    taught = mass_recall(q[:, :, last], k, small.select(q, k)[0].take(last)).mean()
    alone = mass_recall(q[:, :, last], k, small.select(q[:, :, last], k, pos_q=last)[0]).mean()
    assert taught > alone + 0.02


# --- decoding

def test_decoding_step_by_step_reads_what_a_prefill_reads():
    q, k, _ = text()
    whole, _ = SMALL.select(q, k)
    index = SMALL.prefill(q[:, :, :128], k[:, :, :128])
    for p in range(128, 160):
        one, cost = SMALL.select(q[:, :, p:p + 1], k[:, :, :p + 1], index=index)
        assert torch.equal(one.mask()[0, :, 0], whole.mask()[0, :, p, :p + 1])
        assert 0 < cost["build_dots"] < 4 * 40 * 200 and cost["index_bytes"] == index.nbytes > 0


def test_rows_in_one_call_read_what_rows_in_turn_read():
    q, k, _ = text()
    late, pos = slice(130, 160, 7), torch.arange(130, 160, 7)
    together, _ = SMALL.select(q[:, :, late], k, pos_q=pos, index=SMALL.prefill(q[:, :, :128], k[:, :, :128]))
    index = SMALL.prefill(q[:, :, :128], k[:, :, :128])
    apart = [SMALL.select(q[:, :, p:p + 1], k, pos_q=torch.tensor([p]), index=index)[0].mask() for p in pos.tolist()]
    assert torch.equal(together.mask(), torch.cat(apart, 2))


def test_an_index_refuses_what_it_cannot_answer():
    q, k, _ = text()
    index = SMALL.prefill(q, k)
    with pytest.raises(ValueError, match="which position 100 reads in its window; ask in order of position"):
        SMALL.select(q[:, :, :1], k, pos_q=torch.tensor([100]), index=index)
    with pytest.raises(ValueError, match=r"the index was made by .*Make one with prefill\(\)"):
        replace(SMALL, window=9).select(q[:, :, -1:], k, index=index)
    with pytest.raises(ValueError, match=r"for \(B, Hq\) = \(1, 4\)"):
        SMALL.select(q[:, :2, -1:], k, index=index)
    replace(SMALL, k=3, ef=40).select(q[:, :, -1:], k, index=index)      # another search on the same wiring


# --- the index

def test_the_graph_is_clean_and_all_is_in_reach():
    q, k, _ = text(seed=3)
    for head in SMALL.prefill(q, k).graphs:
        assert head.size == SMALL.outside(159) and (head.table[head.size:] == FREE).all()
        adj = list(Neighbours(head.table[:head.size]))
        assert reachable(adj, head.entry, head.size).all()
        for i, row in enumerate(head.table[:head.size]):
            used = row[row != FREE]
            assert i not in used and len(set(used.tolist())) == len(used) and used.max(initial=0) < head.size


def test_the_compiled_graph_and_the_plain_one_agree():
    q, k, _ = text(100, whole=True)
    fast, slow = (replace(SMALL, fast=f).select(q, k) for f in (True, False))
    assert torch.equal(fast[0].mask(), slow[0].mask()) and fast[1] == slow[1]


def test_each_query_head_has_a_graph_of_its_own_and_batches_do_not_mix():
    q, k, v = text(B=2)
    both, _ = SMALL.select(q, k)
    for b in range(2):
        alone, _ = SMALL.select(q[b:b + 1], k[b:b + 1])
        assert torch.equal(both.mask()[b], alone.mask()[0])
    index = KeyIndex.empty(SMALL, q, k)
    assert len(index.graphs) == 8 and index.nbytes == 0
    sel, cost = SMALL.select(q, k, trace=(recorder := Recorder("attention.grid/1", method="retrieval")))
    assert torch.equal(sel.mask(), both.mask()) and recorder.step == 160


# --- out of distribution

def test_queries_far_from_the_keys_are_reported_as_far():
    g = torch.Generator().manual_seed(0)
    k = torch.randn(1, 1, 2000, 16, generator=g)
    near, far = torch.randn(1, 1, 300, 16, generator=g), 5 * torch.randn(1, 1, 300, 16, generator=g)
    at_home, abroad = ood_report(torch.cat([near, far], 1), k)
    assert at_home.keys == abroad.keys and abs(at_home.keys - 4) < 0.2      # |x| of 16 normal numbers: about 4
    assert abs(at_home.ratio - 1) < 0.05 and abs(abroad.ratio - 5) < 0.3
    assert at_home.spread_queries > at_home.spread_keys


def test_the_distance_does_not_change_with_the_scale_of_an_axis():
    q, k, _ = text(400)
    stretch = torch.tensor([1.0, 10, 0.1, 1, 1, 3, 1, 1])
    plain, bent = ood_report(q, k, top=20, ridge=0), ood_report(q * stretch, k * stretch, top=20, ridge=0)
    for a, b in zip(plain, bent):
        assert a.queries == pytest.approx(b.queries, rel=1e-4) and a.keys == pytest.approx(b.keys, rel=1e-4)


# --- merges that go wrong

def test_the_museum_pieces_are_wrong():
    q, k, v = (x.double() for x in text(80))
    sel, _ = SMALL.select(q, k)
    static, retrieved = SMALL.split(sel, q, k)
    parts = [attend_selected(q, k, v, part) for part in (static, retrieved)]
    right = merge(*parts).o
    assert (museum.merge_by_average(*parts) - right)[:, :, 40:].abs().max() > 0.1
    assert torch.isinf(museum.lse_without_maximum(torch.tensor([89.0, 1.0]))) and torch.tensor([89.0, 1.0]).logsumexp(-1) < 90
    row, both = logits(q, k)[0, 0, 79], sel.mask()[0, 0, 79]
    near, fetched = static.mask()[0, 0, 79], retrieved.mask()[0, 0, 79]
    assert torch.allclose(museum.merge_overlapping(near, fetched, row, v[0, 0]), right[0, 0, 79])
    assert not torch.allclose(museum.merge_overlapping(both, fetched, row, v[0, 0]), right[0, 0, 79])
    shifted = k[0, 0] + 20
    named = {j for i in range(80) for j in museum.nearest_by_inner_product(shifted, i, 3)}
    assert len(named) < 12                                         # 80 keys name a dozen among them


@pytest.mark.parametrize("bad, message", [
    (dict(k=0), "k must be >= 1; got 0"), (dict(k=9, ef=8), "ef must be >= 9; got 8"), (dict(sinks=-1), "sinks must be >= 0"),
    (dict(window=0), "window must be >= 1"), (dict(refresh=0), "refresh must be >= 1"), (dict(degree=0), "degree must be >= 1"),
], ids=["k", "ef", "sinks", "window", "refresh", "degree"])
def test_impossible_settings_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Retrieval(**bad)


def test_bad_tensors_are_refused():
    q, k, _ = text(20)
    k[0, 0, 3] = float("nan")
    with pytest.raises(ValueError, match="k holds NaN or infinity"):
        SMALL.select(q, k)
    with pytest.raises(ValueError, match="at least 2 top = 200 keys"):
        ood_report(*text(20)[:2])
