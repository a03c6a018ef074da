"""Catalog: every method of the package, found by looking.

A method registers itself with one decorator in its own file; the catalog imports the method packages and sees what is
there. Nobody declares a status: a method is `done` only when its reference can be imported, a page has a cell tagged
with its name, at least one claim has been measured, and tests that name it exist. Papers that have no method yet are
listed from `papers.json` as `open`, so that the coverage matrix cannot flatter.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

FAMILIES = ("attention", "kvcache", "compress", "speculative", "compute", "ann", "retrieval", "extras")

# Where method files live: every module in these packages is imported by `load_all`.
PACKAGES = ("tutor.attention.methods", "tutor.kvcache.policies", "tutor.compress", "tutor.speculative.draft",
            "tutor.speculative.verify", "tutor.compute", "tutor.ann", "tutor.retrieval", "tutor.extras")

LESSON_FOLDERS = {"attention": "10_attention", "kvcache": "20_kvcache", "compress": "20_kvcache", "speculative": "30_speculative",
                  "compute": "30_speculative", "ann": "40_ann", "retrieval": "40_ann", "extras": "40_ann"}


@dataclass(frozen=True)
class Method:
    """A catalog entry.

    Attributes:
        name: unique within its family; file, test, claims and page section carry the same name.
        family: one of `FAMILIES`.
        title: what a reader would call it.
        paper: BibTeX key in `book/references.bib`, or "" for a baseline without a paper.
        build: makes it with its defaults: a class or a function.
        kernel: dotted name of the optimized path, e.g. "tutor.kernels.flash.flash_attention".
        flags: facts the contract tests need, e.g. {"rowwise", "monotone", "lossy", "exact"}.
        grid: parameter sets for frontiers, from cheap to dear.
    """

    name: str
    family: str
    title: str
    paper: str
    build: Callable[..., Any]
    kernel: str = ""
    flags: frozenset[str] = frozenset()
    grid: tuple[dict[str, Any], ...] = field(default=())

    @property
    def module(self) -> str:
        return self.build.__module__

    @property
    def key(self) -> str:
        return f"{self.family}.{self.name}"


REGISTRY: dict[str, Method] = {}     # "family.name" -> Method


def method(name: str, family: str, title: str, *, paper: str = "", kernel: str = "", flags: tuple[str, ...] = (),
           grid: tuple[dict[str, Any], ...] = ()) -> Callable:
    """Class or function decorator that enters a method into the catalog and leaves it unchanged."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}; got {family!r}")

    def register(build):
        entry = Method(name, family, title, paper, build, kernel, frozenset(flags), tuple(grid))
        known = REGISTRY.get(entry.key)
        if known is not None and known.module != entry.module:
            raise ValueError(f"method {entry.key} is defined in both {known.module} and {entry.module}; rename one")
        REGISTRY[entry.key] = entry
        return build

    return register


def load_all() -> dict[str, Method]:
    """Import every method file and return the registry."""
    for package_name in PACKAGES:
        package = importlib.import_module(package_name)
        for module in pkgutil.iter_modules(package.__path__, package_name + "."):
            importlib.import_module(module.name)
    return REGISTRY


def methods(family: str | None = None) -> list[Method]:
    """Registered methods, in order of family and name."""
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}; got {family!r}")
    chosen = [m for m in load_all().values() if family in (None, m.family)]
    return sorted(chosen, key=lambda m: (FAMILIES.index(m.family), m.name))


def get(family: str, name: str) -> Method:
    """One method; a `ValueError` lists the names of its family."""
    load_all()
    if f"{family}.{name}" not in REGISTRY:
        known = ", ".join(m.name for m in methods(family))
        raise ValueError(f"no method {name!r} in family {family!r}; there are: {known}")
    return REGISTRY[f"{family}.{name}"]


# --------------------------------------------------------------------------------------------- looking for the evidence

def root() -> Path | None:
    """The checkout that this package runs from, or None for an installed wheel (where tests are not shipped)."""
    folder = Path(__file__).resolve().parent.parent
    return folder if (folder / "tests").is_dir() and (folder / "notebooks").is_dir() else None


@lru_cache(maxsize=1)
def _pages() -> dict[str, list[str]]:
    """method key -> notebooks with a cell tagged `method:family.name`."""
    found: dict[str, list[str]] = {}
    if root() is None:
        return found
    for path in sorted((root() / "notebooks").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tags = {tag for cell in cells for tag in cell.get("metadata", {}).get("tags", [])}
        for tag in tags:
            if tag.startswith("method:"):
                found.setdefault(tag[7:], []).append(path.relative_to(root()).as_posix())
    return found


@lru_cache(maxsize=1)
def _tests() -> dict[str, list[str]]:
    """method key -> test ids: functions in files that say `COVERS = ("family.name", ...)` at module level."""
    found: dict[str, list[str]] = {}
    if root() is None:
        return found
    for path in sorted((root() / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        covers: list[str] = []
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "COVERS" for t in node.targets):
                covers = list(ast.literal_eval(node.value))
        names = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        for key in covers:
            found.setdefault(key, []).extend(f"{path.relative_to(root()).as_posix()}::{name}" for name in names)
    return found


def claims() -> dict[str, Any]:
    """Every claim by id, from the modules of `tutor.claims`."""
    import tutor.claims

    found = {}
    for module in pkgutil.iter_modules(tutor.claims.__path__, "tutor.claims."):
        for claim in getattr(importlib.import_module(module.name), "CLAIMS", ()):
            if claim.id in found:
                raise ValueError(f"claim id {claim.id!r} is used twice; rename one")
            if f"{claim.family}.{claim.method}" not in load_all():
                raise ValueError(f"claim {claim.id!r} speaks of {claim.family}.{claim.method}, which is not in the catalog")
            found[claim.id] = claim
    return found


@lru_cache(maxsize=1)
def papers() -> list[dict[str, Any]]:
    """Every paper of the course: key, title, year, family, method name ("" while open)."""
    return json.loads((Path(__file__).parent / "papers.json").read_text(encoding="utf-8"))


def entries(family: str | None = None) -> list[dict[str, Any]]:
    """The catalog as JSON values: name family title paper year module page kernel claims tests status."""
    by_method: dict[str, list] = {}
    for claim in claims().values():
        by_method.setdefault(f"{claim.family}.{claim.method}", []).append({"id": claim.id, "status": claim.status})
    years = {paper["key"]: paper["year"] for paper in papers()}
    rows = []
    for m in methods(family):
        pages, tests = _pages().get(m.key, []), _tests().get(m.key, [])
        measured = [c for c in by_method.get(m.key, []) if c["status"] != "unmeasured"]
        rows.append({
            "name": m.name, "family": m.family, "title": m.title, "paper": m.paper, "year": years.get(m.paper),
            "module": m.module, "page": pages[0] if pages else "", "kernel": m.kernel,
            "claims": by_method.get(m.key, []), "tests": tests,
            "status": "done" if pages and tests and measured else "partial",
        })
    covered = {row["paper"] for row in rows if row["paper"]}
    for paper in papers():
        if paper["key"] in covered or not paper.get("planned") or family not in (None, paper["family"]):
            continue
        rows.append({"name": paper["key"], "family": paper["family"], "title": paper["title"], "paper": paper["key"],
                     "year": paper["year"], "module": "", "page": "", "kernel": "", "claims": [], "tests": [], "status": "open"})
    return rows
