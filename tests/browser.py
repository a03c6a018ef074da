"""A headless Chromium for tests: found, never assumed; every page it opens is watched.

`from tests.browser import browser, open_page` in a conftest gives the fixtures. `open_page(address, width=…, dark=…)`
returns a Playwright page; when the test ends, requests to other hosts, console errors, exceptions and answers of 400
or more (but /favicon.ico) fail it. Without a browser the tests are skipped with one line; with CI=true they fail.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tutor.browser import FLAGS, find

LOCAL = ("localhost", "127.0.0.1", "")


def missing(why: str) -> None:
    """No browser: a failure where CI=true, else a skip with one clear line."""
    line = f"browser tests need Chromium: {why}; install it (apt-get install chromium, or playwright install chromium)"
    if os.environ.get("CI") == "true":
        pytest.fail(line, pytrace=False)
    pytest.skip(line)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("the Python package playwright is not installed")
    path = find()
    if path is None:
        missing("none was found")
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        except Error as error:                         # found, but system libraries are missing
            missing(f"{path} does not start ({str(error).splitlines()[0]})")
        yield chromium
        chromium.close()


class Watch:
    """What a page did that it must not do."""

    def __init__(self, page):
        self.faults: list[str] = []
        page.on("request", self._request)
        page.on("response", self._response)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))

    def _request(self, request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "data", "about") and (parts.hostname or "") not in LOCAL:
            self.faults.append(f"outside request: {request.url}")

    def _response(self, response) -> None:
        if response.status >= 400 and not response.url.endswith("/favicon.ico"):
            self.faults.append(f"{response.status}: {response.url}")

    def _console(self, message) -> None:
        allowed = "favicon.ico" in str(message.location)
        if message.type == "error" and not allowed:
            self.faults.append(f"console error: {message.text}")


@pytest.fixture
def open_page(browser) -> Iterator:
    """`open_page(address, width=1280, height=900, dark=False, reduced=True)` gives a watched page."""
    opened = []

    def open_(address: str, *, width: int = 1280, height: int = 900, dark: bool = False, reduced: bool = True):
        context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 600,
                                      color_scheme="dark" if dark else "light",
                                      reduced_motion="reduce" if reduced else "no-preference")
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.watch = Watch(page)
        opened.append((context, page))
        page.goto(address)
        return page

    yield open_
    faults = [fault for _, page in opened for fault in page.watch.faults]
    for context, _ in opened:
        context.close()
    assert not faults, faults


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def copyfile(self, source, output) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):   # a page may close while a file is under way
            super().copyfile(source, output)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder on localhost; yields its address, which ends in a slash."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def overflow(page) -> list[str]:
    """Elements that stick out of the page to the right, by tag and class: must be empty."""
    return page.evaluate("""() => [...document.querySelectorAll("body *")].filter((e) => {
        const box = e.getBoundingClientRect();
        return box.width > 0 && box.right > document.documentElement.clientWidth + 1 && !e.closest(".tw-scroll");
    }).map((e) => `${e.tagName}.${e.getAttribute("class")}`)""")
