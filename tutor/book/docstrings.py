"""What a method says about itself: its docstring in parts, and its parameters."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from typing import Any

from tutor.book.markup import rich
from tutor.catalog import Method


@dataclass(frozen=True)
class Told:
    """A docstring in parts: the first line, free paragraphs, and the labelled sections in their order."""

    title: str
    prose: tuple[str, ...]
    sections: dict[str, str]

    @property
    def line(self) -> str:
        """The title without the name that stands before its colon."""
        return self.title.split(":", 1)[-1].strip()


def told(doc: str) -> Told:
    """Read a docstring of the house style: a title line, then `Label  text` with an indented continuation.

    >>> told("Window: the last ones.\\n\\nIdea        Near is dear.\\n            Always.\\nCost        none").sections
    {'Idea': 'Near is dear.\\nAlways.', 'Cost': 'none'}
    """
    lines = inspect.cleandoc(doc or "").splitlines()
    title = lines[0] if lines else ""
    prose: list[list[str]] = [[]]
    sections: dict[str, list[str]] = {}
    current, indent = "", 0
    for line in lines[1:]:
        label = re.match(r"([A-Z][\w'-]*(?: [a-z]\w*)?)(\s{2,}|:\s+)(\S.*)$", line)
        if label:
            current, indent = label[1], label.start(3)
            sections[current] = [label[3]]
        elif current and (line.startswith(" ") or not line.strip()):
            sections[current].append(line[min(indent, len(line) - len(line.lstrip())):])
        else:
            current = ""
            if line.strip():
                prose[-1].append(line)
            elif prose[-1]:
                prose.append([])
    paragraphs = tuple(" ".join(paragraph) for paragraph in prose if paragraph)
    return Told(title, paragraphs, {name: "\n".join(text).strip() for name, text in sections.items()})


def told_by(method: Method) -> Told:
    """The docstring of the method's file, or of the method where the file has none."""
    return told(importlib.import_module(method.module).__doc__ or method.build.__doc__ or "")


def rule_block(text: str) -> str:
    """A rule in a box: prose flows; where some lines are indented, each other line is a step and they continue it.

    >>> rule_block("first  one\\n       and more\\nlast  two")
    '<p class="rule"><span class="step">first one and more</span><span class="step">last two</span></p>\\n'
    """
    if not re.search(r"^\s+\S|\n\n", text, flags=re.M):
        return f'<p class="rule">{rich(text)}</p>\n'
    steps = re.split(r"\n+(?=\S)", text)
    return '<p class="rule">' + "".join(f'<span class="step">{rich(step)}</span>' for step in steps) + "</p>\n"


def described(doc: str) -> dict[str, str]:
    """The names and words of the `Args:`, `Attributes:` or `Parameters:` sections of a docstring."""
    words: dict[str, str] = {}
    blocks = re.findall(r"^(?:Args|Attributes|Parameters):\n((?:[ \t]+.*\n?|\n)+)", inspect.cleandoc(doc), flags=re.M)
    for block in blocks:
        for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", block, flags=re.M):
            words |= {name: re.sub(r"\s+", " ", text) for name in names.split(", ")}
    return words


def parameters(build: Any) -> list[tuple[str, str, str, str]]:
    """(name, type, default, what it is) of a method's constructor or function; the words come from its docstring."""
    words, rows = described(build.__doc__ or ""), []
    for name, parameter in inspect.signature(build).parameters.items():
        if name in ("self", "args", "kwargs") or name.startswith("_"):
            continue
        kind, default = parameter.annotation, parameter.default
        if not isinstance(kind, str):
            kind = "" if kind is inspect.Parameter.empty else getattr(kind, "__name__", str(kind))
        if default is inspect.Parameter.empty:
            shown = "required"
        else:
            shown = repr(default) if isinstance(default, (int, float, str, tuple, type(None))) else "made anew"
        rows.append((name, kind, shown, words.get(name, "")))
    return rows
