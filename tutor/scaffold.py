"""Writes the four files of a new method: reference, claim, test, page. The generated test fails until it is filled in."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tutor.catalog import FAMILIES, LESSON_FOLDERS

FOLDERS = {"attention": "attention/methods", "kvcache": "kvcache/policies", "speculative": "speculative/draft"}

HEAD = '''"""{title}: one sentence that says what it does and why.

Idea        What is the observation?
Rule        What exactly is computed?
Cost        Counted: dot products, rows, bytes, forwards or distances.
Paper       Author et al., Title. [section]
Differs     What differs from the paper? "None" is a proud answer.
"""

from __future__ import annotations

'''

# What a method of each family starts from: the base class whose contract tests find it by themselves.
BODIES = {
    "attention": '''from dataclasses import dataclass, replace

from tutor.attention.dense import check_qkv
from tutor.attention.selection import Selector, need
from tutor.catalog import method


@method("{name}", "{family}", "{title}", paper="", flags=("selector", "rowwise", "monotone"),
        grid=tuple({{"budget": n}} for n in (64, 256, 1024)))
@dataclass(frozen=True)
class {cls}(Selector):
    """One line; then the parameters with their units and the paper's defaults."""

    budget: int = 64

    def __post_init__(self):
        need(self.budget, 1, "budget")

    def select(self, q, k, *, v=None, pos_q=None, generator=None, trace=None):
        check_qkv(q, k, v)
        # end with: return finish(Selection.from_mask(mask, q, k, pos_q=pos_q), scored=…, trace=trace)
        raise RuntimeError("choose keys here")

    def full(self, keys):
        return replace(self, budget=keys)
''',
    "kvcache": '''from dataclasses import dataclass
from typing import ClassVar

from tutor.catalog import method
from tutor.kvcache.policy import Policy


@method("{name}", "{family}", "{title}", paper="")
@dataclass(frozen=True)
class {cls}(Policy):
    """One line; then the parameters with their units and the paper's defaults."""

    name: ClassVar[str] = "{name}"
    budget: int = 64

    def score(self, rows, observation, budget):
        raise RuntimeError("return the importance of every row (B, Hkv, S); larger stays longer, inf is protected")
''',
    "speculative": '''from dataclasses import dataclass

from tutor.catalog import method
from tutor.speculative.draft.base import FreeDrafter, check_budget


@method("{name}", "{family}", "{title}", paper="", flags=("lossless", "drafter"))
@dataclass
class {cls}(FreeDrafter):
    """One line; then the parameters with their units and the paper's defaults."""

    budget: int = 64
    name = "{name}"

    def propose(self, context, pending, budget):
        check_budget(budget)
        # end with a tree whose root is the pending token: return TokenTree.chain(pending, tokens[:budget])
        raise RuntimeError("propose tokens here")
''',
    "ann": '''from dataclasses import dataclass

from tutor.ann.base import Index
from tutor.catalog import method


@method("{name}", "{family}", "{title}", paper="")
@dataclass(eq=False)
class {cls}(Index):
    """One line; then the parameters with their units and the paper's defaults."""

    budget: int = 64

    def _build(self, progress):
        raise RuntimeError("build from self.X (N, d) and self.metric here")

    def _search_one(self, q, k, trace):
        raise RuntimeError("return the k nearest rows of q as an Answer: ids, distances, Cost(ndist=…)")
''',
}
OTHER = '''from dataclasses import dataclass

from tutor.catalog import method


@method("{name}", "{family}", "{title}", paper="")
@dataclass(frozen=True)
class {cls}:
    """One line; then the parameters with their units and the paper's defaults."""

    budget: int = 64
'''

CLAIM = '''"""Claims about {name}."""

from tutor.claim import Claim, Expected, Measured


def _experiment() -> Measured:
    raise RuntimeError("measure the paper's sentence on the real model here, and derive the verdict from the numbers")


CLAIMS = (
    Claim(id="{name}.what-the-paper-says", family="{family}", method="{name}", paper_says="…", where="section …",
          experiment=_experiment, expected=Expected("unmeasured", {{}})),
)
'''

TEST = '''"""{title}: a paper-and-pencil example first, then invariants."""

from {module} import {cls}

COVERS = ("{family}.{name}",)


def test_the_paper_and_pencil_example():
    method = {cls}(budget=2)
    # Work a tiny example by hand, put the sum in this comment, and compare. Until then this test fails:
    assert method.budget == "the result of a hand-worked example", "fill in tests/{family}/test_{name}.py"
'''


def _cell(kind: str, text: str, number: int, tags: tuple[str, ...] = ()) -> dict:
    lines = text.splitlines(keepends=True)
    cell = {"cell_type": kind, "id": f"new-{number}", "metadata": {"tags": list(tags)} if tags else {}, "source": lines}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


def write_method(root: Path, name: str, family: str) -> list[Path]:
    """Write the files and return their paths.

    Raises:
        ValueError: the name is no identifier, the family is unknown, or a file exists already (nothing is written then).
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}; got {family!r}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name must be lower_case letters, digits and underscores; got {name!r}")
    folder = FOLDERS.get(family, family)
    values = {
        "name": name,
        "family": family,
        "title": name.replace("_", " ").capitalize(),
        "cls": "".join(part.capitalize() for part in name.split("_")),
        "module": f"tutor.{folder.replace('/', '.')}.{name}",
    }
    notebook = {
        "cells": [
            _cell("markdown", f"# {values['title']}: which question does it answer?\n\nWhy it matters, in one sentence.", 0),
            _cell(
                "code", f"from {values['module']} import {values['cls']}\n\n{values['cls']}()", 1, (f"method:{family}.{name}",)
            ),
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    files = {
        root / "tutor" / folder / f"{name}.py": HEAD.format(**values) + BODIES.get(family, OTHER).format(**values),
        root / "tutor" / "claims" / f"{family}_{name}.py": CLAIM.format(**values),
        root / "tests" / family / f"test_{name}.py": TEST.format(**values),
        root / "notebooks" / LESSON_FOLDERS[family] / f"method_{name}.ipynb": json.dumps(notebook, indent=1, ensure_ascii=False)
        + "\n",
    }
    existing = [path for path in files if path.exists()]
    if existing:
        raise ValueError(f"name {name!r} is taken: {', '.join(str(p.relative_to(root)) for p in existing)} exist; choose another")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(path.suffix + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return list(files)
