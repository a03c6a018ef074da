"""The built site, opened page by page in Chromium with the network cut off.

Runs against book/_build/html when that was built from the present code; skips otherwise. With TUTOR_BUILT_SITE=1 (as in
.ci/run, after `make book`) a missing or old site fails. One crawl gathers what every page did; each test asserts one
thing about all of them. Screenshots go to book/_build/shots.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.browser import LOCAL, Watch, overflow, served

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "book" / "_build"
LOOKED_AT = (
    "index",
    "coverage",
    "claims",
    "numbers",
    "paths",
    "about_model",
    "licences",
    "methods/index",
    "methods/kvcache/h2o",
    "methods/attention/streaming",
    "methods/ann/index",
    "notebooks/",
    "bibliography",
    "404",
    "search",
)


@pytest.fixture(scope="module")
def site() -> Path:
    """Folder of a site that was built, with notebooks executed, from the present code."""
    from tutor.book.build import stamp

    problem = ""
    if not (BUILT / "html" / "index.html").exists():
        problem = "the site is not built"
    elif (BUILT / "stamp").read_text() != stamp(ROOT):
        problem = "the site was built from other code, or without executing the notebooks"
    if problem:
        line = f"{problem}: run `make book` first"
        if os.environ.get("TUTOR_BUILT_SITE"):
            pytest.fail(line, pytrace=False)
        pytest.skip(line)
    return BUILT / "html"


@pytest.fixture(scope="module")
def address(site):
    with served(site) as place:
        yield place


@dataclass
class Seen:
    """What one page did and held."""

    faults: list[str]              # outside requests, console errors, answers of 400 or more
    axe: dict[str, list[str]]      # theme -> serious and critical violations
    wide: list[str]                # what sticks out at 360 px
    links: list[str]
    ids: set[str]
    widgets: int
    boxes: int                     # Plotly figures in the page
    charts: list[int]              # traces that plotly.js really drew, by figure
    formulas: list[int]            # typeset, in the source


def axe_source() -> str:
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")


AXE = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"], preload: false });
  return found.violations.filter((v) => v.impact === "serious" || v.impact === "critical").map((v) =>
    `${v.id}: ${v.nodes.length} x, first ${v.nodes[0].html.slice(0, 160)} ${v.nodes[0].failureSummary}`);
}"""

THEME = """theme => {
  document.documentElement.dataset.theme = theme;
  document.documentElement.dataset.mode = theme;
}"""

SETTLED = """() => [...document.querySelectorAll("figure.tutor-plotly .tutor-plotly-box")].every((b) => b.dataset.drawn)
  && ![...document.querySelectorAll(".tw")].some((w) => w.querySelector(".tw-wait:not([hidden])"))"""


def context_of(browser, *, width: int, dark: bool = False):
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        has_touch=width < 600,
    )
    context.route(
        "**/*",
        lambda route: route.continue_() if (urlsplit(route.request.url).hostname or "") in LOCAL else route.abort(),
    )
    return context


def wake(page) -> None:
    """Bring every lazily drawn figure into view once, then return to the top."""
    page.evaluate("""async () => { for (const e of document.querySelectorAll(".tw, figure.tutor-plotly")) {
            e.scrollIntoView({ block: "center" });
            await new Promise((done) => setTimeout(done, 60));
        } scrollTo(0, 0); }""")
    page.wait_for_function(SETTLED, timeout=30_000)


COLLECT = """() => { const all = (selector) => [...document.querySelectorAll(selector)]; return {
  links: all("a[href]").map((a) => a.href),
  ids: all("[id], [name]").flatMap((e) => [e.id, e.getAttribute("name")]),
  widgets: all(".tw").length,
  boxes: all("figure.tutor-plotly").length,
  charts: all(".tutor-plotly-box").map((b) => (b._fullData ?? []).length),
  formulas: [all("mjx-container").length, all(".math").length],
}; }"""


def visit(page, address: str, name: str, axe: str) -> Seen:
    """Open one page: wide, in both themes, then narrow; photograph those that are looked at."""
    watch, stem = Watch(page), name.removesuffix(".html")
    looked_at = stem.startswith(LOOKED_AT)

    def shoot(width: int, theme: str) -> None:
        if looked_at:
            page.screenshot(path=BUILT / "shots" / f"{stem.replace('/', '-')}-{width}-{theme}.png")

    page.goto(address + name)
    wake(page)
    page.evaluate(axe)
    violations = {}
    for theme in ("light", "dark"):
        page.evaluate(THEME, theme)
        page.wait_for_timeout(250)
        violations[theme] = page.evaluate(AXE)
        shoot(1280, theme)
    found = page.evaluate(COLLECT)
    page.set_viewport_size({"width": 360, "height": 780})
    page.wait_for_timeout(200)
    scroll = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    wide = [f"the page scrolls by {scroll} px; {overflow(page)[:4]}"] if scroll > 0 else []
    for theme in ("dark", "light"):
        page.evaluate(THEME, theme)
        shoot(360, theme)
    return Seen(faults=watch.faults, axe=violations, wide=wide, **found | {"ids": set(found["ids"])})


@pytest.fixture(scope="module")
def crawl(site, address, browser) -> dict[str, Seen]:
    """Every page, once."""
    (BUILT / "shots").mkdir(exist_ok=True)
    axe, seen = axe_source(), {}
    context = context_of(browser, width=1280)
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        page = context.new_page()
        page.set_default_timeout(30_000)
        seen[name] = visit(page, address, name, axe)
        page.close()
    context.close()
    return seen


def faults_of(crawl: dict[str, Seen], what) -> str:
    """One line for each fault of each page; empty where all is well."""
    return "\n".join(f"{name}: {fault}" for name, seen in crawl.items() for fault in what(seen))


def test_no_page_asks_another_server_or_complains_in_the_console(crawl):
    assert len(crawl) > 20
    faults = faults_of(crawl, lambda seen: seen.faults)
    assert not faults, faults


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(crawl, theme):
    faults = faults_of(crawl, lambda seen: seen.axe[theme])
    assert not faults, faults


def test_no_page_scrolls_sideways_on_a_phone(crawl):
    faults = faults_of(crawl, lambda seen: seen.wide)
    assert not faults, faults


def test_every_link_and_anchor_exists(crawl, site, address):
    dead = []
    for name, seen in crawl.items():
        for link in seen.links:
            if not link.startswith(address):
                continue
            target, anchor = urldefrag(link)
            place = unquote(urlsplit(target).path).lstrip("/") or "index.html"
            if not (site / place).exists():
                dead.append(f"{name} -> {place}")
            elif anchor and place in crawl and unquote(anchor) not in crawl[place].ids:
                dead.append(f"{name} -> {place}#{anchor}")
    assert not dead, "\n".join(dead)


def test_charts_are_drawn_by_the_sites_own_plotly(crawl):
    """Every JSON figure became a picture with at least one trace."""
    for name, seen in crawl.items():
        assert len(seen.charts) == seen.boxes and all(seen.charts), name


def test_formulas_are_typeset(crawl):
    for name, seen in crawl.items():
        typeset, written = seen.formulas
        assert typeset >= written, f"{name}: {written} formulas, {typeset} typeset"


def test_the_front_page_and_the_lessons_hold_live_figures(crawl):
    assert crawl["index.html"].widgets >= 1
    lessons = {name: seen for name, seen in crawl.items() if name.startswith("notebooks/")}
    assert lessons and sum(seen.widgets for seen in lessons.values()) >= len(lessons)


def test_search_finds_a_method_by_name(address, browser):
    context = context_of(browser, width=1280)
    page = context.new_page()
    page.goto(address + "search.html?q=heavy")
    page.wait_for_selector("ul.search li a")
    assert "h2o" in " ".join(page.eval_on_selector_all("ul.search li a", "links => links.map((a) => a.href)"))
    context.close()


def test_the_front_page_is_light_and_its_icons_are_drawn(address, browser):
    context = context_of(browser, width=1280)
    page, sizes = context.new_page(), []
    page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
    page.goto(address + "index.html")
    page.wait_for_function("() => document.fonts.status === 'loaded'")
    assert sum(sizes) < 2e6
    icon = page.locator(".theme-switch:visible").first
    shown = icon.evaluate("i => [getComputedStyle(i, '::before').content, getComputedStyle(i).fontFamily]")
    assert shown[0] not in ("none", "normal") and "Font Awesome" in shown[1] and icon.bounding_box()["width"] > 8
    assert page.evaluate("() => [...document.fonts].some((f) => f.family.includes('Font Awesome') && f.status === 'loaded')")
    context.close()


def test_the_theme_can_be_switched_and_is_remembered(address, browser):
    context = context_of(browser, width=1280)
    page = context.new_page()
    page.goto(address + "index.html")
    before = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    while page.evaluate("() => document.documentElement.dataset.theme") != "dark":
        page.locator(".theme-switch-button:visible").first.click()
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") != before
    page.goto(address + "coverage.html")
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    context.close()


PICTURE = """(root) => {                                   // all that is drawn in a figure's stage, as one string
  const stage = root.querySelector(".tw-stage") ?? root;
  const copies = [...stage.querySelectorAll("canvas")].map((c) => c.toDataURL());
  return stage.innerHTML + copies.join("");
}"""
MOVE = """(control) => {                                  // to another allowed value, as a hand would
  const last = control.length - 1;
  if (control.type === "checkbox" || control.type === "radio") { control.click(); return; }
  if (control.tagName === "SELECT") control.selectedIndex = control.selectedIndex === last ? 0 : last;
  else {
    const middle = Math.floor((Number(control.min) + Number(control.max)) / 2);
    control.value = Number(control.value) === middle ? control.max : middle;
  }
  for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind, { bubbles: true }));
}"""


def test_every_dial_changes_its_picture_with_no_kernel(crawl, address, browser):
    """Each enabled step slider and each enabled dial of each figure on each page, moved once."""
    still, moved = [], 0
    context = context_of(browser, width=1280)
    page = context.new_page()
    for name in [name for name, seen in crawl.items() if seen.widgets]:
        page.goto(address + name)
        wake(page)
        for i in range(page.locator(".tw").count()):
            root = page.locator(".tw").nth(i)
            root.scroll_into_view_if_needed()
            controls = root.locator(
                ".tw-controls input[type=range]:enabled, .tw-dials input[type=range]:enabled, "
                ".tw-dials select:enabled, .tw-dials input[type=checkbox]:enabled, "
                ".tw-dials input[type=radio]:enabled:not(:checked)"
            )
            for j in range(min(controls.count(), 6)):
                control = controls.nth(j)
                before = root.evaluate(PICTURE)
                control.evaluate(MOVE)
                page.wait_for_timeout(350)
                moved += 1
                if root.evaluate(PICTURE) == before:
                    still.append(f"{name}: figure {i}, control {j} ({control.evaluate('c => c.outerHTML')[:90]})")
    context.close()
    assert moved > 0 and not still, still
