"""Asks axe what in a figure would keep a reader out."""

from __future__ import annotations

from pathlib import Path

import axe_playwright_python

from tests.browser import served
from tests.widgets.harness import ready, write_page

RUN = """async () => (await axe.run(document.querySelector(".tw"), { resultTypes: ["violations"] })).violations
    .filter((v) => v.impact === "serious" || v.impact === "critical")
    .map((v) => `${v.id}: ${v.nodes[0].html.slice(0, 160)} ${v.nodes[0].failureSummary}`)"""


def barriers(folder: Path, open_page, widget, dark: bool = False) -> list[str]:
    """Violations of level serious or above in one figure, with a token or point chosen by keyboard."""
    write_page(folder, widget, theme="dark" if dark else "light")
    with served(folder) as address:
        page = open_page(address, dark=dark)
        ready(page)
        page.locator(".tw-stage").focus()
        page.keyboard.press("ArrowDown")
        page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8"))
        return page.evaluate(RUN)
