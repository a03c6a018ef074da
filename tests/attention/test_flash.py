"""Tiled attention is dense attention, whatever the tiles, their order, and the lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.dense import attend
from tutor.attention.methods.flash import FULL, MASKED, SKIPPED, Flash
from tutor.attention.selection import Selection
from tutor.trace import Trace

COVERS = ("attention.flash",)


def make(seed=0, b=1, hq=4, hkv=2, t=7, s=11, d=4, dv=3):
    g = torch.Generator().manual_seed(seed)
    sizes = ((hq, t, d), (hkv, s, d), (hkv, s, dv))
    return [torch.randn(b, h, n, w, generator=g, dtype=torch.float64) for h, n, w in sizes]


def close(part, want, tol=1e-12):
    torch.testing.assert_close(part.o, want.o, rtol=0, atol=tol)
    torch.testing.assert_close(part.lse, want.lse, rtol=0, atol=tol)


def test_the_online_softmax_by_hand():
    # One query, keys in tiles of one, logits log 1, log 2, log 5; values 8, 4, 0.
    # After key 0: o = 8, L = log 1. After key 1: o = (1*8 + 2*4) / 3 = 16/3, L = log 3.
    # After key 2: o = (3 * 16/3 + 0) / 8 = 2, L = log 8.
    q = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    k = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log().reshape(1, 1, 3, 1)
    v = torch.tensor([8.0, 4.0, 0.0], dtype=torch.float64).reshape(1, 1, 3, 1)
    trace = Flash(1, 1).trace(q, k, v)
    told = trace.of_kind("updated")
    assert told["lse"].tolist() == pytest.approx([0.0, 1.0986123, 2.0794415])
    assert told["rescale"].tolist() == pytest.approx([0.0, 1 / 3, 3 / 8])
    assert Flash(1, 1).attend(q, k, v).o.item() == pytest.approx(2.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), t=st.integers(1, 9), s=st.integers(1, 12), br=st.integers(1, 14),
       bc=st.integers(1, 14), order=st.sampled_from([1, 2]), causal=st.booleans())
def test_any_tiles_in_either_order_equal_dense(seed, t, s, br, bc, order, causal):
    q, k, v = make(seed, t=t, s=s)
    close(Flash(br, bc, order).attend(q, k, v, causal=causal, scale=0.7), attend(q, k, v, causal=causal, scale=0.7))


def test_tiles_need_not_come_in_order(monkeypatch):
    q, k, v = make(t=9, s=13)
    in_order = Flash.visits

    def shuffled(self, plan):
        tiles = in_order(self, plan)
        return [tiles[i] for i in torch.randperm(len(tiles), generator=torch.Generator().manual_seed(7))]

    monkeypatch.setattr(Flash, "visits", shuffled)
    close(Flash(2, 3).attend(q, k, v), attend(q, k, v))


def test_prefill_in_chunks_and_decode_give_the_rows_of_the_whole():
    q, k, v = make(t=12, s=12)
    whole = Flash(4, 4).attend(q, k, v)
    ends = (5, 11, 12)                                            # two chunks, then one decoded token
    parts = [Flash(4, 4).attend(q[:, :, a:b], k[:, :, :b], v[:, :, :b]) for a, b in zip((0, *ends), ends)]
    torch.testing.assert_close(torch.cat([part.o for part in parts], 2), whole.o, rtol=0, atol=1e-12)


def test_the_plan_skips_what_lies_beyond_the_diagonal():
    # T = S = 6, tiles of 2 x 2: the diagonal is masked, what is left of it full, what is right of it skipped.
    plan = Flash(2, 2).plan(torch.arange(6), 6)
    assert plan.tolist() == [[MASKED, SKIPPED, SKIPPED], [FULL, MASKED, SKIPPED], [FULL, FULL, MASKED]]
    assert (Flash(2, 2).plan(torch.arange(6), 6, causal=False) == FULL).all()
    assert Flash(2, 2).plan(torch.arange(-2, 2), 2).tolist() == [[SKIPPED], [MASKED]]     # T > S: rows that see nothing
    assert Flash(1, 4).plan(torch.tensor([5]), 6).tolist() == [[FULL, FULL]]               # decode: no mask at all


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_a_block_mask_is_dense_attention_under_it(seed, share):
    q, k, v = make(seed, b=2, t=10, s=13)
    for shape in ((4, 4), (2, 4, 4, 4)):
        blocks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
        wide = blocks.repeat_interleave(3, -2)[..., :10, :].repeat_interleave(4, -1)[..., :13]
        close(Flash(3, 4).attend(q, k, v, block_mask=blocks), attend(q, k, v, mask=wide))
    sel = Selection.from_blocks(blocks, q, k, bq=3, bk=4)
    close(Flash(3, 4).attend(q, k, v, block_mask=sel.blocks), attend(q, k, v, mask=sel.mask()))


def test_a_query_block_without_tiles_is_zero():
    q, k, v = make(t=8, s=8)
    blocks = torch.ones(2, 2, dtype=torch.bool)
    blocks[1] = False
    part = Flash(4, 4).attend(q, k, v, block_mask=blocks)
    assert (part.o[:, :, 4:] == 0).all() and (part.lse[:, :, 4:] == float("-inf")).all()
    assert (part.o[:, :, :4] != 0).all()


def test_words_by_hand():
    # One head, D = Dv = 2, T = S = 4, tiles 2 x 2, causal: three tiles of 4 pairs run, 2 * 12 * 4 = 96 operations.
    # Order 2: per query row q, o, lse: 4 * (2 + 2 + 1) = 20; per tile two keys and values: 3 * 2 * 4 = 24: 44.
    # Order 1: key blocks once: 4 * 4 = 16; per tile and row q, o, m and l in, o, m and l out: 3 * 2 * 10 = 60: 76.
    q, k, v = make(hq=1, hkv=1, t=4, s=4, d=2, dv=2)
    two, one = Flash(2, 2).cost(q, k, v), Flash(2, 2, order=1).cost(q, k, v)
    assert (two["tiles"], two["flops"], two["words"]) == (3, 96, 44)
    assert (one["tiles"], one["flops"], one["words"]) == (3, 96, 76)


@pytest.mark.parametrize("order", [1, 2])
def test_the_trace_tells_the_run_and_changes_nothing(order, tmp_path):
    q, k, v = make(t=9, s=9)
    flash = Flash(4, 3, order)
    trace, part = flash.trace(q, k, v, head=2), flash.attend(q, k, v)
    assert trace.steps == flash.cost(q, k, v)["tiles"] // q.shape[1] == 8
    ran = trace.of_kind("ran")
    assert list(zip(ran["i"].tolist(), ran["j"].tolist())) == flash.visits(torch.from_numpy(trace.arrays["plan"]))
    assert len(trace.of_kind("skipped")["i"]) == 1 and (trace.arrays["plan"] == SKIPPED).sum() == 1
    torch.testing.assert_close(torch.from_numpy(trace.arrays["lse"]), part.lse[0, 2].float())
    told = trace.of_kind("updated")
    last = {int(row): float(lse) for row, lse in zip(told["row"], told["lse"])}      # the last word about each row
    assert [last[row] for row in range(9)] == pytest.approx(part.lse[0, 2].tolist(), rel=1e-6)
    assert Trace.load(trace.save(tmp_path / "tiles.safetensors")).describe(3) == trace.describe(3)
    assert trace.describe(0).startswith("Tile 1 of 8: queries 0 to 3 meet keys 0 to 2, cut by the causal mask; this is")
    assert "queries 8 to 8 meet keys 6 to 8" in trace.describe(7)


def test_float32_stays_within_rounding_of_the_truth(rng):
    q, k, v = (torch.randn(1, h, 200, 64, generator=rng) for h in (4, 2, 2))
    part, truth = Flash(64, 32).attend(q, k, v), attend(q, k, v)
    torch.testing.assert_close(part.o.double(), truth.o, rtol=0, atol=2e-6)
    torch.testing.assert_close(part.lse.double(), truth.lse, rtol=0, atol=2e-6)


def test_impossible_tiles_are_refused():
    q, k, v = make()
    with pytest.raises(ValueError, match="br must be >= 1"):
        Flash(0, 4)
    with pytest.raises(ValueError, match="bc must be >= 1"):
        Flash(4, -1)
    with pytest.raises(ValueError, match="order must be 1"):
        Flash(4, 4, order=3)
    for mask in (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 3), torch.ones(4, 2, 3, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"block_mask must be bool of shape \(2, 3\)"):
            Flash(4, 4).attend(q, k, v, block_mask=mask)
