"""A page with figures and no kernel: their saved state, the static host, nothing else.

`write_page(folder, widget, …)` is what the book does with an executed notebook, in small. `colours` and `picture` read
what is on the screen. To look at figures by eye:

    from tests.widgets.harness import shoot
    shoot("/tmp/shots", cache_shelf=widget)        # <name>-{1280,360}-{light,dark}.png
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = """<!doctype html><html lang="en"{theme}><head><meta charset="utf-8"><title>figures</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>body {{ margin: 0 auto; max-width: 860px; padding: 16px; background: #fff; }}
html[data-theme=dark] body {{ background: #14171c; }} h1 {{ font-size: 0; margin: 0; }}</style></head>
<body><main><h1>Figures</h1>
<script type="application/vnd.jupyter.widget-state+json">{state}</script>
{views}</main><script src="tutor-widgets.js"></script></body></html>"""


def write_page(folder: Path, *widgets, theme: str = "light", name: str = "index.html") -> Path:
    """Writes `folder/name` and the host beside it."""
    from ipywidgets.embed import embed_data

    data = embed_data(views=list(widgets), drop_defaults=False)
    escaped = lambda value: json.dumps(value, allow_nan=False).replace("</", "<\\/")
    views = "\n".join(f'<script type="application/vnd.jupyter.widget-view+json">{escaped(view)}</script>'
                      for view in data["view_specs"])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "book/assets/tutor-widgets.js", folder)
    said = f' data-theme="{theme}"' if theme else ""
    (folder / name).write_text(PAGE.format(theme=said, state=escaped(data["manager_state"]), views=views), "utf-8")
    return folder / name


def ready(page, count: int = 1) -> None:
    from playwright.sync_api import TimeoutError

    try:
        page.wait_for_function(f"document.querySelectorAll('.tw[data-ready=true]').length >= {count}", timeout=10_000)
    except TimeoutError:
        raise AssertionError(f"the figures did not appear: {page.watch.faults}; {page.inner_text('main')}") from None
    settle(page)


def settle(page) -> None:
    """Waits until two animation frames have been painted."""
    page.evaluate("() => new Promise((f) => requestAnimationFrame(() => requestAnimationFrame(() => f(true))))")


def picture(page, selector: str = ".tw-stage") -> str:
    """Hash of the pixels of the drawing (not of its chrome)."""
    settle(page)
    return hashlib.sha256(page.locator(selector).first.screenshot(animations="disabled")).hexdigest()


def sentence(page) -> str:
    settle(page)
    return page.locator(".tw-live").first.inner_text()


def set_dial(page, name: str, value: int | str | bool) -> None:
    """Moves a dial as a hand would: `value` is an index or number for ranges, a text for choices, else a bool."""
    dial = page.locator(f'[data-dial="{name}"]')
    kind = dial.first.get_attribute("type")
    if kind == "radio":
        page.locator(f'label:has([data-dial="{name}"])', has_text=str(value)).first.click()
    elif kind == "checkbox":
        dial.set_checked(bool(value))
    elif kind == "range":
        dial.fill(str(value))
    else:
        dial.select_option(label=str(value))
    settle(page)


def shoot(folder: str | Path, widths: tuple[int, ...] = (1280, 360), themes: tuple[str, ...] = ("light", "dark"),
          **widgets) -> list[Path]:
    """Screenshots of figures, to be looked at."""
    from playwright.sync_api import sync_playwright

    from tests.browser import Watch, served
    from tutor.browser import FLAGS, find

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made, browser_path = [], find()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright, served(Path(place)) as address:
        browser = playwright.chromium.launch(executable_path=browser_path, args=list(FLAGS))
        for name, widget in widgets.items():
            for theme in themes:
                write_page(Path(place), widget, theme=theme, name=f"{name}-{theme}.html")
                for width in widths:
                    page = browser.new_page(viewport={"width": width, "height": 700})
                    page.watch = Watch(page)
                    page.goto(f"{address}{name}-{theme}.html")
                    ready(page)
                    made.append(folder / f"{name}-{width}-{theme}.png")
                    page.screenshot(path=str(made[-1]), full_page=True)
                    for fault in page.watch.faults:
                        print(f"{name} {width} {theme}: {fault}")
                    page.close()
        browser.close()
    return made
