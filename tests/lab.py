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
RUNNING = re.compile(r"\[(\*|\d+)\]")                  # the prompt of a cell that was asked to run


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


FIGURE = ".tw[data-ready=true], .tw-predict"
STATE = """() => ({
    dialogs: [...document.querySelectorAll(".jp-Dialog")].map((e) => e.innerText),
    prompts: [...document.querySelectorAll(".jp-InputArea-prompt")].map((e) => e.innerText.trim()).filter(Boolean),
    kernel: document.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status,
    figures: [...document.querySelectorAll(".tw")].map((e) => e.dataset.ready || "not ready"),
    outputs: [...document.querySelectorAll(".jp-OutputArea")].map((e) => e.innerText.slice(0, 300)).filter(Boolean)})"""


def run_all(open_page, address: str, token: str, notebook: str, *, timeout_s: int = 60, tries: int = 3):
    """Opens a notebook, runs all of its cells and returns the page once the first figure is there.

    Does what a user does where JupyterLab is not up yet: answers its question for a kernel, clicks again where the click
    was lost, and opens the page anew where nothing comes within `timeout_s`. The states it saw are in the failure.
    """
    seen = []
    for _ in range(tries):
        page = open_page(f"{address}/lab/tree/{notebook}?token={token}&reset", height=1000)
        page.set_default_timeout(1000 * timeout_s)
        page.locator(".jp-Notebook").first.wait_for()
        if _figure_comes(page, address, token, timeout_s, seen):
            return page
        page.watch.faults = [fault for fault in page.watch.faults if "outside request" in fault]   # the rest is in `seen`
        page.close()
    raise AssertionError("no figure came in JupyterLab; it showed:\n" + "\n".join(map(str, seen)))


def _figure_comes(page, address: str, token: str, timeout_s: int, seen: list) -> bool:
    from playwright.sync_api import Error

    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        state = page.evaluate(STATE)
        if not seen or seen[-1] != state:
            seen.append(state)
        if page.locator(FIGURE).count():
            return True
        try:
            if state["dialogs"]:                         # which kernel, when it is not up yet: the one it proposes
                page.locator(".jp-Dialog .jp-mod-accept").last.click(timeout=5_000)
            elif not any(RUNNING.match(prompt) for prompt in state["prompts"]) and kernel_is_up(address, token):
                page.get_by_role("menuitem", name="Run", exact=True).click(timeout=5_000)
                page.get_by_text("Run All Cells", exact=True).click(timeout=5_000)
                page.locator(".jp-InputArea-prompt", has_text=RUNNING).first.wait_for(timeout=5_000)
        except Error as error:
            seen.append(str(error).splitlines()[0])
        page.wait_for_timeout(300)
    seen += page.watch.faults
    return False


def kernel_is_up(address: str, token: str) -> bool:
    """The server has a kernel that answered and that a page is connected to."""
    sessions = json.load(urllib.request.urlopen(f"{address}/api/sessions?token={token}", timeout=10))
    kernels = [session["kernel"] for session in sessions]
    return any(kernel["connections"] > 0 and kernel["execution_state"] in ("idle", "busy") for kernel in kernels)
