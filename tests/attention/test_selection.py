"""Selections: built, validated, attended to and judged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.dense import attend, probs
from tutor.attention.partial import merge
from tutor.attention.selection import (
    Selection,
    attend_selected,
    finish,
    mass_recall,
    output_error,
    split,
    top_k,
    topk_recall,
)
from tutor.trace import Recorder

COVERS = ("attention.dense", "attention.window", "attention.streaming", "attention.oracle_topk",
          "attention.oracle_topp", "attention.random_k")


def make(seed=0, b=2, hq=4, hkv=2, t=5, s=9, d=4, dv=3):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(b, h, n, w, generator=g) for h, n, w in ((hq, t, d), (hkv, s, d), (hkv, s, dv)))
    return q, k, v, torch.rand(b, hq, t, s, generator=g) < 0.4


def test_by_hand():
    # T = 2 rows at positions 1 and 2 of S = 3 keys. Asked: {0, 2} and {0, 2}; key 2 lies beyond row 0 and is cut.
    q, k = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 3, 4)
    mask = torch.tensor([[True, False, True], [True, False, True]])
    sel = Selection.from_mask(mask, q, k)
    assert sel.indptr.tolist() == [0, 1, 3] and sel.indices.tolist() == [0, 0, 2] and sel.nnz == 3
    assert sel.counts().tolist() == [[[1, 2]]]
    assert torch.equal(sel.indices, Selection.from_rows([[2, 0], [2, 0]], q, k).indices)
    _, cost = finish(sel, scored=7)
    assert (cost["loaded"], cost["pairs"], cost["scored"]) == (3, 5, 7)           # 2 + 3 causal pairs


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), t=st.integers(1, 6), s=st.integers(1, 12), causal=st.booleans())
def test_attending_to_a_selection_is_dense_attention_under_its_mask(seed, t, s, causal):
    q, k, v, mask = make(seed, t=t, s=s)
    sel = Selection.from_mask(mask, q, k, causal=causal)
    part, want = attend_selected(q, k, v, sel, causal=causal), attend(q, k, v, mask=mask, causal=causal)
    torch.testing.assert_close(part.o, want.o, rtol=0, atol=1e-12)
    torch.testing.assert_close(part.lse, want.lse, rtol=0, atol=1e-12)


def test_batches_of_rows_give_the_same(monkeypatch):
    q, k, v, mask = make(t=9)
    sel = Selection.from_mask(mask, q, k)
    whole = attend_selected(q, k, v, sel)
    monkeypatch.setattr("tutor.attention.selection.GATHER", 12)
    torch.testing.assert_close(attend_selected(q, k, v, sel).o, whole.o, rtol=0, atol=1e-14)


def test_rows_by_position_and_steep_logits():
    q, k, v, mask = make(t=3)
    rows = torch.tensor([7, 0, 4])
    sel = Selection.from_mask(mask, q, k, pos_q=rows)
    part, want = attend_selected(q * 1e3, k, v, sel), attend(q * 1e3, k, v, mask=mask, pos_q=rows)
    torch.testing.assert_close(part.o, want.o, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), bq=st.integers(1, 5), bk=st.integers(1, 5))
def test_blocks_become_the_tokens_they_cover(seed, bq, bk):
    q, k, v, _ = make(seed, t=7, s=11)
    blocks = torch.rand(2, 4, -(-7 // bq), -(-11 // bk), generator=torch.Generator().manual_seed(seed)) < 0.5
    sel = Selection.from_blocks(blocks, q, k, bq=bq, bk=bk)
    rows, cols = torch.arange(7) // bq, torch.arange(11) // bk
    want = blocks[:, :, rows][..., cols] & (torch.arange(11) <= torch.arange(4, 11)[:, None])
    assert torch.equal(sel.mask(), want) and sel.nnz == int(want.sum())
    assert torch.equal(sel.to_token().mask(), want) and torch.equal(sel.counts(), want.sum(-1))
    torch.testing.assert_close(attend_selected(q, k, v, sel).o, attend(q, k, v, mask=want).o, rtol=0, atol=1e-12)
    last = (torch.arange(7).split(bq)[0].max() + 4) // bk                     # blocks beyond the first diagonal are cut
    assert not sel.blocks[:, :, 0, int(last) + 1:].any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.lists(st.integers(-9, 8), max_size=5), causal=st.booleans(), bq=st.integers(1, 5))
def test_taking_rows_equals_selecting_them(seed, rows, causal, bq):
    q, k, _, mask = make(seed, t=9)
    blocks = torch.rand(2, 4, -(-9 // bq), -(-k.shape[2] // 3), generator=torch.Generator().manual_seed(seed)) < 0.5
    for sel in (Selection.from_mask(mask, q, k, causal=causal), Selection.from_blocks(blocks, q, k, bq=bq, bk=3, causal=causal)):
        few = sel.take(torch.tensor(rows, dtype=torch.long))
        assert few.kind == "token" and torch.equal(few.mask(), sel.mask()[:, :, rows]) and few.causal == causal
        assert few.pos.tolist() == sel.pos[rows].tolist()


def test_taking_reads_only_the_rows_that_are_taken(monkeypatch):
    q, k, _, mask = make(t=9)
    sel, late = Selection.from_mask(mask, q, k), torch.arange(9) > 6
    want = sel.mask()[:, :, late]
    monkeypatch.setattr(Selection, "mask", lambda self: pytest.fail("the whole mask was written out"))
    few = sel.take(late)
    monkeypatch.undo()
    assert torch.equal(few.mask(), want)


@pytest.mark.parametrize("rows, message", [
    ([[0, 0], [0]], "twice"),
    ([[0], [0, 5]], "must be in"),
    ([[0]], r"must hold B\*Hq\*T = 2 lists"),
], ids=["duplicate", "outside", "missing-row"])
def test_bad_rows_are_refused(rows, message):
    q, k = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match=message):
        Selection.from_rows(rows, q, k, causal=False)


def test_bad_arrays_are_refused():
    pos, shape = torch.tensor([1, 2]), (1, 1, 2, 3)
    token = lambda indptr, indices: Selection("token", shape, pos, torch.tensor(indptr), torch.tensor(indices))
    with pytest.raises(ValueError, match="ascend"):
        token([0, 2, 2], [1, 0])
    with pytest.raises(ValueError, match="beyond its own position"):
        token([0, 1, 1], [2])
    with pytest.raises(ValueError, match="indptr must start at 0"):
        token([0, 3, 2], [0, 1])
    with pytest.raises(ValueError, match="indptr of shape"):
        token([0, 1], [0])
    with pytest.raises(ValueError, match="kind must be"):
        Selection("ragged", shape, pos)
    with pytest.raises(ValueError, match="blocks must be bool of shape"):
        Selection("block", shape, pos, blocks=torch.ones(1, 1, 2, 3), bq=1, bk=1)
    with pytest.raises(ValueError, match="block sides"):
        Selection("block", shape, pos, blocks=torch.ones(1, 1, 2, 3, dtype=torch.bool), bq=0, bk=1)
    q, k, v, mask = make()
    with pytest.raises(ValueError, match="the selection was made for"):
        attend_selected(q[:, :, :2], k, v, Selection.from_mask(mask, q, k))


def test_ties_go_to_the_lower_index():
    scores = torch.tensor([[1.0, 5.0, 3.0, 3.0, 3.0, float("-inf")]])
    assert top_k(scores, 3).nonzero()[:, 1].tolist() == [1, 2, 3]
    assert top_k(scores, 1).nonzero()[:, 1].tolist() == [1]
    assert top_k(scores, 9).nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4]
    assert top_k(torch.tensor([float("-inf"), 2.0, float("-inf")]), 2).tolist() == [False, True, False]


def test_mass_and_topk_recall_by_hand():
    # One row, weights 0.5, 0.3, 0.2 (logits are their logs); keys {0, 2} keep 0.7 and one of the two heaviest.
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([0.5, 0.3, 0.2]).log().reshape(1, 1, 3, 1)
    sel = Selection.from_rows([[0, 2]], q, k)
    assert mass_recall(q, k, sel).item() == pytest.approx(0.7)
    assert topk_recall(q, k, sel, 2).item() == 0.5 and topk_recall(q, k, sel, 1).item() == 1
    assert topk_recall(q, k, sel, 99).item() == pytest.approx(2 / 3)


def test_output_error_is_relative():
    assert output_error(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])).item() == pytest.approx(4 / 5)
    assert output_error(torch.zeros(2), torch.zeros(2)).item() == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), t=st.integers(1, 12))
def test_the_error_identity(seed, t):
    """o - o^ = (1 - rho)(o~ - o^), and |o - o^| <= 2 (1 - rho) max|v|, on any selection."""
    q, k, v, mask = make(seed, t=t)
    sel = Selection.from_mask(mask, q, k)
    cut = split(q * 3, k, v, sel)
    torch.testing.assert_close(cut.whole.o - cut.kept.o, cut.error(), rtol=0, atol=1e-12)
    torch.testing.assert_close(merge(cut.kept, cut.dropped).o, cut.whole.o, rtol=0, atol=1e-12)
    seen = sel.counts() > 0
    torch.testing.assert_close(cut.rho[seen], mass_recall(q * 3, k, sel)[seen], rtol=0, atol=1e-12)
    longest = v.double().norm(dim=-1).max()
    assert ((cut.whole.o - cut.kept.o).norm(dim=-1) <= 2 * (1 - cut.rho) * longest + 1e-12).all()
    torch.testing.assert_close(cut.kept.o, attend_selected(q * 3, k, v, sel).o, rtol=0, atol=1e-12)


def test_dropping_keys_whose_values_agree_is_free():
    q, k, _, mask = make(t=9)
    v = torch.ones(2, 2, 9, 3) * 5
    mask = mask | torch.eye(9, dtype=torch.bool)
    cut = split(q, k, v, Selection.from_mask(mask, q, k))
    assert (cut.rho < 0.9).any() and (cut.whole.o - cut.kept.o).abs().max() < 1e-12


def test_the_story_of_a_selection_is_one_step_per_row():
    q, k, _, mask = make(b=1, t=5)
    sel = Selection.from_mask(mask, q, k)
    recorder = Recorder("attention.grid/1", method="any")
    assert finish(sel, trace=recorder)[0] is sel
    assert recorder.step == 5
    with pytest.raises(ValueError, match="lacks arrays"):
        recorder.finish()


def test_probabilities_of_selected_keys_are_the_definition_of_mass():
    q, k, _, mask = make(t=9)
    sel = Selection.from_mask(mask, q, k)
    want = (probs(q, k) * sel.mask()).sum(-1)
    torch.testing.assert_close(mass_recall(q, k, sel), want)
