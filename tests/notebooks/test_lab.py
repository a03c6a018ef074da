"""`tutor lab` as a newcomer uses it: JupyterLab opens, the first notebook runs every cell, figures appear."""

import shutil
import sys
import time

import nbformat
import pytest

from tests.lab import run_all, served
from tutor.data import notebooks

pytestmark = [pytest.mark.browser, pytest.mark.model]


def test_the_first_notebook_runs_in_jupyterlab(tmp_path, open_page, model):
    lessons = tmp_path / "lessons"
    shutil.copytree(notebooks(), lessons, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", "conftest.py"))
    command = lambda port: [sys.executable, "-m", "tutor.cli", "lab", "--no-browser", "--port", str(port)]
    with served(tmp_path, command, env={"TUTOR_NOTEBOOKS": str(lessons)}) as (address, token):
        started = time.monotonic()
        page = run_all(open_page, address, token, "00_start_here.ipynb", timeout_s=120)
        first = time.monotonic() - started
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="busy"]').wait_for(state="hidden", timeout=240_000)
        page.keyboard.press("Control+s")
        cells = finished_cells(lessons / "00_start_here.ipynb")
    print(f"first picture after {first:.1f} s, whole notebook after {time.monotonic() - started:.1f} s")
    errors = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not errors, errors[0].traceback
    shown = [output.get("data", {}) for cell in cells for output in cell.outputs]
    assert sum("application/vnd.jupyter.widget-view+json" in data for data in shown) >= 8
    page.watch.faults = [fault for fault in page.watch.faults if "outside request" in fault]


def finished_cells(path, within_s: float = 60.0) -> list:
    """The code cells, once the saved file shows that all of them ran."""
    end = time.monotonic() + within_s
    while True:
        cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        if all(cell.execution_count for cell in cells):
            return cells
        assert time.monotonic() < end, f"{sum(not cell.execution_count for cell in cells)} cells did not run"
        time.sleep(0.5)
