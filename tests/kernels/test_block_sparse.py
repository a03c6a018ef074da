"""The block-sparse kernel equals float64 attention under the mask of its lists, and reads nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.tolerance import assert_partial_within
from tutor import kernels
from tutor.attention.dense import attend
from tutor.attention.methods.block_sparse_flash import BlockSparseFlash, block_lists
from tutor.attention.selection import Selection

COVERS = ("attention.block_sparse_flash",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.block_sparse import _allowed_pairs, block_sparse_attention, roofline  # noqa: E402
from tutor.kernels.flash import flash_attention  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#           B Hq Hkv   T    S    D   Dv  bq  bk
SHAPES = [(1, 1, 1, 1, 1, 16, 16, 16, 16),         # one query, one key
          (1, 2, 1, 1, 63, 64, 64, 16, 32),        # a decode step
          (1, 3, 1, 63, 63, 40, 24, 16, 16),       # an odd prefill; D below its tile
          (1, 6, 2, 45, 45, 64, 64, 16, 16),       # three query heads to a KV head, as in the real model
          (2, 4, 2, 17, 50, 80, 80, 16, 16),       # a chunk of a prefill, two texts
          (1, 2, 2, 33, 65, 128, 128, 32, 32),     # one key more than two tiles
          (1, 2, 1, 64, 64, 64, 64, 32, 16),       # whole tiles only
          (1, 2, 1, 50, 19, 16, 32, 16, 16),       # T > S: the first 31 rows see nothing
          (1, 1, 1, 70, 90, 32, 32, 64, 16)]


def make(shape, dtype, share=0.5, causal=True, seed=0):
    b, hq, hkv, t, s, d, dv, bq, bk = shape
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(b, *size, generator=g).to(dtype) for size in ((hq, t, d), (hkv, s, d), (hkv, s, dv)))
    blocks = torch.rand(b, hq, -(-t // bq), -(-s // bk), generator=g) < share
    sel = Selection.from_blocks(blocks, q, k, bq=bq, bk=bk, causal=causal)
    return q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), sel


def check(q, k, v, sel, **options):
    part, mask = block_sparse_attention(q, k, v, sel, **options), sel.mask().to(DEVICE)
    truth, eager = (attend(q, k, v, mask=mask, causal=sel.causal, dtype=dtype, **options) for dtype in (torch.float64, q.dtype))
    assert_partial_within(part, eager, truth, q.dtype)
    return part


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-Hq{}-Hkv{}-T{}-S{}-D{}-Dv{}-{}x{}".format(*s))
def test_it_equals_float64_attention_under_the_mask(shape, dtype, poison):
    """Outputs are allocated full of NaN, so an entry that the kernel does not write is found."""
    check(*make(shape, dtype))


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_any_share_of_the_tiles_with_and_without_the_causal_mask(share, poison):
    for causal in (True, False):
        part = check(*make((1, 4, 2, 40, 50, 16, 16, 16, 16), torch.float32, share, causal), scale=0.4)
        assert share > 0 or (part.lse == float("-inf")).all()


def test_all_tiles_give_the_bits_of_the_flash_kernel():
    q, k, v, sel = make((1, 4, 2, 40, 50, 32, 32, 16, 16), torch.float32, 1.0)
    dense, sparse = flash_attention(q, k, v, block_m=16, block_n=16), block_sparse_attention(q, k, v, sel)
    assert torch.equal(dense.o, sparse.o) and torch.equal(dense.lse, sparse.lse)


def test_what_is_not_listed_is_not_read():
    q, k, v, _ = make((1, 1, 1, 32, 32, 16, 16, 16, 16), torch.float32)
    blocks = torch.tensor([[True, False], [True, False]])[None, None]
    k[:, :, 16:] = v[:, :, 16:] = float("nan")
    part = block_sparse_attention(q, k, v, Selection.from_blocks(blocks, q.cpu(), k.cpu(), bq=16, bk=16, causal=False))
    assert torch.isfinite(part.o).all()


def test_the_reference_says_the_same_and_lists_may_be_kept():
    q, k, v, sel = make((1, 6, 2, 45, 60, 64, 64, 16, 32), torch.float32)
    part, kept = block_sparse_attention(q, k, v, sel), block_sparse_attention(q, k, v, sel, lists=block_lists(sel))
    want = BlockSparseFlash(16, 32).attend(q.cpu(), k.cpu(), v.cpu(), sel)
    torch.testing.assert_close(part.o.cpu(), want.o, rtol=0, atol=2e-6)
    torch.testing.assert_close(part.lse.cpu(), want.lse, rtol=0, atol=2e-6)
    assert torch.equal(part.o, kept.o)


def test_the_roofline_by_hand():
    # T = S = 4, blocks of 2, causal, all listed but the lower left: pairs 1 + 2 on each diagonal block: 6.
    # 2 * 6 * (8 + 8) = 192 operations; q, o, k, v: 128 values of 2 bytes; lse 16 bytes; 2 list entries and 2 rows: 40.
    q = torch.zeros(1, 1, 4, 8)
    sel = Selection.from_blocks(torch.eye(2, dtype=torch.bool)[None, None], q, q, bq=2, bk=2)
    floor = roofline(sel, 1, 8)
    assert (floor.flops, floor.bytes) == (192, 256 + 16 + 40)
    for causal in (True, False):
        _, _, _, odd = make((1, 2, 1, 21, 50, 8, 8, 8, 16), torch.float32, causal=causal)
        assert _allowed_pairs(odd) == odd.nnz


def test_bad_selections_are_refused():
    q, k, v, sel = make((1, 2, 1, 20, 40, 16, 16, 16, 16), torch.float32)
    with pytest.raises(ValueError, match="kind 'block' is needed"):
        block_sparse_attention(q, k, v, sel.to_token())
    with pytest.raises(ValueError, match="bk must be a power of two"):
        block_sparse_attention(q, k, v, make((1, 2, 1, 20, 40, 16, 16, 16, 8), torch.float32)[3])
    with pytest.raises(ValueError, match="the selection was made for"):
        block_sparse_attention(q[:, :, :16], k, v, sel)
    moved = Selection.from_blocks(sel.blocks, q, k, bq=16, bk=16, pos_q=torch.arange(20))
    with pytest.raises(ValueError, match="positions S - T"):
        block_sparse_attention(q, k, v, moved)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_tuned_warps_on_a_gpu(dtype, poison):
    check(*make((2, 8, 2, 513, 700, 64, 64, 64, 64), dtype))
