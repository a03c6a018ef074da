"""Both decode kernels equal float64 attention by the tolerance rule: any cut, ragged lengths, grouped heads, empty contexts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.tolerance import assert_partial_within
from tutor import kernels
from tutor.attention.dense import attend
from tutor.attention.methods.lean import Lean
from tutor.attention.methods.split_k import SplitK
from tutor.attention.partial import Partial

COVERS = ("attention.lean", "attention.split_k")

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.lean_decode import lean_decode  # noqa: E402
from tutor.kernels.split_decode import roofline, split_decode  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#          B Hq Hkv T   S   D   lengths      workers, and splits
SHAPES = [((1, 1, 1, 1, 1, 16), None, 1),            # one query, one key
          ((1, 2, 1, 1, 33, 64), None, 3),           # one key more than two tiles
          ((1, 6, 2, 1, 47, 64), None, 5),           # three query heads to a KV head, as in the real model
          ((3, 2, 2, 1, 40, 24), [40, 0, 17], 4),    # ragged, one request empty; D below its tile
          ((2, 4, 1, 3, 20, 40), [20, 2], 2),        # three query rows; the second request sees T > length
          ((1, 9, 3, 1, 16, 80), None, 7),           # more workers and splits than tiles
          ((1, 1, 1, 20, 34, 16), None, 3),          # more than 16 rows
          ((4, 2, 1, 1, 18, 16), [1, 16, 17, 0], 3),
          ((3, 2, 1, 1, 20, 16), [20, 0, 18], 1),    # an empty request within the share of one worker
          ((1, 1, 1, 1, 40, 256), None, 2)]          # the widest head
RUNS = {"split": lambda *x, n, **o: split_decode(*x, splits=n, **o), "lean": lambda *x, n, **o: lean_decode(*x, workers=n, **o)}
each = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def make(shape, dtype=torch.float32, seed=0, dv=None):
    b, hq, hkv, t, s, d = shape
    g = torch.Generator().manual_seed(seed)
    sizes = ((hq, t, d), (hkv, s, d), (hkv, s, dv or d))
    return [torch.randn(b, *size, generator=g).to(dtype).to(DEVICE) for size in sizes]


def dense(q, k, v, lengths, **options):
    """Request by request, each with its own keys."""
    found = [attend(q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n], **options)
             for b, n in enumerate(lengths or [k.shape[2]] * len(k))]
    return Partial(torch.cat([part.o for part in found]), torch.cat([part.lse for part in found]))


def check(part, q, k, v, lengths=None, **options):
    truth, eager = dense(q, k, v, lengths, **options), dense(q, k, v, lengths, dtype=q.dtype, **options)
    assert_partial_within(part, eager, truth, q.dtype)
    return part


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape, lengths, n", SHAPES, ids=lambda x: str(x).strip("([])").replace(", ", "-"))
def test_it_equals_float64_attention(run, shape, lengths, n, dtype, poison):
    """Outputs and scratch are allocated full of NaN, so an entry that is read or left unwritten is found."""
    q, k, v = make(shape, dtype)
    check(run(q, k, v, lengths=lengths, n=n, tile=16), q, k, v, lengths)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999), lengths=st.lists(st.integers(0, 40), min_size=3, max_size=3), workers=st.integers(1, 9))
def test_any_cut_of_ragged_requests_is_exact(seed, lengths, workers):
    q, k, v = make((3, 2, 1, 1, 40, 16), seed=seed)
    check(lean_decode(q, k, v, lengths=lengths, workers=workers, tile=16), q, k, v, lengths)


@each
def test_the_reference_method_says_the_same(run):
    q, k, v = make((2, 6, 2, 1, 45, 32))
    reference = (Lean(5, 16) if run is RUNS["lean"] else SplitK(5, 16, 5)).attend(q.cpu(), k.cpu(), v.cpu(), lengths=[45, 20])
    part = run(q, k, v, lengths=[45, 20], n=5, tile=16)
    torch.testing.assert_close(part.o.cpu(), reference.o, rtol=0, atol=2e-6)
    torch.testing.assert_close(part.lse.cpu(), reference.lse, rtol=0, atol=2e-6)


@each
def test_without_the_causal_mask_another_width_and_scale(run, poison):
    q, k, v = make((1, 2, 1, 3, 20, 24), dv=40)
    check(run(q, k, v, n=2, tile=16, causal=False, scale=0.3), q, k, v, causal=False, scale=0.3)


@each
def test_what_lies_behind_a_request_is_never_read(run):
    q, k, v = make((2, 2, 1, 1, 30, 16))
    k[1, :, 9:], v[1, :, 9:] = float("nan"), float("nan")
    check(run(q, k, v, lengths=[30, 9], n=3, tile=16), q, k[:, :, :].nan_to_num(0), v.nan_to_num(0), [30, 9])


@each
def test_any_strides(run):
    q, k, v = make((1, 4, 2, 2, 21, 32))
    laid = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]       # (B, T, H, D) in memory
    assert not laid[1].is_contiguous()
    assert torch.equal(run(*laid, n=2, tile=16).o, run(q, k, v, n=2, tile=16).o)
    check(run(q, k[:, :1].expand(1, 2, 21, 32), v, n=2, tile=16), q, k[:, :1].expand(1, 2, 21, 32), v)


@each
def test_no_keys_no_queries_and_large_logits(run):
    q, k, v = make((1, 2, 1, 1, 0, 16))
    part = run(q, k, v, n=2)
    assert (part.o == 0).all() and (part.lse == float("-inf")).all()
    q, k, v = make((1, 2, 1, 0, 3, 16))
    assert run(q, k, v, n=2).o.shape == (1, 2, 0, 16)
    q, k, v = make((1, 1, 1, 1, 40, 16), torch.float16)
    assert torch.isfinite(check(run(q * 40, k * 40, v, n=3, tile=16), q * 40, k * 40, v).o).all()


@pytest.mark.parametrize("splits", [0, 1, 2, 3, 9])
def test_the_number_of_splits_does_not_matter(splits, poison):
    q, k, v = make((1, 2, 1, 1, 70, 16))
    check(split_decode(q, k, v, splits=splits, tile=16, workers=4), q, k, v)


@each
@pytest.mark.parametrize("change, message", [
    (lambda q, k, v: (q.double(), k.double(), v.double()), "one dtype of"),
    (lambda q, k, v: (q[:, :3], k, v), "multiple of Hkv"),
    (lambda q, k, v: (torch.cat([q] * 20, -1), torch.cat([k] * 20, -1), v), "up to 256"),
    (lambda q, k, v: (torch.cat([q] * 70, 2), k, v), "at most 128 rows"),
], ids=["float64", "groups", "too-wide", "rows"])
def test_bad_inputs_are_refused(run, change, message):
    with pytest.raises(ValueError, match=message):
        run(*change(*make((1, 4, 2, 1, 6, 16))), n=2)


def test_bad_options_are_named():
    q, k, v = make((1, 2, 1, 1, 8, 16))
    for run, options, message in ((lean_decode, {"workers": 0}, "workers"), (split_decode, {"splits": -1}, "splits"),
                                  (lean_decode, {"tile": 24}, "power of two"), (split_decode, {"tile": 8}, "tile"),
                                  (lean_decode, {"lengths": [9]}, "lengths")):
        with pytest.raises(ValueError, match=message):
            run(q, k, v, **options)
    with pytest.raises(ValueError, match="k holds NaN"):
        split_decode(q, torch.full_like(k, float("nan")), v, check=True)


def test_the_roofline_by_hand():
    # One request, one KV head of 4 keys, 2 query heads, D = Dv = 8, bf16: keys and values 4 * 16, q and o 2 * 16: 96 values
    # of 2 bytes; lse 2 rows of 4 bytes: 200. Three partials of 2 rows of 9 floats, out and in: 2 * 3 * 2 * 9 * 4 = 432.
    # Two products of 2 rows and 4 keys: 2 * 2 * 4 * 16 = 256.
    assert (roofline(1, 2, 1, 4, 8).bytes, roofline(1, 2, 1, 4, 8).flops) == (200, 256)
    assert roofline(1, 2, 1, 4, 8, partials=3).bytes == 632
    assert roofline(8, 32, 8, 32768, 128).bound_by == "memory"
    # requests of 3 and 1 keys read half of what two of 4 keys read
    both, ragged = roofline(2, 1, 1, 4, 8), roofline(2, 1, 1, 4, 8, lengths=[3, 1])
    assert both.bytes - ragged.bytes == 4 * 16 * 2 and ragged.flops * 2 == both.flops


@pytest.mark.gpu
@each
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_default_tiles_on_a_gpu(run, dtype, poison):
    q, k, v = make((3, 32, 8, 1, 5000, 128), dtype)
    lengths = [5000, 1, 2777]
    check(run(q, k, v, lengths=torch.tensor(lengths, device=DEVICE), n=97), q, k, v, lengths)
