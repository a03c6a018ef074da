"""A figure whose trace stays with the kernel: it asks again while no answer comes, and draws when one does."""

import base64

import pytest

from tests.browser import served
from tests.widgets.traces import strip_trace
from tutor.widgets import TokenStrip
from tutor.widgets.base import module_source

pytestmark = pytest.mark.browser
FAKE = """async ([traits, bytes, lost]) => {
    const buffer = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
    const heard = new Set(), asked = window.asked = [];
    const model = {
        get: (name) => traits[name], set: () => {}, save_changes: () => {},
        on: (name, f) => { if (name === "msg:custom") heard.add(f); },
        off: (name, f) => heard.delete(f),
        send: (content) => {
            asked.push(content.want);
            if (asked.length <= lost) return;
            setTimeout(() => heard.forEach((f) => f({ is: "buffer" }, [new DataView(buffer.buffer)])), 10);
        },
    };
    const el = document.body.appendChild(document.createElement("div"));
    const figure = (await import("./figure.js")).default;
    window.close_figure = await figure.render({ model, el });
}"""


def open_figure(tmp_path, open_page, address, lost):
    """A page with one figure whose first `lost` questions to the kernel get no answer; its clock is ours."""
    widget = TokenStrip(strip_trace(rows=3), file="large")
    (tmp_path / "figure.js").write_text(module_source("token_strip"), "utf-8")
    (tmp_path / "index.html").write_text('<!doctype html><link rel="icon" href="data:,"><title>waits</title>', "utf-8")
    traits = {name: getattr(widget, name) for name in ("header", "variants", "sentences", "dials", "settings", "step",
                                                       "selection", "title", "caption", "file", "busy", "notice")}
    page = open_page(address)
    page.clock.install()
    page.evaluate(FAKE, [traits, base64.b64encode(widget._buffer).decode(), lost])
    return page


def test_a_lost_question_is_asked_again(tmp_path, open_page):
    with served(tmp_path) as address:
        page = open_figure(tmp_path, open_page, address, lost=2)
        wait = page.locator(".tw-wait")
        wait.wait_for()
        assert "recorded trace" in wait.inner_text()
        page.clock.run_for(2100)
        assert "kernel" in wait.inner_text()
        page.clock.run_for(4100)                          # the second wait is twice as long
        page.locator(".tw[data-ready=true]").wait_for()
        assert page.evaluate("asked") == ["buffer"] * 3
        page.clock.run_for(60_000)                        # an answer ends the asking
        assert page.evaluate("asked.length") == 3 and wait.count() == 0


def test_a_closed_figure_asks_no_more(tmp_path, open_page):
    with served(tmp_path) as address:
        page = open_figure(tmp_path, open_page, address, lost=99)
        page.wait_for_function("asked.length === 1")
        page.evaluate("close_figure()")
        page.clock.run_for(60_000)
        assert page.evaluate("asked.length") == 1
