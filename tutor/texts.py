"""Texts that every machine has: documentation that comes with Python itself, so nothing is downloaded.

`reference()` is long technical English (about 113 000 tokens of the default model), `docstrings()` thousands of short
documents with names, `sentences()` tens of thousands of sentences. They differ slightly between Python versions:
results that are printed name the version. Licence: Python Software Foundation License (data/LICENSES.md).
"""

from __future__ import annotations

import ast
import os
import re
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

# Tests, demonstrations and bundled foreign packages are no documentation of the library.
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "site-packages",
             "dist-packages", "__pycache__", "__phello__", "distutils", "config"}


@lru_cache(maxsize=1)
def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def reference(n_tokens: int | None = None, tokenizer=None) -> str:
    """The Python language reference, topic after topic in alphabetical order.

    Args:
        n_tokens: cut after that many tokens of `tokenizer`.
        tokenizer: `model.tokenizer`; needed with n_tokens only.

    Raises:
        ValueError: n_tokens without a tokenizer, below 1, or more than there are.
    """
    text = _topics()
    if n_tokens is None:
        return text
    if tokenizer is None:
        raise ValueError("n_tokens needs a tokenizer; call reference(n, model.tokenizer), or cut reference() yourself")
    part = text[: 16 * n_tokens]                         # English takes far less than 16 characters a token
    ids = tokenizer.encode(part)
    if not 1 <= n_tokens <= len(ids):
        raise ValueError(f"n_tokens must be in [1, {len(tokenizer.encode(text))}]; got {n_tokens}")
    return tokenizer.decode(ids[:n_tokens])


@lru_cache(maxsize=1)
def docstrings() -> list[tuple[str, str]]:
    """`(qualified name, docstring)` of everything in the standard library that is written in Python, sorted by name.

    Sources are parsed, never imported, so the list does not depend on what is installed or built in. A text that
    occurs under several names is listed once, under the first.
    """
    root = Path(os.__file__).resolve().parent
    found: dict[str, str] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] not in sys.stdlib_module_names or _LEFT_OUT.intersection(parts):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")              # old escapes in string literals
            tree = ast.parse(path.read_bytes())
        found |= {name: text for name, node in _documented(module, tree) if (text := ast.get_docstring(node))}
    first = {text.strip(): name for name, text in sorted(found.items(), reverse=True)}
    return sorted((name, text) for text, name in first.items() if text)


def _documented(name: str, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """A module or class and what it defines; functions inside functions are left out."""
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(f"{name}.{child.name}", child)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name}.{child.name}", child


@lru_cache(maxsize=4)
def sentences(min_words: int = 4) -> list[str]:
    """Sentences of `reference()` and `docstrings()`, each once, in order of appearance."""
    if min_words < 1:
        raise ValueError(f"min_words must be >= 1; got {min_words}")
    found: dict[str, None] = {}
    for text in (reference(), *(text for _, text in docstrings())):
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'`*(])", " ".join(paragraph.split())):
                if len(sentence.split()) >= min_words and re.search("[a-z]{2}", sentence):
                    found.setdefault(sentence)
    return list(found)
