"""The figures in JupyterLab, with a kernel: the same module, and a live dial that calls Python."""

import re
import sys

import nbformat
import pytest

from tests.lab import run_all, served
from tests.widgets.harness import picture, set_dial, settle
from tests.widgets.traces import strip_trace

pytestmark = pytest.mark.browser
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
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "figures.ipynb")
    command = lambda port: [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
                            "--ip=127.0.0.1", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None",
                            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with served(folder, command) as place:
        yield place


def test_dials_and_keys_in_jupyterlab(lab, open_page):
    address, token = lab
    page = run_all(open_page, address, token, "figures.ipynb")
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
