"""Lists of tiles per head: exact over what is listed, nothing else is touched, and cost follows the share listed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.dense import attend
from tutor.attention.methods.block_sparse_flash import BlockSparseFlash, block_lists
from tutor.attention.methods.flash import Flash
from tutor.attention.selection import Selection, attend_selected

COVERS = ("attention.block_sparse_flash",)


def make(seed=0, b=1, hq=4, hkv=2, t=10, s=13, d=4, dv=3):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(b, h, n, w, generator=g, dtype=torch.float64) for h, n, w in ((hq, t, d), (hkv, s, d), (hkv, s, dv))]


def close(found, want, tol=1e-12):
    torch.testing.assert_close(found.o, want.o, rtol=0, atol=tol)
    torch.testing.assert_close(found.lse, want.lse, rtol=0, atol=tol)


def test_the_lists_by_hand():
    # T = S = 6, tiles of 2 x 2, causal; query block 1 reads block 1, query block 2 reads 0 and 2.
    # Row 0 (block 0): empty. Row 1: key block 1 lies on the diagonal: masked. Row 2: block 0 whole, block 2 masked.
    blocks = torch.tensor([[False, True, True], [False, True, False], [True, False, True]])
    q, k, v = make(hq=1, hkv=1, t=6, s=6)
    sel = BlockSparseFlash(2, 2).selection(q, k, v, blocks)
    lists = block_lists(sel)
    assert lists.indptr.tolist() == [0, 0, 1, 3]            # the blocks beyond the diagonal in row 0 are gone
    assert lists.cut.tolist() == [0, 0, 2] and lists.indices.tolist() == [1, 0, 2]
    free = block_lists(BlockSparseFlash(2, 2).selection(q, k, v, blocks, causal=False))
    assert free.indptr.tolist() == [0, 2, 3, 5] and free.cut.tolist() == [2, 3, 5]
    short = block_lists(BlockSparseFlash(2, 2).selection(q, k[:, :, :5], v[:, :, :5], blocks, causal=False))
    assert short.cut.tolist() == [1, 3, 4]                  # the last key block misses a key: masked


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), t=st.integers(1, 10), s=st.integers(1, 13), br=st.integers(1, 11),
       bc=st.integers(1, 14), causal=st.booleans())
def test_it_is_dense_attention_under_the_mask(seed, share, t, s, br, bc, causal):
    q, k, v = make(seed, b=2, t=t, s=s)
    shape = (2, 4, -(-t // br), -(-s // bc))
    blocks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    sel = Selection.from_blocks(blocks, q, k, bq=br, bk=bc, causal=causal)
    found = BlockSparseFlash(br, bc).attend(q, k, v, sel, scale=0.7)
    close(found, attend(q, k, v, mask=sel.mask(), causal=causal, scale=0.7))
    close(found, attend_selected(q, k, v, sel, causal=causal, scale=0.7))
    close(BlockSparseFlash(br, bc).attend(q, k, v, blocks, causal=causal, scale=0.7), found, 0)


def test_all_tiles_are_dense_attention_at_the_cost_of_flash():
    q, k, v = make(b=2)
    every = torch.ones(4, 4, dtype=torch.bool)
    method = BlockSparseFlash(3, 4)
    close(method.attend(q, k, v, every), attend(q, k, v))
    assert method.cost(q, k, v, every) == Flash(3, 4).cost(q, k, v)
    assert method.cost(q, k, v, every, causal=False) == Flash(3, 4).cost(q, k, v, causal=False)


def test_a_query_block_without_tiles_is_zero():
    q, k, v = make()
    blocks = torch.ones(4, 4, dtype=torch.bool)
    blocks[2] = False                                           # rows 6, 7 and 8
    part = BlockSparseFlash(3, 4).attend(q, k, v, blocks)
    assert (part.o[:, :, 6:9] == 0).all() and (part.lse[:, :, 6:9] == float("-inf")).all()
    assert (part.o[:, :, [5, 9]] != 0).all()


def test_what_is_not_listed_is_not_read():
    q, k, v = make(t=8, s=8)
    blocks = torch.tensor([[True, False], [True, False]])
    k[:, :, 4:] = v[:, :, 4:] = float("nan")
    assert torch.isfinite(BlockSparseFlash(4, 4).attend(q, k, v, blocks, causal=False).o).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 1))
def test_gradients_are_those_of_autograd_under_the_mask(seed, share):
    q, k, v = (x.requires_grad_() for x in make(seed))
    g = torch.Generator().manual_seed(seed)
    do, dlse = torch.randn(1, 4, 10, 3, generator=g, dtype=torch.float64), torch.randn(1, 4, 10, generator=g, dtype=torch.float64)
    sel = Selection.from_blocks(torch.rand(1, 4, 4, 4, generator=g) < share, q, k, bq=3, bk=4)
    truth = attend(q, k, v, mask=sel.mask())
    loss = (truth.o * do).sum() + (truth.lse * dlse)[truth.lse > float("-inf")].sum()
    want = torch.autograd.grad(loss, (q, k, v))
    with torch.no_grad():
        method = BlockSparseFlash(3, 4)
        part = method.attend(q, k, v, sel)
        found = method.backward(q, k, v, part.o, part.lse, do, dlse, blocks=sel)
    for x, y in zip(found, want, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


def test_the_cost_by_hand():
    # One head, D = Dv = 2, T = S = 5, tiles 2 x 2, all causal tiles but those of query block 1 (rows 2 and 3).
    # Query block 0 reads key block 0: 2 * 2 pairs. Query block 2 (one row) reads key blocks 0, 1, 2: 2 + 2 + 1 pairs.
    # 4 tiles, 9 pairs, 2 * 9 * 4 = 72 operations. Words: keys 2 + 2 + 2 + 1 = 7, times 4 = 28; queries of 3 rows: 6;
    # outputs and log-sum-exps of 5 rows: 15. In all 49.
    q, k, v = make(hq=1, hkv=1, t=5, s=5, d=2, dv=2)
    blocks = torch.ones(3, 3, dtype=torch.bool)
    blocks[1] = False
    cost = BlockSparseFlash(2, 2).cost(q, k, v, blocks)
    assert (cost["tiles"], cost["flops"], cost["words"]) == (4, 72, 49)


def test_impossible_lists_are_refused():
    q, k, v = make()
    method = BlockSparseFlash(3, 4)
    with pytest.raises(ValueError, match="br must be >= 1"):
        BlockSparseFlash(0, 4)
    for blocks in (torch.ones(4, 3, dtype=torch.bool), torch.ones(4, 4), torch.ones(2, 4, 4, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"blocks must be bool of shape \(4, 4\)"):
            method.attend(q, k, v, blocks)
    with pytest.raises(ValueError, match="blocks of br x bc = 3 x 4; got kind 'block', 5 x 4"):
        method.attend(q, k, v, Selection.from_blocks(torch.ones(1, 4, 2, 4, dtype=torch.bool), q, k, bq=5, bk=4))
    token = Selection.from_mask(torch.ones(1, 4, 10, 13, dtype=torch.bool), q, k)
    with pytest.raises(ValueError, match="got kind 'token'"):
        method.attend(q, k, v, token)
    with pytest.raises(ValueError, match="a selection of kind 'block' is needed"):
        block_lists(token)
    sel = Selection.from_blocks(torch.ones(1, 4, 4, 4, dtype=torch.bool), q, k, bq=3, bk=4)
    with pytest.raises(ValueError, match="the selection was made for"):
        method.attend(q[:, :, :9], k, v, sel)
