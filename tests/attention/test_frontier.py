"""The frontier counts what it says, and the traces that figures draw hold the attention that was there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutor.attention.dense import probs
from tutor.attention.frontier import by_layer, frontier, grid_trace, interval, sample_rows, strip_trace
from tutor.attention.methods.flash import Flash
from tutor.attention.methods.oracle_topk import OracleTopK
from tutor.attention.methods.streaming import Streaming
from tutor.attention.methods.window import Window
from tutor.attention.patch import delta_nll, patched
from tutor.attention.selection import mass_recall
from tutor.model.cache import FullCache
from tutor.model.llama import tiny_llama
from tutor.schemas import grid_row
from tutor.trace import Trace

COVERS = ("attention.dense", "attention.window", "attention.streaming", "attention.oracle_topk",
          "attention.oracle_topp", "attention.random_k", "attention.flash")


def make(seed=0, hq=4, hkv=2, t=80, s=80, d=16):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, h, n, d, generator=g) * 1.5 for h, n in ((hq, t), (hkv, s), (hkv, s)))


WORDS = [f"w{i}" for i in range(80)]


def test_rows_come_from_the_last_three_quarters():
    rows = sample_rows(4096, 64, seed=3)
    assert len(rows.unique()) == 64 and rows.min() >= 1024 and rows.max() < 4096 and (rows.diff() > 0).all()
    assert torch.equal(rows, sample_rows(4096, 64, seed=3)) and not torch.equal(rows, sample_rows(4096, 64, seed=4))
    assert sample_rows(8, 64, seed=0).tolist() == [2, 3, 4, 5, 6, 7]


def test_a_point_is_what_the_method_did():
    q, k, v = make()
    table = frontier((q, k, v), ["window", "oracle_topk"], rows=20)
    rows = sample_rows(80, 20, 0)
    (point,) = [p for p in table.points if p["method"] == "window" and p["params"] == {"window": 64}]
    sel, cost = Window(64).select(q[:, :, rows], k, pos_q=rows)
    assert (point["loaded"], point["pairs"], point["scored"]) == (cost["loaded"], cost["pairs"], 0)
    assert point["load"] == cost["loaded"] / cost["pairs"]
    assert point["mass"] == pytest.approx(float(mass_recall(q[:, :, rows], k, sel).mean()))
    assert point["mass_lo"] <= point["mass"] <= point["mass_hi"] and len(point["heads"]) == len(table.heads) == 4
    oracle = table.series("oracle_topk")
    assert [p["params"]["k"] for p in oracle] == [16, 64, 128, 256, 512, 1024]
    assert all(p["scan"] == 1 and abs(p["regret"]) < 1e-12 for p in oracle) and oracle[-1]["error"] < 1e-5
    assert all(p["regret"] > 0 for p in table.series("window") if p["load"] < 1)


def test_layers_add_up():
    one, two = make(1), make(2)
    both = frontier({3: one, 7: two}, ["window"], rows=10)
    single = [frontier({3: one}, ["window"], rows=10), frontier({7: two}, ["window"], rows=10)]
    assert both.heads == [(3, h) for h in range(4)] + [(7, h) for h in range(4)]
    for i, point in enumerate(both.points):
        assert point["loaded"] == sum(s.points[i]["loaded"] for s in single)
        assert point["heads"] == pytest.approx(single[0].points[i]["heads"] + single[1].points[i]["heads"])
    with pytest.raises(ValueError, match=r"layers \[5\] were not captured"):
        by_layer({3: one}, [5])


def test_a_method_that_chooses_no_keys_has_no_place_here():
    with pytest.raises(ValueError, match="'flash' chooses no keys"):
        frontier(make(), ["flash"])


def test_the_interval_of_heads_by_hand():
    # Two heads with means 0 and 1: the mean is 0.5, and bootstrap means can only be 0, 0.5 and 1.
    mean, low, high = interval(torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    mean, low, high = interval(torch.full((1, 9), 0.25, dtype=torch.float64))
    assert (mean, low, high) == (0.25, 0.25, 0.25)


def test_the_frontier_as_a_figure(tmp_path):
    table = frontier(make(), ["window", "oracle_topk"], rows=10)
    trace = table.to_trace(x="scan+load", y="error")
    again = Trace.load(trace.save(tmp_path / "frontier.safetensors"))
    assert again.subject["names"] == ["window", "oracle_topk"] and again.steps == 2 and again.subject["better"] == "low"
    assert (again.arrays["x"][again.arrays["series"] == 1] > 1).all()
    assert "oracle_topk: share of keys scored + read from" in again.describe(1)
    assert np.isin(table.to_trace().arrays["y"], np.float32([p["mass"] for p in table.points])).all()
    with pytest.raises(ValueError, match="x must be one of"):
        table.to_trace(x="seconds")


@pytest.mark.parametrize("t", [80, 30], ids=["whole", "chunk"])
def test_a_grid_trace_redraws_every_row(t, tmp_path):
    q, k, _ = (x / 1.5 for x in make(t=t))
    heads = [(0, 2), (0, 1)]
    trace = Trace.load(grid_trace(q, k, WORDS, heads).save(tmp_path / "grid.safetensors"))
    truth = probs(q, k)[0]
    assert trace.arrays["q"].dtype == trace.arrays["k"].dtype == np.int8 and trace.steps == t
    assert trace.arrays["kv_of"].tolist() == [0, 1] and trace.subject["first"] == 80 - t
    for slot, (_, head) in enumerate(heads):
        for row in (0, t // 2, t - 1):
            p = grid_row(trace, slot, row)
            want = truth[head, row, :len(p)].numpy()
            assert truth[head, row, len(p):].sum() == 0
            np.testing.assert_allclose(p, want, atol=0.03)         # int8: 1 part in 254 of the longest component
            assert np.argmax(p) == np.argmax(want)
    best = int(truth[2, -1].argmax())
    assert trace.describe(t - 1).startswith(f"Layer 0, head 2: query 79 'w79' looks most at {best} 'w{best}' (")


def test_the_overview_is_the_mean_of_each_cell():
    q, k, _ = make()
    picture = grid_trace(q, k, WORDS, [(0, 1)], cells=8).arrays["overview"][0]
    cells = probs(q, k)[0, 1].reshape(8, 10, 8, 10).mean((1, 3))
    want = 255 * (cells / cells.amax(-1, keepdim=True)).sqrt()
    assert picture.dtype == np.uint8 and np.abs(picture - want.numpy()).max() <= 0.5 + 1e-6
    assert (picture[np.triu_indices(8, 1)] == 0).all() and (picture.max(1) == 255).all()


def test_heads_of_several_layers_share_keys_where_they_can():
    a, b = make(1), make(2)
    trace = grid_trace({4: a[0], 9: b[0]}, {4: a[1], 9: b[1]}, WORDS, [(4, 0), (4, 1), (9, 1), {"layer": 9, "head": 3}])
    assert trace.arrays["kv_of"].tolist() == [0, 0, 1, 2] and trace.arrays["k"].shape == (3, 80, 16)
    np.testing.assert_allclose(grid_row(trace, 3, 79), probs(b[0], b[1])[0, 3, 79].numpy(), atol=0.03)
    assert trace.subject["heads"][3] == {"layer": 9, "head": 3, "label": "layer 9, head 3"}


def test_a_grid_trace_carries_the_keys_that_were_chosen():
    q, k, v = make()
    sel, _ = Streaming(2, 5).select(q[:, 1:3], k.repeat_interleave(2, 1)[:, 1:3])
    trace = grid_trace(q, k, WORDS, [(0, 1), (0, 2)], selection=sel, method="streaming")
    indptr, indices = trace.arrays["indptr"], trace.arrays["indices"]
    row = 80 + 50                                                   # second head, query 50
    assert indices[indptr[row]:indptr[row + 1]].tolist() == [0, 1, 46, 47, 48, 49, 50]
    with pytest.raises(ValueError, match="selection must have shape"):
        grid_trace(q, k, WORDS, [(0, 1)], selection=sel)
    with pytest.raises(ValueError, match="tokens must name each of the 80 keys"):
        grid_trace(q, k, WORDS[:5], [(0, 1)])


def test_a_strip_trace_tells_the_heaviest_tokens():
    weights = [[0.1, 0.7, 0.2], [0.0, 0.0, 1.0]]
    trace = strip_trace(weights, ["a", "b", "c"], ["before", "after"], kept=[[1, 1, 0], [0, 0, 1]])
    assert trace.describe(0).startswith("before: most attention on 1 'b' (0.70), 2 'c' (0.20), 0 'a' (0.10). 2 tokens")
    assert trace.steps == 2
    for bad, message in (([[0.1, -0.1, 1]] * 2, ">= 0"), ([[0.1, 0.2]] * 2, "shape")):
        with pytest.raises(ValueError, match=message):
            strip_trace(bad, ["a", "b", "c"], ["before", "after"])
    with pytest.raises(ValueError, match="kept must have the shape"):
        strip_trace(weights, ["a", "b", "c"], ["before", "after"], kept=[[1, 1, 0]])


# ------------------------------------------------------------------------------------------------- inside a model

@pytest.fixture(scope="module")
def tiny():
    return tiny_llama(n_layers=2)


def test_a_method_that_leaves_nothing_out_leaves_the_loss_alone(tiny):
    ids = torch.arange(40) % 23
    for method in (Flash(8, 8), Window(99), OracleTopK(99)):
        found = delta_nll(tiny, ids, method)
        assert abs(found.delta) < 1e-5 and found.dense == pytest.approx(float(tiny.nll(ids).mean()))
    lossy = delta_nll(tiny, ids, Window(1))
    assert abs(lossy.delta) > 1e-5 and lossy.low <= lossy.delta <= lossy.high


def test_only_the_chosen_layers_change(tiny):
    ids = torch.arange(20) % 23
    plain = tiny.forward(ids, collect=("hidden",))
    mixed = tiny.forward(ids, collect=("hidden",), attend=patched(tiny, Window(2), layers=[1]))
    torch.testing.assert_close(mixed.collected["hidden"][1], plain.collected["hidden"][1])          # input of layer 1
    assert (mixed.hidden - plain.hidden).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"layers must be in \[0, 2\)"):
        patched(tiny, Window(2), layers=[2])


def test_decoding_with_a_method_gives_the_rows_of_its_prefill(tiny):
    ids = torch.arange(12) % 23
    attend = patched(tiny, Streaming(1, 3))
    whole = tiny.forward(ids, attend=attend).logits
    cache = FullCache(2)
    steps = [tiny.forward(ids[i:i + 1], cache=cache, attend=attend).logits for i in range(12)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-4)
