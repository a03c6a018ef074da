"""What must not be published: pages that ask another server, links to nowhere, widgets without state, too many bytes."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from bs4 import BeautifulSoup

MOST_BYTES = 60 * 1024 * 1024
WIDGET_VIEW, WIDGET_STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"

# Elements whose address is fetched when the page is opened (a plain <a href> is not).
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "link": "href",
}
LINK_KINDS = {
    "stylesheet",
    "icon",
    "shortcut",
    "preload",
    "prefetch",
    "modulepreload",
    "preconnect",
    "dns-prefetch",
    "manifest",
}


def outside(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "ftp", "ws", "wss")


def faults(page: Path, site: Path, anchors: dict[Path, set[str]], *, executed: bool = True) -> list[str]:
    """What is wrong with one page, each in a sentence."""
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    found = []
    for tag, attribute in FETCHED.items():
        for element in soup.find_all(tag):
            address = element.get(attribute)
            if not address or (tag == "link" and not LINK_KINDS & {*element.get("rel", [])}):
                continue
            if outside(address):
                found.append(f"<{tag}> asks another server for {address}")
    for link in soup.find_all(["a", "img", "script", "link"]):
        address = link.get("href") or link.get("src") or ""
        if not address or outside(address) or urlsplit(address).scheme:
            continue
        path, anchor = urldefrag(address)
        path = urlsplit(path).path
        target = (
            (site / path.lstrip("/") if path.startswith("/") else page.parent / unquote(path)).resolve()
            if path
            else page
        )
        if target.is_dir():
            target = target / "index.html"
        if not target.exists():
            found.append(f"link to {address}, which does not exist")
        elif anchor and target in anchors and unquote(anchor) not in anchors[target]:
            found.append(f"link to {address}, which has no such anchor")
    views = [json.loads(tag.string) for tag in soup.find_all("script", type=WIDGET_VIEW)]
    states = {key for tag in soup.find_all("script", type=WIDGET_STATE) for key in json.loads(tag.string)["state"]}
    lost = [view["model_id"] for view in views if view["model_id"] not in states]
    if lost and executed:
        found.append(f"{len(lost)} of {len(views)} widgets have no saved state: they would stay empty")
    return found


def inspect(out: Path, *, executed: bool = True) -> tuple[int, int]:
    """Read every page again; returns (pages, bytes).

    Raises:
        RuntimeError: something on a page is wrong (all of it is listed), or the site is too large.
    """
    found_pages = sorted(out.rglob("*.html"))
    anchors = {}
    for page in found_pages:
        soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
        anchors[page.resolve()] = {tag[key] for key in ("id", "name") for tag in soup.find_all(attrs={key: True})} | {
            "top",
            "",
        }
    problems = [
        f"{page.relative_to(out)}: {fault}"
        for page in found_pages
        for fault in faults(page.resolve(), out.resolve(), anchors, executed=executed)
    ]
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        problems.append(f"the site has {size / 2**20:.1f} MB; at most {MOST_BYTES / 2**20:.0f} MB are allowed")
    if problems:
        raise RuntimeError("the built site has faults:\n  " + "\n  ".join(problems))
    return len(found_pages), size
