"""The figures on a static page, with no kernel: dials, keys, voice, width, themes, lazily fetched data, links."""

import re

import pytest

from tests.browser import overflow, served
from tests.widgets.harness import picture, ready, sentence, set_dial, settle, write_page
from tests.widgets.traces import frontier_trace, grid_trace, strip_trace
from tutor.widgets import AttentionGrid, Frontier, TokenStrip, dial

pytestmark = pytest.mark.browser


def strip():
    return TokenStrip(strip_trace(), caption="The first token holds most.", step=5, dials=[dial("keep", min=0, max=24)])


def grid():
    return AttentionGrid(grid_trace(), caption="Sinks.")


def front():
    return Frontier(frontier_trace(), caption="The oracle leads.")


FIGURES = {"token_strip": strip, "attention_grid": grid, "frontier": front}
each = pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)


@pytest.fixture
def show(open_page, tmp_path):
    """`show(widget, …, theme="light", width=1280)` gives a page on which the figures are drawn."""
    with served(tmp_path) as address:
        def show_(*widgets, theme="light", wait=True, **options):
            write_page(tmp_path, *widgets, theme=theme)
            page = open_page(address, **options)
            if wait:
                ready(page, len(widgets))
            return page
        yield show_


# ------------------------------------------------------------------------------------------------- dials, keys, voice
@pytest.mark.parametrize("make, name, value", [
    (strip, "keep", 3), (grid, "keep", 3), (grid, "sinks", 3), (grid, "window", 4), (grid, "head", "layer 4, head 1"),
    (front, "log_x", False)], ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_dial_changes_the_picture_with_no_kernel(show, make, name, value):
    page = show(make())
    before = picture(page)
    set_dial(page, name, value)
    assert picture(page) != before


@each
def test_keys_walk_the_steps_and_the_live_region_speaks_the_trace(show, make):
    widget = make()
    page, last = show(widget), widget.trace.steps - 1
    stage = page.locator(".tw-stage")
    stage.focus()
    assert sentence(page) == widget.describe(widget.step)
    before, was = picture(page), widget.step
    for key, step in (("ArrowRight", None), ("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 1), ("End", last),
                      ("ArrowRight", last)):
        step = was + 1 if step is None else step
        stage.press(key)
        assert sentence(page) == widget.describe(step), key
        assert page.locator(".tw-steps").input_value() == str(step)
        now = picture(page)
        assert (now != before) == (was != step), key
        before, was = now, step
    assert page.locator(".tw-live").get_attribute("aria-live") == "polite"


def test_play_walks_to_the_end_and_stops(show):
    widget = strip()
    page = show(widget)
    page.locator(".tw-speed").select_option("16")
    page.locator(".tw-stage").press(" ")
    assert page.locator(".tw-live").get_attribute("aria-live") == "off"          # a voice cannot follow a film
    page.wait_for_function(f"document.querySelector('.tw-steps').value === '{widget.trace.steps - 1}'")
    page.wait_for_function("document.querySelector('.tw-live').getAttribute('aria-live') === 'polite'")
    assert sentence(page) == widget.describe(widget.trace.steps - 1)
    page.get_by_role("button", name="First step").click()
    assert sentence(page) == widget.describe(0)


def test_space_pauses(show):
    page = show(strip())
    stage = page.locator(".tw-stage")
    stage.press(" ")
    page.get_by_role("button", name="Pause").wait_for()
    stage.press(" ")
    page.get_by_role("button", name="Play", exact=True).wait_for()


@each
def test_every_control_can_be_reached_and_named(show, make):
    page = show(make())
    nameless = page.evaluate("""() => [...document.querySelectorAll(".tw button, .tw input, .tw select")].filter((e) =>
        e.offsetParent && !(e.getAttribute("aria-label") || e.textContent.trim() || (e.labels && e.labels.length)))
        .map((e) => e.outerHTML)""")
    assert nameless == []
    page.locator(".tw-stage").focus()
    ring = "getComputedStyle(document.querySelector('.tw-stage')).boxShadow"
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(ring) != "none"                                          # focus can be seen


# ------------------------------------------------------------------------------------------------------ width, themes
@each
@pytest.mark.parametrize("width", [360, 768])
def test_nothing_sticks_out(show, make, width):
    page = show(make(), width=width, height=740)
    assert overflow(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.evaluate("""() => [
        ...document.querySelectorAll(".tw button, .tw select, .tw input[type=range]")].filter((e) => e.offsetParent
            && Math.min(e.offsetHeight, Math.max(e.offsetWidth, e.offsetHeight)) < 32)
        .map((e) => `${e.className} ${e.offsetWidth}x${e.offsetHeight}`)""")
    assert small == []                                                            # room for a finger


CONTRAST = """() => {
  const colour = (text) => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith("color(") ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    const c = colour(getComputedStyle(e).backgroundColor);
    return c[3] === 1 || !e.parentElement ? c : over(c, ground(e.parentElement));
  };
  const low = [];
  const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement;
    if (!n.textContent.trim() || !e.closest(".tw") || e.tagName === "OPTION" || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), behind = ground(e);
    const ink = over(colour(e instanceof SVGElement ? style.fill : style.color), behind);
    const [a, b] = [light(ink), light(behind)].sort((x, y) => x - y), ratio = (b + 0.05) / (a + 0.05);
    if (ratio < 4.5) low.push(`${e.tagName} ${e.className} ${n.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return low;
}"""


@each
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read(show, make, theme):
    page = show(make(), theme=theme)
    assert page.locator(".tw").get_attribute("data-theme") == theme
    assert page.evaluate(CONTRAST) == []


def test_themes_follow_the_page_at_once(show):
    page = show(grid(), theme="light", dark=True)                                 # the page's word beats the system's
    theme = lambda: page.locator(".tw").get_attribute("data-theme")
    before = picture(page)
    assert theme() == "light"
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    settle(page)
    assert theme() == "dark" and picture(page) != before
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")                  # as JupyterLab says it
    settle(page)
    assert theme() == "light" and picture(page) == before


def test_without_a_word_of_the_page_the_system_decides(show):
    assert show(strip(), theme="", dark=True).locator(".tw").get_attribute("data-theme") == "dark"


# ---------------------------------------------------------------------------------------------------------- the host
def test_variants_are_shown_with_their_own_sentences(show):
    a, b = strip_trace(seed=1), strip_trace(rows=4, seed=2)
    page = show(TokenStrip(variants=[({"policy": "one"}, a), ({"policy": "two"}, b)], step=9))
    before = picture(page)
    set_dial(page, "policy", "two")
    assert sentence(page) == b.describe(3) and picture(page) != before            # the step stays within the trace
    set_dial(page, "policy", "one")
    assert sentence(page) == a.describe(3)


def test_a_live_dial_becomes_a_sentence(show):
    note = "In a running notebook you choose the seed."
    page = show(TokenStrip(strip_trace(), live={"seed": lambda now: strip_trace(seed=now["seed"])},
                           dials=[dial("seed", min=0, max=9, mode="live", note=note)]))
    assert page.locator(".tw-note").inner_text() == note and page.locator("[data-dial=seed]").count() == 0


def test_large_data_is_fetched_when_its_figure_comes_near(show, tmp_path, monkeypatch):
    monkeypatch.setenv("TUTOR_ASSETS", str(tmp_path))
    tall = [strip() for _ in range(5)]
    large = TokenStrip(strip_trace(seed=3), file="far")
    page = show(*tall, large, wait=False, height=500)
    ready(page, 5)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    settle(page)
    assert not [url for url in asked if url.endswith(".bin")]
    page.locator(".tw").nth(5).scroll_into_view_if_needed()
    ready(page, 6)
    assert [url for url in asked if url.endswith(large.file)]
    assert page.locator(".tw-live").nth(5).inner_text() == large.describe(0)


def test_missing_data_is_said(show, tmp_path):
    page = show(TokenStrip(strip_trace(), file="nowhere"), wait=False)
    page.locator(".tw[data-ready=failed]").wait_for()
    assert re.search(r"the recorded trace nowhere-\w+\.bin is missing on this site \(404\)",
                     page.locator(".tw-notice").inner_text())
    assert len(page.watch.faults) >= 1
    page.watch.faults.clear()                                                     # the 404 is the point here


def test_two_views_of_one_figure_move_together(show):
    widget = strip()
    page = show(widget, widget)
    page.locator(".tw-stage").first.press("Home")
    settle(page)
    said = page.locator(".tw-live").all_inner_texts()
    assert said == [widget.describe(0)] * 2
    assert page.locator("style").count() == 2                      # the page's own, and the figure's once


def test_linked_figures_and_boxes(show):
    import ipywidgets

    one, two = strip(), TokenStrip(strip_trace(seed=5))
    page = show(ipywidgets.VBox([one, two]), wait=False)
    ready(page, 2)
    page.locator(".tw-stage").first.press("End")
    assert page.locator(".tw-live").all_inner_texts()[1] == two.describe(0)       # not linked
    link = ipywidgets.jslink((one, "step"), (two, "step"))
    page = show(ipywidgets.VBox([one, two]), link, wait=False)
    ready(page, 2)
    page.locator(".tw-stage").first.press("End")
    settle(page)
    assert page.locator(".tw-live").all_inner_texts()[1] == two.describe(11)
    page.locator(".tw-stage").nth(1).press("Home")
    settle(page)
    assert page.locator(".tw-live").all_inner_texts()[0] == one.describe(0)


def test_other_widgets_are_explained(show):
    import ipywidgets

    page = show(ipywidgets.IntSlider(), strip(), wait=False)
    ready(page, 1)
    assert "needs a running kernel" in page.locator(".tutor-needs-kernel").inner_text()


# ------------------------------------------------------------------------------------------------------- each figure
def test_a_word_can_be_asked_for_its_weight(show):
    page = show(strip())
    page.locator(".tw-tok").first.hover()
    assert re.fullmatch(r'0 "The"\n0\.\d+ attention', page.locator(".tw-tip").inner_text())
    page.locator(".tw-stage").press("ArrowDown")
    page.locator(".tw-stage").press("ArrowDown")
    assert page.locator(".tw-live").inner_text().startswith('Token 2 " keeps"')


def test_the_strip_marks_the_top_k(show):
    page = show(strip())
    set_dial(page, "keep", 3)
    assert page.locator('.tw-tok[data-kept="kept"]').count() == 3
    assert "3 tokens hold" in page.locator(".tw-readout").inner_text()


def test_the_grid_chooses_zooms_and_pans(show):
    widget = grid()
    page = show(widget)
    box = page.locator(".tw-grid-map").bounding_box()
    side = box["height"]
    page.mouse.click(box["x"] + box["width"] - side + 30, box["y"] + side * 20.5 / 48)     # row 20 of 48
    assert sentence(page) == widget.describe(20)
    whole = picture(page)
    page.locator(".tw-stage").press("+")
    zoomed = picture(page)
    assert zoomed != whole
    x, y = box["x"] + box["width"] - side / 2, box["y"] + side / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 90, y + 60, steps=4)
    page.mouse.up()
    assert sentence(page) == widget.describe(20)                                  # a drag chooses no row
    page.mouse.move(0, 0)
    panned = picture(page)
    assert panned != zoomed
    page.get_by_role("button", name="Show all").click()
    page.mouse.move(0, 0)
    assert picture(page, ".tw-grid-profile")
    page.locator(".tw-stage").focus()
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    page.mouse.move(0, 0)
    assert picture(page) not in (whole, panned)


def test_a_passing_scroll_is_not_caught(show):
    page = show(*[grid() for _ in range(2)], height=500)
    box = page.locator(".tw-grid-map").first.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.wheel(0, 200)
    page.wait_for_function("window.scrollY > 50")


def test_the_grid_reads_out_kept_mass(show):
    from tutor.schemas import grid_row
    from tutor.widgets.attention_grid import keep_mask, kept_mass

    widget = grid()
    page = show(widget)
    assert page.locator(".tw-readout").inner_text() == ""
    set_dial(page, "keep", 3)                                                     # index 3: the four most probable keys
    rows = [grid_row(widget.trace, 0, i) for i in range(48)]
    mass = [kept_mass(p, keep_mask(p, 4)) for p in rows]
    want = f"kept mass {100 * mass[widget.step]:.0f} % of this row, {100 * sum(mass) / 48:.0f} % on average"
    assert page.locator(".tw-readout").inner_text() == want


def test_recorded_selections_are_shown(show):
    widget = AttentionGrid(grid_trace(selected=True))
    page = show(widget)
    assert page.locator(".tw-readout").inner_text().startswith("kept mass")
    assert page.locator(".tw-dropped").count() > 0


def test_a_point_of_the_frontier_is_chosen(show):
    widget = front()
    page = show(widget)
    page.get_by_role("button", name="random").click()
    assert sentence(page) == widget.describe(2)
    page.locator(".tw-stage").press("ArrowUp")
    settle(page)
    assert page.locator(".tw-picked").count() == 1
    settle(page)
    assert page.locator(".tw-live").inner_text().startswith("random; attention mass kept")
    assert page.locator(".tw-best").count() == 7      # the oracle's five points, and the two that equal its last
