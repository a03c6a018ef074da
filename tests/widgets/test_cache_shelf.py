"""The cache shelf: its arithmetic against Python, its sentence against the trace, its picture with no kernel."""

from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from tests.browser import overflow, served
from tests.widgets.harness import picture, ready, sentence, set_dial, settle, write_page
from tests.widgets.look import barriers
from tests.widgets.node import Node
from tests.widgets.stories import POLICIES, shelf_trace
from tutor.trace import Recorder
from tutor.widgets import CacheShelf, dial
from tutor.widgets.base import INLINE_LIMIT
from tutor.widgets.cache_shelf import shelf_row, slim


def widget(**rest) -> CacheShelf:
    policies = dial("policy", values=list(POLICIES), value="sinks_window")
    return CacheShelf(
        variants=[({"policy": p}, shelf_trace(p)) for p in POLICIES],
        dials=[policies],
        caption="The middle is gone.",
        **rest,
    )


# --------------------------------------------------------------------------------------------------------- arithmetic
def test_a_shelf_by_hand():
    # five tokens arrive at steps 0 0 1 2 3; token 0 stays, 1 leaves at step 1, 2 leaves at step 2. At step 2:
    # 0 held, 1 evicted before, 2 evicted now, 3 held and new, 4 not yet there
    appended, evicted = np.array([0, 0, 1, 2, 3]), np.array([-1, 1, 2, -1, -1])
    assert shelf_row(appended, evicted, 2).tolist() == [1, 3, 4, 2, 0]
    assert Node(CacheShelf).call("shelfRow", appended, evicted, 2) == [1, 3, 4, 2, 0]


def test_shelves_in_javascript_equal_python():
    trace = shelf_trace("h2o")
    a = trace.arrays
    asked = [
        (layer, head, step) for layer in range(2) for head in range(3) for step in (0, 1, 40, 100, trace.steps - 1)
    ]
    found = Node(CacheShelf).calls(
        [("shelfRow", a["appended_at"], a["evicted_at"][layer, head], step) for layer, head, step in asked]
    )
    for (layer, head, step), row in zip(asked, found):
        assert row == shelf_row(a["appended_at"], a["evicted_at"][layer, head], step).tolist()
        assert sum(s in (1, 2) for s in row) <= 40


@pytest.mark.parametrize("n, rows", [(7, 5), (24, 48), (100, 31)])
def test_the_history_is_the_share_of_lives_in_each_cell(n, rows):
    """Compared with counting on a grid of 1/1000 step: within its resolution, and nothing is lost in all."""
    rng = np.random.default_rng(n)
    tokens, steps = max(n, 24), 48
    start = np.sort(rng.integers(0, steps, tokens))
    end = np.minimum(start + rng.integers(1, 30, tokens), steps)
    got = np.reshape(Node(CacheShelf).call("lifeMap", start, end.astype(np.float32), steps, n, rows), (rows, n))
    fine = np.linspace(0, steps, 1000 * rows, endpoint=False)
    alive = (start[:, None] <= fine) & (fine < end[:, None])
    share = alive.reshape(tokens, rows, 1000).mean(-1).T
    want = np.stack([share[:, c * tokens // n : (c + 1) * tokens // n].mean(1) for c in range(n)], 1)
    np.testing.assert_allclose(got, want, atol=2e-3)
    spans = np.array([(c + 1) * tokens // n - c * tokens // n for c in range(n)])
    assert (got * spans).sum() * steps / rows == pytest.approx((end - start).sum(), rel=1e-4)


def test_what_the_text_folds_away():
    # heads holding each token: runs of zeros of length 3 (too short), 5 at 5..9, and one that ends at the newest token
    held = np.array([3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0], np.uint8)
    node = Node(CacheShelf)
    assert node.call("foldRuns", held, 17) == [[5, 10], [11, 17]]
    assert node.call("foldRuns", held, 13, 2) == [[1, 4], [5, 10], [11, 13]]
    assert node.call("foldRuns", np.zeros(4, np.uint8), 4) == []


def test_the_running_mean_leaves_out_what_is_missing():
    values = np.array([np.nan, 2, 4, np.nan, 6], np.float32)
    got = Node(CacheShelf).call("runningMean", values)
    assert np.isnan(got[0]) and got[1:] == [2, 3, 3, 4]


def test_one_life_in_words():
    recorder = Recorder("kvcache.evict/1", method="window", subject={"tokens": ["a", " cat"]})
    recorder.step = 5
    evicted = np.array([[[3, -1], [-1, 4], [-1, -1]]])
    for step, head, pos in ((3, 0, 0), (4, 1, 1)):
        recorder.step = step
        recorder.event("evicted", layer=7, head=head, pos=pos)
    trace = recorder.finish(
        layers=np.array([7]), appended_at=np.array([0, 2]), evicted_at=evicted, nbytes=np.full(5, 100)
    )
    node = Node(CacheShelf)
    assert node.calls([("lifeWords", trace, 0, 1, step) for step in (1, 3, 4)]) == [
        "1 “cat” arrives at step 2.",
        "1 “cat”, read at step 2: every head still holds it.",
        "1 “cat”, read at step 2: heads 0 and 2 still hold it; head 1 let it go at step 4.",
    ]
    assert node.call("rowsHeld", trace, 0, 3) == [1, 2, 2]
    said = node.calls([("describeShelf", slim(trace), step) for step in range(5)])
    assert said == [trace.describe(step) for step in range(5)] and "1 to 2 rows" in said[3]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_sentence_is_that_of_the_trace(policy):
    trace = shelf_trace(policy)
    said = Node(CacheShelf).calls([("describeShelf", slim(trace), step) for step in range(0, trace.steps, 7)])
    assert said == [trace.describe(step) for step in range(0, trace.steps, 7)]


def test_kilobytes_are_rounded_as_python_rounds():
    recorder = Recorder("kvcache.evict/1", method="full", subject={"tokens": ["it's", "\n"]})
    recorder.step = 2
    halves = np.array([2.5 * 1024, 3.5 * 1024])  # 2 and 4, to even
    trace = recorder.finish(
        layers=np.array([0]), appended_at=np.arange(2), evicted_at=np.full((1, 1, 2), -1), nbytes=halves
    )
    said = Node(CacheShelf).calls([("describeShelf", trace, step) for step in (0, 1)])
    assert said == [trace.describe(0), trace.describe(1)]
    assert said[0].endswith("the cache 2 kB.") and said[1].endswith("the cache 4 kB.")


# -------------------------------------------------------------------------------------------------------------- Python
def test_what_is_kept_in_the_page_is_small():
    one = widget()
    assert one.nbytes < 0.2 * INLINE_LIMIT
    assert one.sentences == [] and one.header["events"]["kind"]["shape"] == [0]


def test_events_that_disagree_are_refused():
    trace = shelf_trace("window")
    late = trace.arrays["evicted_at"].copy()
    late[0, 0, 5] += 1
    with pytest.raises(ValueError, match="rows leaving at step .* the events"):
        slim(replace(trace, arrays=trace.arrays | {"evicted_at": late}))


def test_variants_must_show_the_same_layers():
    with pytest.raises(ValueError, match="the same layers"):
        CacheShelf(variants=[({"p": 0}, shelf_trace()), ({"p": 1}, shelf_trace(layers=(4, 5)))])


def test_the_layer_dial_is_there_only_for_several_layers():
    assert [d["name"] for d in widget().dials] == ["policy", "layer", "fold"]
    assert [d["name"] for d in CacheShelf(shelf_trace(layers=(9,))).dials] == ["fold"]


def test_the_still_shows_this_step():
    one = widget()
    early, late = (unescape(one.still(step)) for step in (3, None))
    assert early != late and one.describe().split(";")[0] in late
    rows = shelf_row(one.trace.arrays["appended_at"], one.trace.arrays["evicted_at"][0, 0], one.step)
    assert f"head 0: holds {np.isin(rows, (1, 2)).sum()} of {(rows > 0).sum()}" in late


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
        assert page.locator(".tw-cs-head").count() == 3
        first = picture(page)
        text = page.locator(".tw-cs-text").inner_text()
        assert text.startswith("The lighthouse keeper wrote") and "gone" in text and "slept" not in text
        set_dial(page, "policy", "window")
        windowed = picture(page)
        assert windowed != first and not page.locator(".tw-cs-text").inner_text().strip().startswith("The lighthouse")
        set_dial(page, "policy", "random")
        set_dial(page, "layer", "17")
        assert picture(page) not in (first, windowed) and "layer 17" in page.locator(".tw-readout").inner_text()
        set_dial(page, "fold", False)
        assert page.locator(".tw-cs-fold:visible").count() == 0 and "slept" in page.locator(".tw-cs-text").inner_text()


@pytest.mark.browser
def test_by_keyboard_and_pointer(tmp_path, open_page):
    one = CacheShelf(shelf_trace("h2o"))
    write_page(tmp_path, one)
    with served(tmp_path) as address:
        page = open_page(address)
        ready(page)
        page.locator(".tw-stage").focus()
        page.keyboard.press("ArrowRight")
        assert sentence(page) == one.describe(one.step + 1)
        page.keyboard.press("Home")
        assert sentence(page) == one.describe(0) and page.locator(".tw-cs-token:visible").count() == 8
        page.keyboard.press("ArrowUp")  # the newest token, then the one before
        page.keyboard.press("ArrowUp")
        page.wait_for_selector('.tw-cs-chosen[data-i="6"]')
        assert "every head still holds it" in page.locator(".tw-cs-life").inner_text()
        page.locator(".tw-cs-lane").first.click(position={"x": 200, "y": 100})  # the foot of the history: late
        settle(page)
        assert int(page.locator(".tw-steps").input_value()) > 0.85 * one.trace.steps


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_stands_in_a_readers_way(tmp_path, open_page, dark):
    assert barriers(tmp_path, open_page, widget(), dark) == []
