"""A JupyterLab server for tests: its own settings, a free port, a token; gone when the block ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STARTS_WITHIN_S = 90


@contextlib.contextmanager
def served(folder: Path, command: Callable[[int], list[str]], env: dict[str, str] | None = None) -> Iterator[tuple[str, str]]:
    """Runs `command(port)` in `folder`; yields (address, token) once the server answers."""
    token = secrets.token_hex(8)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = {"PYTHONPATH": str(ROOT), "JUPYTER_TOKEN": token, "JUPYTER_CONFIG_DIR": str(folder / "config"),
           "JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "lab"),
           "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces"), "IPYTHONDIR": str(folder / "ipython")}
    log = open(folder / "log.txt", "w+", encoding="utf-8")
    server = subprocess.Popen(command(port), env={**os.environ, **own, **(env or {})}, stdout=log, stderr=subprocess.STDOUT,
                              cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(STARTS_WITHIN_S * 5):
            try:
                json.load(urllib.request.urlopen(f"{address}/api?token={token}", timeout=2))
                break
            except OSError:
                assert server.poll() is None, (folder / "log.txt").read_text()
                time.sleep(0.2)
        else:
            raise AssertionError(f"JupyterLab did not start: {(folder / 'log.txt').read_text()}")
        yield address, token
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)                    # the server and what it started
        server.wait(30)
        log.close()


def run_all(open_page, address: str, token: str, notebook: str, *, timeout_s: int = 60):
    """Opens a notebook, runs all of its cells and returns the page once the first figure is there.

    Asks again where a busy machine lost the click.
    """
    from playwright.sync_api import TimeoutError

    page = open_page(f"{address}/lab/tree/{notebook}?token={token}&reset", height=1000)
    page.set_default_timeout(1000 * timeout_s)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    running = page.locator(".jp-InputArea-prompt", has_text=re.compile(r"\[(\*|\d+)\]"))
    asked = []
    for _ in range(5):
        try:
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=10_000)
            page.get_by_text("Run All Cells", exact=True).click(timeout=10_000)
            running.first.wait_for(timeout=10_000)
        except TimeoutError:
            asked += answer_dialog(page)
            continue
        page.locator(".tw[data-ready=true], .tw-predict").first.wait_for()
        return page
    notebook = page.locator(".jp-Notebook").inner_text()
    raise AssertionError(f"no cell ran in JupyterLab; dialogs: {asked}\n{notebook}\n{page.watch.faults}")


def answer_dialog(page) -> list[str]:
    """Accepts what JupyterLab asks, as a user would (which kernel, when it is not up yet); returns what it asked."""
    dialog = page.locator(".jp-Dialog")
    if not dialog.count():
        return []
    words = dialog.first.inner_text()
    dialog.first.locator(".jp-mod-accept").last.click(timeout=10_000)
    return [words]
