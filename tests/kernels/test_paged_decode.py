"""The paged decode kernels equal TokenSelect over the same keys laid out in order."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.tolerance import assert_partial_within, assert_within
from tutor import kernels
from tutor.attention import dense
from tutor.attention.methods.token_select import TokenSelect
from tutor.attention.selection import Selection, attend_selected

COVERS = ("attention.token_select",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.paged_decode import elect, paged_attend, paged_decode, paged_scores, roofline  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#           lengths       Hq Hkv page   D
SHAPES = [((1,), 1, 1, 1, 16),            # one key
          ((63,), 3, 1, 1, 64),           # a pool of single tokens, as in the paper's code
          ((111,), 6, 2, 16, 64),         # three query heads to a KV head, as in the real model
          ((40, 77), 4, 2, 8, 40),        # two texts of different lengths; D below its tile
          ((33, 5, 64), 2, 2, 4, 16),     # one text shorter than the budget
          ((70,), 9, 3, 32, 80),
          ((50,), 1, 1, 7, 128),          # a page length that divides nothing
          ((96, 0), 2, 1, 16, 24),        # an empty text
          ((45,), 18, 1, 16, 64)]         # more query heads to a KV head than a tile has rows


def make(shape, dtype, seed=0, dv=None):
    """q, pools, table, lengths, and the same keys and values in order `(B, Hkv, S, D)`. Unused pool rows are NaN."""
    lengths, hq, hkv, page, d = shape
    g = torch.Generator().manual_seed(seed)
    b, most = len(lengths), max(-(-n // page) for n in lengths)
    need = sum(-(-n // page) for n in lengths)
    order, used = torch.randperm(need + 2, generator=g), 0
    table = torch.full((b, most), need + 1, dtype=torch.int32)
    pools = [torch.full((need + 2, page, hkv, width), float("nan")) for width in (d, dv or d)]
    laid = [torch.zeros(b, hkv, max(lengths), width) for width in (d, dv or d)]
    for text, n in enumerate(lengths):
        rows = [torch.randn(hkv, n, width, generator=g).to(dtype).float() for width in (d, dv or d)]
        for at in range(-(-n // page)):
            table[text, at] = int(order[used])
            for pool, x in zip(pools, rows):
                part = x[:, at * page:(at + 1) * page]
                pool[order[used], :part.shape[1]] = part.transpose(0, 1)
            used += 1
        for out, x in zip(laid, rows):
            out[text, :, :n] = x
    q = torch.randn(b, hq, 1, d, generator=g).to(dtype)
    on = lambda x: x.to(dtype).to(DEVICE)
    return (on(q), *(on(pool) for pool in pools), table.to(DEVICE), torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
            *(on(x) for x in laid))


def selection(keys, q, k, lengths):
    """The same keys as a Selection: each text has its own length, so it is not cut causally."""
    rows = [[j for j in keys[text].tolist() if j >= 0] for text in range(q.shape[0]) for _ in range(q.shape[1])]
    return Selection.from_rows(rows, q, k, causal=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "n{}-Hq{}-Hkv{}-page{}-D{}".format("+".join(map(str, s[0])), *s[1:]))
def test_it_is_attention_over_the_elected_keys(shape, dtype, poison):
    q, k, v, table, lengths, keys_in_order, values = make(shape, dtype)
    part, keys = paged_decode(q, k, v, table, lengths, k_top=9, n_init=2, n_local=5, splits=2)
    sel = selection(keys, q.cpu(), keys_in_order.cpu(), lengths)
    truth, eager = (attend_selected(q.cpu(), keys_in_order.cpu(), values.cpu(), sel, dtype=kind, causal=False)
                    for kind in (torch.float64, dtype))
    assert_partial_within(part, eager, truth, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "n{}-Hq{}-Hkv{}-page{}-D{}".format("+".join(map(str, s[0])), *s[1:]))
def test_it_elects_what_the_reference_elects(shape, poison):
    q, k, v, table, lengths, keys_in_order, _ = make(shape, torch.float32, seed=3)
    _, keys = paged_decode(q, k, v, table, lengths, k_top=9, n_init=2, n_local=5)
    for text, n in enumerate(lengths.tolist()):
        got = [j for j in keys[text].tolist() if j >= 0]
        sel, _ = TokenSelect(9, 2, 5).select(q[text:text + 1].cpu(), keys_in_order[text:text + 1, :, :n].cpu())
        assert got == sel.mask()[0, 0, 0].nonzero()[:, 0].tolist(), text


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_scores_are_scaled_dot_products_and_end_with_the_text(dtype, poison):
    q, k, _, table, lengths, keys_in_order, _ = make(((40, 77), 4, 2, 8, 40), dtype)
    scores = paged_scores(q, k, table, lengths, block_n=16)
    truth, eager = (dense.logits(q.cpu(), keys_in_order.cpu(), causal=False, dtype=kind)[:, :, 0]
                    for kind in (torch.float64, dtype))
    assert scores.shape == (2, 4, 77) and (scores[0, :, 40:] == float("-inf")).all()
    for text, n in enumerate((40, 77)):
        assert_within(scores[text, :, :n], eager[text, :, :n], truth[text, :, :n], dtype, "scores")


def test_neither_tiles_nor_splits_nor_the_order_of_pages_matter(poison):
    q, k, v, table, lengths, *_ = make(((111,), 6, 2, 16, 64), torch.float32)
    want, keys = paged_decode(q, k, v, table, lengths, k_top=40, n_init=4, n_local=9, splits=1, block_n=16)
    for splits, block_n in ((1, 64), (3, 16), (7, 32), (16, 16)):
        part = paged_attend(q, k, v, table, keys, splits=splits, block_n=block_n)
        torch.testing.assert_close(part.o, want.o, rtol=0, atol=2e-6)
        torch.testing.assert_close(part.lse, want.lse, rtol=0, atol=2e-6)
    moved = torch.randperm(len(k), generator=torch.Generator().manual_seed(1)).to(DEVICE)     # page p moves to moved[p]
    k2, v2 = torch.empty_like(k), torch.empty_like(v)
    k2[moved], v2[moved] = k, v
    part, same = paged_decode(q, k2, v2, moved[table.long()].int(), lengths, k_top=40, n_init=4, n_local=9, splits=1, block_n=16)
    assert torch.equal(part.o, want.o) and torch.equal(same, keys)


def test_values_may_be_of_another_width_and_pools_of_any_strides(poison):
    q, k, v, table, lengths, keys_in_order, values = make(((50, 31), 4, 2, 8, 64), torch.float32, dv=24)
    part, keys = paged_decode(q, k, v, table, lengths, k_top=9, n_init=2, n_local=5)
    sel = selection(keys, q.cpu(), keys_in_order.cpu(), lengths)
    truth = attend_selected(q.cpu(), keys_in_order.cpu(), values.cpu(), sel, causal=False)
    torch.testing.assert_close(part.o.cpu(), truth.o.float(), rtol=0, atol=2e-6)
    laid = [x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3) for x in (k, v)]
    assert not laid[0].is_contiguous()
    assert torch.equal(paged_decode(q, *laid, table, lengths, k_top=9, n_init=2, n_local=5)[0].o, part.o)


def test_a_text_with_no_keys_is_zero():
    q, k, v, table, lengths, *_ = make(((96, 0), 2, 1, 16, 24), torch.float32)
    part, keys = paged_decode(q, k, v, table, lengths, k_top=9, n_init=2, n_local=5)
    assert (keys[1] == -1).all() and (part.o[1] == 0).all() and (part.lse[1] == float("-inf")).all()
    assert (part.o[0] != 0).all()


def test_the_vote_by_hand():
    # Shares of head 0: 1/2 1/4 1/8 1/8, of head 1: 1/10 1/2 1/5 1/5; together 0.6 0.75 0.325 0.325; then one -inf past the end.
    scores = torch.tensor([[[0.5, 0.25, 0.125, 0.125, 0.0], [0.1, 0.5, 0.2, 0.2, 0.0]]]).log()
    for k_top, want in ((1, [1]), (2, [0, 1]), (3, [0, 1, 2])):
        assert elect(scores, torch.tensor([4]), k_top=k_top, n_init=0, n_local=0).tolist() == [want]
    assert elect(scores, torch.tensor([4]), k_top=1, n_init=1, n_local=1).tolist() == [[0, 1, 3]]
    assert elect(scores, torch.tensor([4]), k_top=9, n_init=0, n_local=0).tolist() == [[0, 1, 2, 3, -1]]


@pytest.mark.parametrize("change, message", [
    (lambda q, k, v, t, n: (torch.cat((q, q), 2), k, v, t, n), "one query a head"),
    (lambda q, k, v, t, n: (q.double(), k.double(), v.double(), t, n), "one dtype of"),
    (lambda q, k, v, t, n: (q[:, :3], k, v, t, n), "multiple of Hkv"),
    (lambda q, k, v, t, n: (q[..., :8], k, v, t, n), "head width"),
    (lambda q, k, v, t, n: (q, k, v[:, :4], t, n), "k and v alike"),
    (lambda q, k, v, t, n: (q, k, v, t.float(), n), "table must be whole numbers"),
    (lambda q, k, v, t, n: (q, k, v, t, n + 99), "lengths must hold 2 numbers in"),
    (lambda q, k, v, t, n: (q, k, v, t, n[:1]), "lengths must hold 2 numbers"),
], ids=["rows", "float64", "groups", "width", "pools", "table", "long", "texts"])
def test_bad_inputs_are_refused(change, message):
    q, k, v, table, lengths, *_ = make(((20, 9), 4, 2, 8, 16), torch.float32)
    with pytest.raises(ValueError, match=message):
        paged_decode(*change(q, k, v, table, lengths))


def test_bad_keys_and_sizes_are_refused():
    q, k, v, table, lengths, *_ = make(((20,), 4, 2, 8, 16), torch.float32)
    for keys, message in ((torch.tensor([[24]]), r"\[0, 24\)"), (torch.tensor([[-2]]), "or -1"), (torch.tensor([0]), "shape")):
        with pytest.raises(ValueError, match=message):
            paged_attend(q, k, v, table, keys)
    with pytest.raises(ValueError, match="block_n must be a power of two"):
        paged_decode(q, k, v, table, lengths, block_n=24)
    with pytest.raises(ValueError, match="k_top must be >= 1"):
        paged_decode(q, k, v, table, lengths, k_top=0)


def test_the_roofline_by_hand():
    # One KV head, two query heads, D = 8, bf16, 4 keys of 16 read: 4 * 16 * 2 = 128 bytes, q and o 2 * 16 * 2 = 64;
    # the vote: 16 keys * 8 * 2 = 256, scores 2 * (2 * 16 * 4) = 256. Operations 2 * 2 * 4 * 16 = 256, vote 2 * 2 * 16 * 8 = 512.
    floor = roofline(1, 2, 1, 16, 4, 8)
    assert (floor.bytes, floor.flops) == (128 + 64 + 256 + 256, 256 + 512)
    assert roofline(1, 2, 1, 16, 4, 8, vote=False).bytes == 192
    assert roofline(1, 32, 8, 131072, 2688, 128).bound_by == "memory"
