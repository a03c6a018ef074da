"""Finds, or brings, the Chromium that the browser tests drive.

Order: `TUTOR_CHROMIUM`, the usual paths, the browser that Playwright downloaded. `bring()` installs the Debian package
when it runs as root on a Debian-like system, else asks Playwright to download its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

USUAL = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
USUAL_PATHS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
)

# Quiet and offline: no update checks, no first-run pages, no look-ups of outside hosts.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def find() -> str | None:
    """Path of a Chromium, or None.

    Raises:
        ValueError: `TUTOR_CHROMIUM` is set but names no file.
    """
    wanted = os.environ.get("TUTOR_CHROMIUM")
    if wanted:
        if not Path(wanted).is_file():
            raise ValueError(f"TUTOR_CHROMIUM={wanted!r} is not a file; point it at a Chromium binary or unset it")
        return wanted
    for name in USUAL:
        if found := shutil.which(name):
            return found
    for path in USUAL_PATHS:
        if Path(path).is_file():
            return path
    return _playwrights_own()


def _playwrights_own() -> str | None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as p:
        path = p.chromium.executable_path
    return path if Path(path).is_file() else None


def bring() -> str | None:
    """Find a browser or install one; None (with the reason on stderr) where neither way is possible."""
    if found := find():
        return found
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        print("installing the Debian package chromium …", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium", "fonts-dejavu-core"]):
            done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                break
        if found := find():
            return found
    print("asking Playwright for its own Chromium …", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "playwright", "install", "chromium"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        print("no browser: Playwright could not download one; install Chromium and set TUTOR_CHROMIUM", file=sys.stderr)
    return find()
