"""The head browser: display arithmetic equals Python's, and the figure on a page."""

import numpy as np
import pytest

from tests.browser import overflow, served
from tests.widgets.harness import picture, ready, sentence, set_dial, settle, write_page
from tests.widgets.node import Node
from tests.widgets.traces import TOKENS
from tutor.trace import Recorder
from tutor.widgets import head_browser
from tutor.widgets.head_browser import HeadBrowser


def atlas(layers=14, heads=3, n=16, methods=("near", "far"), measures=("first",)):
    """Random maps below the diagonal, random masks; made-up shares."""
    rng, size, all_ = np.random.default_rng(1), n * (n + 1) // 2, layers * heads
    arrays = {"maps": rng.integers(1, 256, (all_, size)).astype(np.uint8)}
    if methods:
        arrays |= {"kept": np.packbits(rng.random((len(methods), all_, size)) < 0.15, axis=-1),
                   "mass": rng.random((len(methods), all_)).astype(np.float32),
                   "load": rng.random((len(methods), all_)).astype(np.float32)}
    if measures:
        arrays["measures"] = rng.random((len(measures), all_)).astype(np.float32)
    recorder = Recorder("attention.heads/1", method="dense", params={"cells": n}, subject={
        "tokens": (TOKENS * 8)[:4 * n], "layers": list(range(3, 3 + layers)), "heads": heads, "methods": list(methods),
        "measures": list(measures)})
    for step in range(all_):
        recorder.event("surveyed", layer=3 + step // heads, head=step % heads)
        recorder.next_step()
    return recorder.finish(**arrays)


def test_tiles_by_hand():
    # 4 cells a side, kept (0, 0), (3, 0) and (3, 3); tiles of 2: (0, 0) holds one, (1, 0) one, (1, 1) one: 3 of 3.
    # Without (3, 0), tile (1, 0) is skipped: 2 of 3.
    cells = np.zeros((4, 4), np.uint8)
    cells[0, 0] = cells[3, 3] = 1
    assert head_browser.tiles_run(cells, 2).tolist() == [[1, 0], [0, 1]]
    cells[3, 0] = 1
    assert head_browser.tiles_run(cells, 2).tolist() == [[1, 0], [1, 1]]


def test_javascript_equals_python():
    trace = atlas()
    node, n = Node(HeadBrowser), 16
    for head in (0, 17, 41):
        cells, kept = head_browser.head_cells(trace, head), head_browser.kept_cells(trace, 1, head)
        np.testing.assert_allclose(node.call("headCells", trace, head), cells.ravel(), rtol=1e-12)
        assert node.call("keptCells", trace, 1, head) == kept.ravel().tolist()
        coarse = cells.reshape(4, 4, 4, 4).sum(3).mean(1)
        np.testing.assert_allclose(node.call("pooledCells", cells.ravel(), n, 4), coarse.ravel(), rtol=1e-12)
        for side in (2, 3, 16):
            told, run = node.call("tilesRun", kept.ravel(), n, side), head_browser.tiles_run(kept, side)
            assert told["run"] == run.ravel().tolist() and told["count"] == run.sum()
            assert told["all"] == len(run) * (len(run) + 1) // 2


def test_an_atlas_without_methods_brings_no_dials_for_them():
    assert [d["name"] for d in HeadBrowser(atlas(methods=(), measures=())).dials] == []
    assert [d["name"] for d in HeadBrowser(atlas()).dials] == ["measure", "method", "view", "tile"]


def test_the_still_form_shows_all_heads():
    svg = HeadBrowser(atlas(), step=5).still()
    assert svg.count("<image") == 2 and "layer 4, head 2" in svg


@pytest.fixture
def show(open_page, tmp_path):
    with served(tmp_path) as address:
        def show_(widget, theme="light", **options):
            write_page(tmp_path, widget, theme=theme)
            page = open_page(address, **options)
            ready(page)
            return page
        yield show_


@pytest.mark.browser
def test_clicks_keys_and_dials_change_the_picture(show):
    trace = atlas()
    page = show(HeadBrowser(trace, caption="All heads."))
    stage = page.locator(".tw-stage")
    stage.focus()
    for key, step in (("ArrowRight", 1), ("ArrowDown", 2), ("PageDown", 5), ("ArrowUp", 4), ("PageUp", 1)):
        page.keyboard.press(key)
        settle(page)
        assert sentence(page) == trace.describe(step)
    for name, value in (("view", "keys"), ("view", "tiles"), ("tile", "2"), ("method", "far"), ("measure", "off")):
        before = picture(page)
        dial = page.locator(f'[data-dial="{name}"]')
        if dial.first.evaluate("e => e.tagName") == "SELECT":
            dial.select_option(index=0)
        else:
            set_dial(page, name, value)
        assert picture(page) != before, name
    box = page.locator(".tw-heads-atlas").bounding_box()
    page.mouse.click(box["x"] + 60, box["y"] + 30)
    settle(page)
    assert sentence(page) == trace.describe(0)


@pytest.mark.browser
@pytest.mark.parametrize("theme, width", [("light", 1280), ("dark", 360)])
def test_it_fits_the_page_in_both_themes(show, theme, width):
    page = show(HeadBrowser(atlas(), caption="All heads."), theme=theme, width=width)
    assert overflow(page) == [] and page.locator(".tw-heads-atlas").bounding_box()["width"] <= width
