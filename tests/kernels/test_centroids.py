"""The centroid kernel decides as the float64 look-up does, interpreted on a CPU and compiled on a GPU alike."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.tolerance import assert_within
from tutor import kernels
from tutor.attention.dense import logits
from tutor.attention.methods.squeezed import Index, lookup

COVERS = ("attention.squeezed", "attention.squeezed_hierarchical")

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.centroids import centroid_select, roofline  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#           B Hq Hkv  T   C   D
SHAPES = [(1, 1, 1, 1, 1, 16),         # one query, one cluster
          (1, 9, 3, 1, 45, 64),        # a decoding step of the real model
          (1, 3, 1, 17, 63, 40),       # D below its tile, one row more than a block
          (2, 4, 2, 5, 33, 80),
          (1, 2, 2, 33, 64, 128),      # whole tiles of centroids
          (1, 1, 1, 3, 20, 256),       # the widest head
          (1, 6, 2, 40, 7, 64),        # fewer clusters than a tile
          (3, 2, 1, 16, 65, 24)]


def make(shape, dtype, seed=0):
    b, hq, hkv, t, c, d = shape
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 30, (b, hkv, c), generator=g)
    counts[..., 0] += 1                                                   # never all empty
    q, centroids = torch.randn(b, hq, t, d, generator=g), torch.randn(b, hkv, c, d, generator=g)
    return q.to(DEVICE, dtype), centroids.to(DEVICE, dtype), counts.to(DEVICE)


def by_rule(q, centroids, counts, dtype):
    """log-sum-exp `(B, Hq, T)` and log e `(B, Hq, T, C)`, computed in `dtype`."""
    s = logits(q, centroids, causal=False, dtype=dtype)
    n = counts.repeat_interleave(q.shape[1] // counts.shape[1], 1)[:, :, None].to(dtype)
    lse = torch.logsumexp(s + n.log(), -1)
    return lse, torch.where(n > 0, s - lse[..., None], float("-inf"))


def check(q, centroids, counts, threshold=0.02, **options):
    found = centroid_select(q, centroids, counts, threshold, **options)
    (lse, log_e), (eager_lse, eager_e) = (by_rule(q, centroids, counts, dtype) for dtype in (torch.float64, q.dtype))
    assert_within(found.lse, eager_lse, lse, q.dtype, "lse")
    if options.get("together"):
        share = log_e.exp().mean(2, keepdim=True)
        assert_within(found.share, eager_e.exp().mean(2, keepdim=True), share, q.dtype, "share")
        clear = (share - threshold).abs() > 2 * (found.share.double() - share).abs().max()
        want = share > threshold
    else:
        slack = 1e-5 + 2 * (eager_e.double() - log_e)[log_e.isfinite()].abs().max()       # what rounding may turn over
        clear, want = (log_e - math.log(threshold)).abs() > slack, log_e > math.log(threshold)
    assert found.kept.shape == want.shape and found.kept.dtype == torch.bool
    assert torch.equal(found.kept[clear], want[clear]) and clear.double().mean() > 0.8
    return found


@pytest.mark.parametrize("together", [False, True], ids=["each", "together"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-Hq{}-Hkv{}-T{}-C{}-D{}".format(*s))
def test_it_decides_as_float64_does(shape, dtype, together, poison):
    """Outputs are allocated full of NaN, so an entry that the kernel does not write is found."""
    check(*make(shape, dtype), together=together)


def test_it_is_the_reference_method(poison):
    q, centroids, counts = make((1, 6, 2, 20, 50, 64), torch.float32)
    index = Index(centroids.cpu(), torch.zeros(1, 2, 1, dtype=torch.int64), counts.cpu(), 1, q.cpu())
    for threshold in (0.0, 0.003, 1.0):
        alone, _ = lookup(index, q.cpu(), threshold)
        assert torch.equal(centroid_select(q, centroids, counts, threshold).kept.cpu(), alone)
        one, _ = lookup(index, q.cpu(), threshold, question=20)
        assert torch.equal(centroid_select(q, centroids, counts, threshold, together=True).kept.cpu(), one[:, :, :1])


@pytest.mark.parametrize("blocks", [(16, 16), (16, 64), (32, 16)], ids=lambda b: "M{}-N{}".format(*b))
def test_the_tile_sizes_do_not_matter(blocks, poison):
    for together in (False, True):
        check(*make((1, 3, 1, 37, 50, 40), torch.float32), together=together, block_m=blocks[0], block_n=blocks[1])


def test_non_contiguous_inputs(poison):
    q, centroids, counts = make((2, 4, 2, 9, 20, 32), torch.float32)
    laid = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, centroids, counts)]
    assert not laid[0].is_contiguous() and not laid[2].is_contiguous()
    assert torch.equal(check(*laid).kept, check(q, centroids, counts).kept)
    check(q, centroids[:, :1].expand(2, 2, 20, 32), counts)               # a stride of zero


def test_empty_clusters_are_never_kept_and_weigh_nothing(poison):
    q, centroids, counts = make((1, 2, 1, 5, 40, 16), torch.float32)
    counts[..., 3:] = 0
    found = centroid_select(q, centroids, counts, 0.0)
    assert not found.kept[..., 3:].any() and torch.equal(found.kept[0, 0, 0, :3], counts[0, 0, :3] > 0)
    few = centroid_select(q, centroids[:, :, :3], counts[..., :3], 0.0)
    torch.testing.assert_close(found.lse, few.lse)
    none = centroid_select(q, centroids, torch.zeros_like(counts), 0.0)
    assert not none.kept.any() and (none.lse == float("-inf")).all()
    both = centroid_select(q, centroids, torch.zeros_like(counts), 0.0, together=True)
    assert not both.kept.any() and (both.share == 0).all()


def test_large_scores_do_not_overflow():
    q, centroids, counts = make((1, 1, 1, 5, 40, 64), torch.float16)
    assert check(q * 20, centroids * 20, counts).lse.isfinite().all()


def test_no_queries():
    q, centroids, counts = make((1, 2, 1, 1, 5, 16), torch.float32)
    assert centroid_select(q[:, :, :0], centroids, counts, 0.1).kept.shape == (1, 2, 0, 5)


@pytest.mark.parametrize("change, message", [
    (lambda q, c, n: (q.half(), c, n, 0.1), "must share one dtype"),
    (lambda q, c, n: (q.double(), c.double(), n, 0.1), "one dtype of float32"),
    (lambda q, c, n: (q, c, n[..., :-1], 0.1), r"counts must be whole numbers of shape \(B, Hkv, C\) = \(1, 1, 5\)"),
    (lambda q, c, n: (q, c, n.float(), 0.1), "counts must be whole numbers"),
    (lambda q, c, n: (q, c, n, -0.1), "threshold must be >= 0"),
    (lambda q, c, n: (q[:, :1].expand(1, 3, 2, 16), c.expand(1, 2, 5, 16), n.expand(1, 2, 5), 0.1), "Hq must be a multiple"),
    (lambda q, c, n: (q.repeat(1, 1, 1, 17), c.repeat(1, 1, 1, 17), n, 0.1), "head widths up to 256"),
], ids=["dtypes", "float64", "counts", "float-counts", "threshold", "heads", "width"])
def test_bad_inputs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        centroid_select(*change(*make((1, 2, 1, 2, 5, 16), torch.float32)))


@pytest.mark.parametrize("block", [8, 24])
def test_bad_tiles_are_refused(block):
    with pytest.raises(ValueError, match="power of two"):
        centroid_select(*make((1, 1, 1, 1, 4, 16), torch.float32), 0.1, block_n=block)


def test_the_roofline_by_hand():
    # One head, 2 queries, 4 clusters, D = 8, bf16. Read: (2 * 8 + 4 * 8) * 2 bytes = 96, counts 4 * 8 = 32. Written: 2 * 4
    # decisions of a byte and 2 log-sum-exps of 4: 16. Products: 2 * 2 * 4 * 8 = 128 operations.
    floor = roofline(1, 1, 1, 2, 4, 8)
    assert (floor.bytes, floor.flops) == (96 + 32 + 16, 128)
    assert roofline(1, 1, 1, 2, 4, 8, together=True).bytes == 96 + 32 + 4 * 4 + 8
    assert roofline(1, 32, 8, 1, 1600, 128).bound_by == "memory"
