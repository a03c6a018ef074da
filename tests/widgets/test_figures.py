"""The display arithmetic of token_strip, attention_grid and frontier: JavaScript equals Python."""

import numpy as np
import pytest

from tests.widgets.node import Node
from tests.widgets.traces import frontier_trace, grid_trace, strip_trace
from tutor.schemas import grid_row
from tutor.widgets import attention_grid, frontier, token_strip
from tutor.widgets.attention_grid import AttentionGrid
from tutor.widgets.frontier import Frontier
from tutor.widgets.token_strip import TokenStrip


# -------------------------------------------------------------------------------------------------------- token_strip
def test_a_strip_by_hand():
    # weights 4 1 4 1: top 2 are places 0 and 2 and hold 8/10; top 1 is place 0 (the lower of the equals), 4/10
    weights = np.array([4, 1, 4, 1], np.float32)
    assert token_strip.topk_mask(weights, 2).tolist() == [1, 0, 1, 0]
    assert token_strip.topk_mask(weights, 1).tolist() == [1, 0, 0, 0]
    assert token_strip.kept_mass(weights, token_strip.topk_mask(weights, 2)) == pytest.approx(0.8)
    assert token_strip.kept_mass(np.zeros(3), np.zeros(3)) == 1
    two, none = Node(TokenStrip).calls([("stripRow", weights, None, 2), ("stripRow", weights, None, 0)])
    assert two["mask"] == [1, 0, 1, 0] and two["mass"] == pytest.approx(0.8) and two["shade"] == [1, 0.5, 1, 0.5]
    assert none["mask"] is None and none["mass"] is None


def test_a_strip_in_javascript_equals_python():
    trace = strip_trace()
    weights, kept = trace.arrays["weights"], trace.arrays["kept"]
    asked = [(r, k) for r in range(trace.steps) for k in (0, 1, 5, 20, 99)]
    found = Node(TokenStrip).calls([("stripRow", weights[r], kept[r], k) for r, k in asked])
    for (r, k), got in zip(asked, found):
        mask = token_strip.topk_mask(weights[r], k) if k else kept[r]
        assert got["mask"] == mask.tolist() and got["marked"] == int((mask == 1).sum())
        assert got["mass"] == pytest.approx(token_strip.kept_mass(weights[r], mask), abs=1e-6)


# ----------------------------------------------------------------------------------------------------- attention_grid
@pytest.mark.parametrize("shape", [{}, {"T": 20, "S": 61}], ids=["square", "T20-S61"])
def test_probabilities_are_the_recorded_ones(shape):
    trace = grid_trace(**shape)
    heads, T = trace.arrays["q"].shape[:2]
    asked = [(h, i) for h in range(heads) for i in range(T)]
    found = Node(AttentionGrid).calls([("rowProbabilities", trace, h, i) for h, i in asked])
    for (h, i), p in zip(asked, found):
        assert len(p) == trace.subject["first"] + i + 1 and sum(p) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(p, grid_row(trace, h, i), rtol=1e-12)


def test_part_of_a_row():
    trace = grid_trace()
    whole, part, beyond = Node(AttentionGrid).calls([
        ("rowProbabilities", trace, 1, 30), ("rowProbabilities", trace, 1, 30, 7, 19),
        ("rowProbabilities", trace, 1, 5, 9, 20)])
    assert part == whole[7:19] and beyond == []


def test_kept_keys_by_hand():
    # p = .4 .1 .3 .1 .1: top 2 = {0, 2}; with 1 sink = {0}; with window 2 = {3, 4}; all three: 0 2 3 4 = 0.9
    p = np.array([0.4, 0.1, 0.3, 0.1, 0.1])
    assert attention_grid.keep_mask(p, 2).tolist() == [1, 0, 1, 0, 0]
    assert attention_grid.keep_mask(p, 3).tolist() == [1, 1, 1, 0, 0]              # a tie goes to the lower index
    assert attention_grid.keep_mask(p, 0, 1).tolist() == [1, 0, 0, 0, 0]
    assert attention_grid.keep_mask(p, 0, 0, 2).tolist() == [0, 0, 0, 1, 1]
    assert attention_grid.kept_mass(p, attention_grid.keep_mask(p, 2, 1, 2)) == pytest.approx(0.9)


def test_kept_keys_in_javascript_equal_python():
    rng, calls, expected = np.random.default_rng(0), [], []
    for n in (1, 2, 7, 40):
        p = np.round(rng.dirichlet(np.ones(n)), 2) + 0.001                         # rounded: many ties
        for keep in (0, 1, 3, 64):
            for sinks in (0, 2):
                for window in (0, 1, 5, 64):
                    calls.append(("keepMask", p, {"keep": keep, "sinks": sinks, "window": window}))
                    expected.append((p, attention_grid.keep_mask(p, keep, sinks, window)))
    node = Node(AttentionGrid)
    masks = node.calls(calls)
    assert masks == [mask.tolist() for _, mask in expected]
    mass = node.calls([("keptMass", p, mask) for p, mask in expected])
    np.testing.assert_allclose(mass, [attention_grid.kept_mass(p, mask) for p, mask in expected], rtol=1e-12)


def test_the_window_is_that_of_the_method():
    """Sinks and window of the dials keep the keys that streaming attention reads."""
    torch = pytest.importorskip("torch")
    from tutor.attention.methods.streaming import Streaming

    q = k = torch.randn(1, 1, 20, 4, generator=torch.Generator().manual_seed(0))
    selection, _ = Streaming(sinks=2, window=5).select(q, k)
    mask = selection.to_mask()[0, 0] if hasattr(selection, "to_mask") else None
    for i in range(20):
        row = torch.zeros(20, dtype=torch.bool)
        row[selection.indices[selection.indptr[i]:selection.indptr[i + 1]]] = True
        row = row if mask is None else mask[i]
        assert row[:i + 1].int().tolist() == attention_grid.keep_mask(np.ones(i + 1), 0, 2, 5).tolist()


def test_shades_and_overview():
    mass = np.array([1, 0.1, 0.01, 10 ** attention_grid.LOW, 1e-9, 0])
    assert attention_grid.shade(mass)[[0, 3, 4, 5]].tolist() == [1, 0, 0, 0]
    trace, node = grid_trace(), Node(AttentionGrid)
    shades = node.calls([("shadeOf", float(m)) for m in mass])
    np.testing.assert_allclose(shades, attention_grid.shade(mass), atol=1e-12)
    for head in range(2):
        want = attention_grid.overview_mass(trace.arrays["overview"][head])
        np.testing.assert_allclose(node.call("overviewMass", trace, head), want.ravel(), rtol=1e-12)
        assert want.sum(1) == pytest.approx(np.ones(len(want)))


@pytest.mark.parametrize("block", [(1, 1), (2, 2), (4, 1)], ids=str)
def test_a_tile_holds_the_rows_shares(block):
    """A cell is the mean over its queries of the sum over its keys, so rows of cells sum to 1."""
    bx, by = block
    trace = grid_trace()
    T = trace.steps
    got = np.reshape(Node(AttentionGrid).call("tileMass", trace, 0, {"bx": bx, "by": by, "tx": 0, "ty": 0}), (64, 64))
    p = np.zeros((T, T))
    for i in range(T):
        p[i, :i + 1] = grid_row(trace, 0, i)
    want = p.reshape(T // by, by, T // bx, bx).sum(3).mean(1)
    np.testing.assert_allclose(got[:T // by, :T // bx], want, atol=1e-6)
    assert got[T // by:].sum() == 0 and got[:, T // bx:].sum() == 0


def test_a_tile_tells_kept_from_dropped():
    trace = grid_trace()
    T, dials = trace.steps, {"keep": 3, "sinks": 1, "window": 4}
    tile = {"bx": 2, "by": 2, "tx": 0, "ty": 0}
    got = np.reshape(Node(AttentionGrid).call("tileKeptOf", trace, 1, tile, dials), (64, 64))
    p, kept = np.zeros((2, T, T))
    for i in range(T):
        p[i, :i + 1] = grid_row(trace, 1, i)
        kept[i, :i + 1] = p[i, :i + 1] * attention_grid.keep_mask(p[i, :i + 1], 3, 1, 4)
    sums = [a.reshape(T // 2, 2, T // 2, 2).sum((1, 3)) for a in (p, kept)]
    want = np.divide(sums[1], sums[0], out=np.ones_like(sums[0]), where=sums[0] > 0)
    np.testing.assert_allclose(got[:T // 2, :T // 2], want, atol=1e-5)


@pytest.mark.parametrize("head", [0, 1])
def test_the_grid_speaks_as_the_trace_does(head):
    trace = grid_trace()
    widget = AttentionGrid(trace)
    widget.settings = {**widget.settings, "head": head}
    said = Node(AttentionGrid).calls([("describeGrid", trace, i, {"head": head}) for i in range(trace.steps)])
    assert said == [widget.describe(i) for i in range(trace.steps)]
    assert f"head {head}:" in said[0]


def test_odd_tokens_are_named_as_python_names_them():
    trace = grid_trace(T=8, n=4)
    trace.subject["tokens"] = ["\n", "  ", "\t\n", "a\u00a0b", "\\", "", " it's", "\ud7ff'\"é\u200b"]
    said = Node(AttentionGrid).calls([("describeGrid", trace, i, {}) for i in range(8)])
    assert said == [trace.describe(i) for i in range(8)]


def test_own_dials():
    names = [d["name"] for d in AttentionGrid(grid_trace()).dials]
    assert names == ["head", "keep", "sinks", "window"]
    assert [d["name"] for d in AttentionGrid(grid_trace(heads=1)).dials] == ["keep", "sinks", "window"]
    assert AttentionGrid(grid_trace(), dials=[]).dials == []


def test_a_png_is_a_png():
    import zlib

    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    data = attention_grid.png(pixels)
    at = data.index(b"IDAT")
    rows = zlib.decompress(data[at + 4:at + 4 + int.from_bytes(data[at - 4:at], "big")])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and rows == b"\0" + pixels[0].tobytes() + b"\0" + pixels[1].tobytes()


# ----------------------------------------------------------------------------------------------------------- frontier
def test_the_best_points_by_hand():
    # (1, 5) and (3, 8) are beaten by none; (2, 4) by (1, 5); (3, 7) by (3, 8); equals do not beat one another
    x, y = np.array([1, 2, 3, 3, 1.0]), np.array([5, 4, 8, 7, 5.0])
    assert frontier.best_points(x, y).tolist() == [1, 0, 1, 0, 1]
    assert frontier.best_points(x, -y, "low").tolist() == [1, 0, 1, 0, 1]
    assert Node(Frontier).call("bestPoints", x, y, "high") == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("better", ["high", "low"])
def test_the_best_points_in_javascript_equal_python(better):
    rng = np.random.default_rng(1)
    clouds = [np.round(rng.random((2, n)), 1) for n in (1, 2, 9, 60)]              # rounded: many ties
    got = Node(Frontier).calls([("bestPoints", x, y, better) for x, y in clouds])
    assert got == [frontier.best_points(x, y, better).tolist() for x, y in clouds]


def test_ticks_are_round_and_inside():
    node = Node(Frontier)
    assert node.call("linearTicks", 0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert node.call("linearTicks", -0.3, 0.9, 3) == [0, 0.5]
    assert node.call("logTicks", 0.01, 1, 8) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    assert node.call("logTicks", 0.01, 1, 3) == [0.01, 0.1, 1]


def test_labels_do_not_overlap_and_keep_their_order():
    rng = np.random.default_rng(2)
    wanted = rng.uniform(100, 160, (2, 9))
    for wishes, got in zip(wanted, Node(Frontier).calls([("spread", w.tolist(), 20, 0, 300) for w in wanted])):
        placed = np.asarray(got)[np.argsort(wishes, kind="stable")]
        assert (np.diff(placed) >= 20 - 1e-9).all() and placed.min() >= 0 and placed.max() <= 300


def test_frontier_dials_fit_the_numbers():
    by_name = lambda trace: {d["name"]: d["value"] for d in Frontier(trace).dials}
    assert by_name(frontier_trace()) == {"log_x": True}                            # 0.01 to 1: two decades
    assert set(by_name(frontier_trace("low"))) == {"log_x", "log_y"}
