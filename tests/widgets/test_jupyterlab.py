"""The figures in JupyterLab, with a kernel: the same module, and a live dial that calls Python."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from tests.widgets.harness import picture, set_dial, settle
from tests.widgets.traces import strip_trace

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
CELLS = [
    "from tests.widgets.traces import strip_trace\nfrom tutor.widgets import TokenStrip, dial",
    """
run = lambda now: strip_trace(rows=6, seed=now["seed"])
figure = TokenStrip(strip_trace(rows=6), live={"seed": run}, file="kept_out_of_the_state", caption="Weights.",
                    dials=[dial("keep", min=0, max=24), dial("seed", min=0, max=9, mode="live", note="Run it.")])
figure
""",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab server with one notebook; yields (address, token)."""
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(8)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "figures.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(folder / "config"),
                        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "lab"),
                        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces"), "IPYTHONDIR": str(folder / "ipython")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = open(folder / "log.txt", "w+", encoding="utf-8")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
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
        server.terminate()
        server.wait(20)
        log.close()


def run_all(page) -> None:
    """Runs the notebook; asks again where a busy machine lost the first click."""
    from playwright.sync_api import TimeoutError

    for _ in range(3):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        try:
            page.locator(".tw[data-ready=true]").wait_for(timeout=30_000)
            return
        except TimeoutError:
            seen = page.locator(".jp-Notebook").inner_text()
    raise AssertionError(f"the figure did not appear in JupyterLab:\n{seen}\n{page.watch.faults}")


def test_dials_and_keys_in_jupyterlab(lab, open_page):
    address, token = lab
    page = open_page(f"{address}/lab/tree/figures.ipynb?token={token}&reset", height=1000)
    page.set_default_timeout(60_000)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    run_all(page)
    settle(page)

    def wait_for_sentence(trace, step):
        want = re.sub(r"\s+", " ", trace.describe(step))
        page.wait_for_function("t => document.querySelector('.tw-live').innerText.replace(/\\s+/g, ' ') === t",
                               arg=want)

    stage = page.locator(".tw-stage")
    wait_for_sentence(strip_trace(rows=6), 0)
    stage.press("ArrowRight")                                  # a key for the figure, not for the notebook
    wait_for_sentence(strip_trace(rows=6), 1)
    before = picture(page)
    set_dial(page, "keep", 5)                                  # display arithmetic
    kept = picture(page)
    assert kept != before
    set_dial(page, "seed", 7)                                  # Python
    wait_for_sentence(strip_trace(rows=6, seed=7), 1)
    assert picture(page) != kept
    assert page.locator(".tw-notice").is_hidden() and page.locator(".tw-note").count() == 0
    page.watch.faults = [f for f in page.watch.faults if "outside request" in f or "tw" in f or "figure" in f]
