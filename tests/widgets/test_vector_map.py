"""The vector map: heaps and states against a search with real heaps, and the picture on a page with no kernel."""

import numpy as np
import pytest

from tests.browser import overflow, served
from tests.widgets.harness import picture, ready, sentence, set_dial, write_page
from tests.widgets.look import barriers
from tests.widgets.node import Node
from tests.widgets.stories import lists_trace, points, search_trace
from tutor.schemas import ANN_KINDS
from tutor.trace import Recorder
from tutor.widgets import VectorMap, dial
from tutor.widgets.base import INLINE_LIMIT
from tutor.widgets.vector_map import heaps_at, point_states, ring_positions, spread


def widget(**rest) -> VectorMap:
    beams = dial("ef", "beam width", values=[8, 12, 24], value=12)
    return VectorMap(
        variants=[({"ef": ef}, search_trace(ef)[0]) for ef in (8, 12, 24)],
        dials=[beams],
        caption="Most are never seen.",
        **rest,
    )


ids = lambda rows: [row["id"] for row in rows]


# --------------------------------------------------------------------------------------------------------- arithmetic
def test_two_heaps_by_hand():
    # beam of 2. Step 0: 0 at 9 enters. Step 1 expands 0: 1 at 4 and 2 at 6 come in and push 0 out; 3 at 8 is too far.
    # Step 2 expands 1: nothing new. C is 2 then; W is 1, 2.
    recorder = Recorder("ann.search/1", method="hnsw", subject={"k": 1, "ef": 2, "metric": "l2"})
    recorder.event("entered", level=0, src=-1, dst=0, dist=9.0, accepted=True)
    recorder.next_step()
    recorder.event("expanded", level=0, dst=0, dist=9.0)
    for v, d, good in ((1, 4.0, True), (2, 6.0, True), (3, 8.0, False)):
        recorder.event("evaluated", level=0, src=0, dst=v, dist=d, accepted=good)
    recorder.next_step()
    recorder.event("expanded", level=0, dst=1, dist=4.0)
    trace = recorder.finish(
        xy=np.zeros((4, 2), np.float32),
        query_xy=np.zeros(2, np.float32),
        truth=np.array([1]),
        result=np.array([1]),
        true_dist=np.array([9, 4, 6, 8], np.float32),
    )
    assert [heaps_at(trace, s) for s in range(3)] == [([0], [0]), ([1, 2], [1, 2]), ([2], [1, 2])]
    assert point_states(trace, 1).tolist() == [3, 2, 2, 1] and point_states(trace, 2).tolist() == [3, 3, 2, 1]
    node = Node(VectorMap)
    found = node.calls([("heapsAt", trace, s) for s in range(3)])
    assert [(ids(f["candidates"]), ids(f["results"])) for f in found] == [heaps_at(trace, s) for s in range(3)]
    assert node.call("progress", trace) == {"ndist": [0, 3, 3], "found": [0, 1, 1]}


@pytest.mark.parametrize(
    "make",
    [lambda: search_trace(8), lambda: search_trace(12, seed=4), lambda: search_trace(40), lambda: lists_trace(4)],
    ids=["beam 8", "beam 12", "beam 40", "lists"],
)
def test_the_rebuilt_heaps_are_those_of_the_search(make):
    trace, truly = make()
    steps = range(trace.steps)
    node = Node(VectorMap)
    rebuilt, states, counted = (
        node.calls([("heapsAt", trace, s) for s in steps]),
        node.calls([("pointStates", trace, s) for s in steps]),
        node.call("progress", trace),
    )
    for step in steps:
        assert ids(rebuilt[step]["candidates"]) == truly[step]["C"] == heaps_at(trace, step)[0]
        assert ids(rebuilt[step]["results"]) == truly[step]["W"] == heaps_at(trace, step)[1]
        assert counted["ndist"][step] == truly[step]["evaluated"]
        assert states[step] == point_states(trace, step).tolist()
        assert sum(s > 0 for s in states[step]) == truly[step]["evaluated"]
    k = trace.subject["k"]
    assert ids(rebuilt[-1]["results"])[:k] == trace.arrays["result"].tolist()


@pytest.mark.parametrize("method, effort", [("HNSW", {"ef": 20}), ("IVF", {"nprobe": 3})])
def test_the_rebuilt_heaps_agree_with_the_library(method, effort):
    """The recorder writes the size of the frontier and the worst result beside each event; the figure must agree."""
    pytest.importorskip("torch")
    from tutor.ann import hnsw, ivf
    from tutor.ann.record import record

    X, labels, q = points(300)
    index = hnsw.HNSW(M=6, seed=0) if method == "HNSW" else ivf.IVF(nlist=12, seed=0)
    trace = record(index.build(X), q, 5, subject={"labels": labels}, **effort)
    found = Node(VectorMap).calls([("heapsAt", trace, s) for s in range(trace.steps)] + [("progress", trace)])
    dist = dict(enumerate(trace.arrays["true_dist"].tolist()))
    for step in range(trace.steps):
        candidates, results = ids(found[step]["candidates"]), ids(found[step]["results"])
        assert (candidates, results) == heaps_at(trace, step)
        here = np.flatnonzero(
            (trace.events["step"] == step)
            & (trace.events["level"] == 0)
            & np.isin(trace.events["kind"], [ANN_KINDS.index(x) for x in ("entered", "evaluated", "stopped")])
        )
        if len(here):
            if method == "HNSW":
                assert len(candidates) == trace.events["frontier_size"][here[-1]]
            worst = trace.events["best_k_worst"][here[-1]]
            if np.isfinite(worst):
                assert dist[results[-1]] == pytest.approx(worst, rel=1e-5)
    assert ids(found[-2]["results"])[:5] == trace.arrays["result"].tolist()
    states = Node(VectorMap).call("pointStates", trace, trace.steps - 1)
    assert states == point_states(trace, trace.steps - 1).tolist()
    if method == "IVF":  # measured is what lies in an opened list, and the centres are no points
        assert np.array_equal(np.array(states) > 0, np.isin(trace.arrays["cell"], trace.of_kind("opened_list")["dst"]))
    assert found[-1]["found"][-1] == trace.events["n_correct"].max()
    assert found[-1]["ndist"][-1] == (trace.events["kind"] == ANN_KINDS.index("evaluated")).sum()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_on_rings_the_radius_is_the_distance(metric):
    trace = search_trace()[0]
    trace.subject["metric"] = metric
    if metric == "ip":
        trace.arrays["true_dist"] -= 30  # below zero, as -q·x may be
    found = Node(VectorMap).call("positions", trace, "rings", 400, 300, 10)
    at = np.reshape(found["points"], (-1, 2)) - [200, 150]
    np.testing.assert_allclose(at, ring_positions(trace, 140), atol=1e-3)
    radius, dist = np.hypot(*at.T), trace.arrays["true_dist"].astype(float)
    shown = np.sqrt(dist) if metric == "l2" else dist
    assert radius.max() == pytest.approx(140, abs=1e-3)
    slope = np.polyfit(shown, radius, 1)
    np.testing.assert_allclose(radius, np.polyval(slope, shown), atol=1e-2)  # a straight line: true to scale
    assert slope[0] > 0


def test_directions_keep_their_order():
    rng = np.random.default_rng(0)
    angle = np.round(rng.uniform(-np.pi, np.pi, 50), 1)
    out = spread(angle)
    order = np.argsort(angle, kind="stable")
    assert (np.diff(out[order]) > 0).all() and np.abs(out).max() <= np.pi
    np.testing.assert_allclose(Node(VectorMap).call("spread", angle), out, atol=1e-12)


def test_on_the_map_everything_is_inside_and_in_place():
    trace = lists_trace()[0]
    found = Node(VectorMap).call("positions", trace, "map", 500, 400, 16)
    at, xy = np.reshape(found["points"], (-1, 2)), trace.arrays["xy"]
    assert at.min() >= 15.99 and (at <= [484.01, 384.01]).all()
    assert (np.argsort(at[:, 0], kind="stable") == np.argsort(xy[:, 0], kind="stable")).all()
    assert np.corrcoef(at[:, 1], -xy[:, 1])[0, 1] == pytest.approx(1)


def test_ticks_are_round_and_inside():
    node = Node(VectorMap)
    assert node.call("niceTicks", 0, 8) == [0, 2, 4, 6, 8]
    assert node.call("niceTicks", 0.31, 1.04) == [0.4, 0.6, 0.8, 1]


def test_lists_by_the_distance_of_their_centre():
    trace = lists_trace(3)[0]
    first, last = Node(VectorMap).calls([("listsAt", trace, 0), ("listsAt", trace, 2)])
    assert [one["opened"] for one in first] == [True, False, False] and all(one["opened"] for one in last)
    opened = trace.of_kind("opened_list")
    assert ids(last) == opened["dst"].tolist() and [one["dist"] for one in last] == sorted(opened["dist"].tolist())


def test_a_missed_neighbour_is_explained():
    trace = lists_trace(1, seed=6)[0]
    node, missed = Node(VectorMap), [int(i) for i in trace.arrays["truth"] if i not in trace.arrays["result"]]
    assert missed, "the example must miss a neighbour"
    said = node.call("pointWords", trace, 0, missed[0])
    assert said.startswith(trace.subject["labels"][missed[0]]) and "missed, its list" in said
    met = int(trace.arrays["result"][0])
    assert "result 1" in node.call("pointWords", trace, 0, met)


# -------------------------------------------------------------------------------------------------------------- Python
def test_size_sentences_and_dials():
    one = widget()
    assert one.nbytes < INLINE_LIMIT and one.sentences == [one.trace.describe(s) for s in range(one.trace.steps)]
    assert [d["name"] for d in one.dials] == ["ef", "layout"] and one.settings["layout"] == "rings"
    assert one.step == one.trace.steps - 1


def test_the_still_counts():
    one = widget()
    ndist = int((one.trace.events["kind"] == ANN_KINDS.index("evaluated")).sum())
    drawn = one.still()
    assert f"{ndist} of 480 distances" in drawn and one.trace.subject["labels"][one.trace.arrays["result"][0]] in drawn
    assert drawn != one.still(2)
    assert "<svg" in VectorMap(lists_trace()[0]).still(width=360)


# ------------------------------------------------------------------------------------------------------------- browser
@pytest.mark.browser
@pytest.mark.parametrize("width, dark", [(1280, False), (360, True)])
def test_on_a_page_without_a_kernel(tmp_path, open_page, width, dark):
    one = widget()
    write_page(tmp_path, one, theme="dark" if dark else "light")
    with served(tmp_path) as address:
        page = open_page(address, width=width, dark=dark)
        ready(page)
        assert overflow(page) == []
        assert sentence(page) == one.describe()
        first, cost = picture(page), page.locator(".tw-vm-line b").first.inner_text()
        set_dial(page, "layout", "map")
        mapped = picture(page)
        assert mapped != first and sentence(page) == one.describe()
        set_dial(page, "ef", 2)  # the third value: ef = 24
        assert picture(page) not in (first, mapped)
        assert int(page.locator(".tw-vm-line b").first.inner_text()) > int(cost)
        assert sentence(page) == one.variants[2]["sentences"][-1]  # seen to the end, it stays at the end
        assert overflow(page) == []


@pytest.mark.browser
def test_by_keyboard_and_pointer(tmp_path, open_page):
    one = widget()
    write_page(tmp_path, one)
    with served(tmp_path) as address:
        page = open_page(address)
        ready(page)
        page.locator(".tw-stage").focus()
        page.keyboard.press("ArrowLeft")
        assert sentence(page) == one.describe(one.step - 1)
        page.keyboard.press("ArrowDown")  # the nearest result
        page.wait_for_selector(".tw-vm-here")
        assert (
            page.locator(".tw-vm-here .tw-vm-name").inner_text()
            == one.trace.subject["labels"][one.trace.arrays["result"][0]]
        )
        box = page.locator(".tw-vm-map").bounding_box()
        nearest = int(one.trace.arrays["truth"][0])
        x, y = ring_positions(one.trace, min(box["width"], box["height"]) / 2 - 16)[nearest]
        page.mouse.move(box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y)
        page.wait_for_selector(".tw-tip:not([hidden])")
        said = page.locator(".tw-tip").text_content()
        assert said.startswith(one.trace.subject["labels"][nearest]) and "true neighbour 1 of 8" in said


@pytest.mark.browser
def test_lists_open_on_the_page(tmp_path, open_page):
    one = VectorMap(lists_trace(3)[0])
    write_page(tmp_path, one)
    with served(tmp_path) as address:
        page = open_page(address)
        ready(page)
        page.locator(".tw-stage").focus()
        page.keyboard.press("Home")
        assert sentence(page) == one.describe(0)
        assert "1 of 12 lists open" in page.locator(".tw-vm-block").nth(1).inner_text()
        page.keyboard.press("End")
        assert sentence(page) == one.describe(2)
        assert "3 of 12 lists open" in page.locator(".tw-vm-block").nth(1).inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_stands_in_a_readers_way(tmp_path, open_page, dark):
    assert barriers(tmp_path, open_page, widget(), dark) == []
