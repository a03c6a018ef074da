"""Budgets of the lessons, kept while nbval runs them: time per notebook and in sum, and peak memory of the kernel."""

from __future__ import annotations

import threading
import time
from collections import defaultdict

import psutil
import pytest

SECONDS_EACH, SECONDS_TOGETHER, MEGABYTES = 60, 12 * 60, 1536

seconds: dict[str, float] = defaultdict(float)
peak: dict[str, float] = defaultdict(float)
_current = ""
_stop = threading.Event()


def _watch() -> None:
    me = psutil.Process()
    while not _stop.wait(0.2):
        try:
            size = sum(p.memory_info().rss for p in me.children(recursive=True)) / 2**20
        except psutil.NoSuchProcess:      # a kernel ended between listing and asking
            continue
        if _current:
            peak[_current] = max(peak[_current], size)


def pytest_sessionstart(session):
    threading.Thread(target=_watch, daemon=True).start()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item, nextitem):
    global _current
    _current = item.nodeid.split("::")[0]
    started = time.monotonic()
    yield
    seconds[_current] += time.monotonic() - started


def pytest_sessionfinish(session, exitstatus):
    _stop.set()
    over = [f"{name}: {s:.0f} s > {SECONDS_EACH} s" for name, s in seconds.items() if s > SECONDS_EACH]
    over += [f"{name}: {mb:.0f} MB > {MEGABYTES} MB" for name, mb in peak.items() if mb > MEGABYTES]
    if sum(seconds.values()) > SECONDS_TOGETHER:
        over.append(f"all notebooks: {sum(seconds.values()):.0f} s > {SECONDS_TOGETHER} s")
    session.config.stash[_OVER] = over
    if over and session.exitstatus == 0:
        session.exitstatus = 1


_OVER = pytest.StashKey[list]()


def pytest_terminal_summary(terminalreporter, config):
    for name in seconds:
        terminalreporter.write_line(f"{seconds[name]:6.1f} s  {peak[name]:6.0f} MB  {name}")
    terminalreporter.write_line(f"{sum(seconds.values()):6.1f} s  all notebooks")
    for line in config.stash.get(_OVER, []):
        terminalreporter.write_line(f"OVER BUDGET {line}", red=True)
