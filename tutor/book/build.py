"""Build the site: gather, generate, execute, render, then check that no page asks another server for anything.

    python -m tutor.book.build                  # into book/_build/html
    python -m tutor.book.build --no-execute     # prose only, in seconds: notebooks are shown without outputs

The steps, each a function below:

1. `gather`    book/ and notebooks/ are copied to book/_build/src, with plotly.min.js from the installed package;
2. `generate`  the pages made from the catalog, claims and results (`tutor.book.pages`) are written beside them;
3. `render`    Jupyter Book executes the notebooks and writes HTML; a warning is an error;
4. `finish`    maps and leftovers are removed;
5. `inspect`   every page is read again (`tutor.book.faults`): resources from elsewhere, links to nowhere, empty widgets.

Executed notebooks are cached, and the cache is thrown away when the package, the data or a tool changed: a picture on
the site always belongs to the code of the site.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import yaml

from tutor import catalog
from tutor.book import pages
from tutor.book.faults import inspect
from tutor.book.markup import slug

SKIP = {"_build", "__pycache__", ".ipynb_checkpoints", "make_papers.py", "make_stills.py"}

# Lines of Sphinx and of the kernel that say nothing to a reader.
QUIET = r"(writing output|reading sources|copying|looking for|Config\(|={20}|Kernel is running over TCP)"


def project_root() -> Path:
    """The checkout; a `RuntimeError` elsewhere, since book and notebooks are not in the wheel."""
    folder = catalog.root()
    if folder is None or not (folder / "book").is_dir():
        raise RuntimeError(
            "the book is built from a checkout of the project; the installed package has no book/ folder"
        )
    return folder


# ------------------------------------------------------------------------------------------------------------ 1 gather
def sources(root: Path) -> Iterator[tuple[Path, str]]:
    """(file, place in the source tree) of everything that is copied."""
    for folder, prefix in ((root / "book", ""), (root / "notebooks", "notebooks/")):
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if path.is_file() and not SKIP & {*relative.parts}:
                yield path, prefix + relative.as_posix()
    plotly = Path(find_spec("plotly").origin).parent / "package_data" / "plotly.min.js"
    yield plotly, "assets/vendor/plotly.min.js"


def stamp(root: Path) -> str:
    """A hash of all that an executed notebook depends on: the package, the data, the tools."""
    digest = hashlib.sha256()
    for folder, kinds in (("tutor", {".py", ".js", ".css", ".json"}), ("data", None), ("benchmarks/results", None)):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and (kinds is None or path.suffix in kinds):
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    for package in ("torch", "numpy", "plotly", "anywidget", "myst-nb", "sphinx"):
        digest.update(f"{package}=={version(package)}\n".encode())
    return digest.hexdigest()


def put(path: Path, content: bytes) -> bool:
    """Write a file unless it already holds this, so that unchanged pages are not rendered again."""
    if path.exists() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return True


def for_readers(notebook: dict) -> dict:
    """The notebook with an anchor before the first cell of every method, the code that only lays out a chart folded, and
    without marks that only tests read.

    >>> cell = {"cell_type": "code", "source": "# NBVAL_CHECK_OUTPUT\\n1", "metadata": {"tags": ["method:ann.flat"]}}
    >>> [c["source"] for c in for_readers({"cells": [cell, cell]})["cells"]]
    ['<span id="method-ann-flat" class="method-anchor"></span>', '1', '1']
    """
    cells, seen = [], set()
    for cell in notebook["cells"]:
        for tag in cell.get("metadata", {}).get("tags", []):
            if tag.startswith("method:") and tag not in seen:
                seen.add(tag)
                name = "method-" + slug(tag[7:])
                anchor = f'<span id="{name}" class="method-anchor"></span>'
                cells.append({"cell_type": "markdown", "id": name, "metadata": {}, "source": anchor})
        source = re.sub(r"^# NBVAL_\w+\n", "", "".join(cell["source"]))
        if cell["cell_type"] == "code" and ".update_layout(" in source:
            tags = {*cell["metadata"].get("tags", []), "hide-input"}
            cell = cell | {"metadata": cell["metadata"] | {"tags": sorted(tags)}}
        cells.append(cell | {"source": source})
    return notebook | {"cells": cells}


def gather(root: Path, src: Path) -> set[str]:
    """Copy the sources; returns the places that were filled."""
    placed = set()
    for path, place in sources(root):
        content = path.read_bytes()
        if path.suffix == ".ipynb":
            content = json.dumps(for_readers(json.loads(content)), ensure_ascii=False, indent=1).encode()
        put(src / place, content)
        placed.add(place)
    return placed


# ---------------------------------------------------------------------------------------------------------- 2 generate
def expand_toc(toc: dict, places: Iterable[str]) -> dict:
    """The table of contents with every `glob` replaced by the pages that match; methods hang below their family.

    >>> toc = {"parts": [{"chapters": [{"glob": "notebooks/10_x/*"}, {"file": "notebooks/00_a"}]}]}
    >>> expand_toc(toc, ["notebooks/10_x/02_b.ipynb", "notebooks/10_x/01_a.ipynb"])["parts"][0]["chapters"]
    [{'file': 'notebooks/10_x/01_a'}, {'file': 'notebooks/10_x/02_b'}]
    """
    rank = {family: f"{i:02d}" for i, family in enumerate(catalog.FAMILIES)}  # families in the order of the course
    known = sorted(
        (Path(place).with_suffix("").as_posix() for place in places if place.endswith((".md", ".ipynb"))),
        key=lambda name: [rank.get(part, part) for part in name.split("/")],
    )

    def entries(items: list[dict]) -> list[dict]:
        out = []
        for item in items:
            if "glob" in item:
                names = [
                    name
                    for name in known
                    if Path(name).match(item["glob"]) and name.count("/") == item["glob"].count("/")
                ]
            else:
                names = [item["file"]] if item["file"] in known else []
            for name in names:
                entry = {"file": name}
                below = entries(item["sections"]) if "sections" in item else []
                if "glob" in item and name.endswith("/index"):  # a family: its methods hang below it
                    folder = name.removesuffix("index")
                    below = [{"file": other} for other in known if other.startswith(folder) and other != name]
                out.append(entry | ({"sections": below} if below else {}))
        return out

    parts = [part | {"chapters": entries(part["chapters"])} for part in toc["parts"]]
    return toc | {"parts": [part for part in parts if part["chapters"]]}


def generate(root: Path, src: Path, placed: set[str], *, execute: bool) -> None:
    """Write generated pages, the table of contents and the configuration; remove what no longer belongs."""
    made = pages.everything(root, notebooks=sorted(place for place in placed if place.endswith(".ipynb")))
    for place, text in made.items():
        put(src / place, text.encode("utf-8"))
    toc = yaml.safe_load((root / "book" / "_toc.yml").read_text("utf-8"))
    config = yaml.safe_load((root / "book" / "_config.yml").read_text("utf-8"))
    if not execute:
        config["execute"]["execute_notebooks"] = "off"
    put(src / "_toc.yml", yaml.safe_dump(expand_toc(toc, {*placed, *made}), sort_keys=False).encode())
    put(src / "_config.yml", yaml.safe_dump(config, sort_keys=False).encode())
    keep = placed | {*made} | {"_toc.yml", "_config.yml"}
    for path in [p for p in src.rglob("*") if p.is_file()]:
        place = path.relative_to(src).as_posix()
        if place not in keep and not place.startswith(("_build/", "assets/traces/")):
            path.unlink()


# ------------------------------------------------------------------------------------------------------------ 3 render
def render(src: Path) -> Path:
    """Run Jupyter Book on the source tree and return the folder with HTML.

    Raises:
        RuntimeError: a notebook failed or a page has a warning (both are in the output above).
    """
    environment = os.environ | {
        "TUTOR_ASSETS": str(src / "assets"),
        "PYTHONWARNINGS": "ignore",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    import torch

    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(src),
        "-W",
        "--keep-going",
    ]
    with subprocess.Popen(
        command, env=environment, cwd=src, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            if line.strip() and not re.search(QUIET, line):
                print("    " + re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip()), flush=True)
    if process.returncode:
        raise RuntimeError(
            "Jupyter Book found an error or a warning (above); mend the page or notebook that it names and build again"
        )
    traces = src / "assets" / "traces"  # written by the notebooks while they ran: after Sphinx looked
    if traces.is_dir():
        shutil.copytree(traces, src / "_build" / "html" / "_static" / "traces", dirs_exist_ok=True)
    return src / "_build" / "html"


# ------------------------------------------------------------------------------------------------------------ 4 finish
def finish(html: Path, fresh: Path, *, address: str = "") -> None:
    """Copy without source maps, page sources, translations and the script that draws icons (the icon font does, too); a page
    without a formula asks for no MathJax.

    A page that is not found may have been asked for at any depth: its links start from `address`, where that is known.
    """
    waste = ("*.map", "_sources", ".buildinfo*", "objects.inv", "locales", "*webpack-macros.html", "fontawesome.js")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(html, fresh, ignore=shutil.ignore_patterns(*waste))
    for page in fresh.rglob("*.html"):
        text = re.sub(r"<script [^>]*fontawesome\.js[^>]*></script>\n?", "", page.read_text("utf-8"))
        if not re.search(r'class="[^"]*\bmath(?!jax)', text):
            text = re.sub(r"<script[^>]*>window\.MathJax[^<]*</script>\n?|<script [^>]*tex-svg\.js[^>]*></script>\n?", "", text)
        text = text.replace('role="doc-biblioentry"', 'role="listitem"')       # an entry of a list is read as one
        page.write_text(text, "utf-8")
    lost = fresh / "404.html"
    if address and lost.exists():
        base = f'<head>\n<base href="{address.rstrip("/")}/">'
        lost.write_text(lost.read_text("utf-8").replace("<head>", base, 1), "utf-8")


def publish(fresh: Path, out: Path) -> None:
    """Put the new site in the place of the old one."""
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


# --------------------------------------------------------------------------------------------------------------- build
def build(out: Path | None = None, *, execute: bool = True, address: str = "") -> Path:
    """Build the whole site and return its folder. `address` is where it will be published, if known."""
    root = project_root()
    work = root / "book" / "_build"
    src, out = work / "src", Path(out) if out else work / "html"
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[book {time.monotonic() - started:6.1f} s] {text}", flush=True)

    work.mkdir(parents=True, exist_ok=True)
    now, mark = stamp(root) + ("" if execute else " prose"), work / "stamp"
    if not mark.exists() or mark.read_text() != now:
        say("package, data or tools changed: executed pages are made anew")
        for old in (src, work / "jupyter_cache"):
            shutil.rmtree(old, ignore_errors=True)
        mark.write_text(now)
    say("gather sources and generate pages")
    placed = gather(root, src)
    generate(root, src, placed, execute=execute)
    lessons = sum(place.endswith(".ipynb") for place in placed)
    say(f"execute {lessons} notebooks and render" if execute else "render without executing")
    html = render(src)
    fresh = out.with_name(out.name + ".new")
    finish(html, fresh, address=address)
    count, size = inspect(fresh, executed=execute)          # the old site stays until the new one is found sound
    publish(fresh, out)
    say(f"{count} pages, {size / 2**20:.1f} MB, no request to another server, no dead link: {out}")
    return out


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tutor.book.build", description=__doc__.splitlines()[0])
    parser.add_argument("--no-execute", action="store_true", help="render notebooks without running them")
    parser.add_argument("--out", type=Path, help="folder of the site (default: book/_build/html)")
    parser.add_argument("--address", default="", help="where the site will be published, for the links of its 404 page")
    options = parser.parse_args(arguments)
    try:
        build(options.out, execute=not options.no_execute, address=options.address)
    except RuntimeError as error:
        print(f"[book] {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
