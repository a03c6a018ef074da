"""Result files as pages: any JSON that a script in `benchmarks/` wrote, with its machine and day; nothing is added."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tutor.book.markup import code, esc, md, number, sentence, table

WHEN = ("date", "when", "machine", "device", "cpu", "threads", "commit", "seed")
PACKAGES = ("python", "torch", "triton", "numpy", "numba", "faiss", "transformers", "tutor")
ASIDE = ("title", "question", "versions", "note", "notes", "script")
MOST_ROWS = 150                # of one file on the page; nobody reads more, and the file has them all
WORDS = {"when": "date", "cpu": "processor", "nbytes": "bytes", "nll": "NLL"}


def read_results(root: Path) -> dict[str, Any]:
    folder = root / "benchmarks" / "results"
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def word(name: str) -> str:
    return esc(WORDS.get(name, name.replace("_", " ")))


def scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool)) or value is None


def records(value: Any) -> bool:
    """A list of objects, which makes a table."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def cell(value: Any) -> str:
    """Any value in one cell, as HTML."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return "; ".join(f"{word(k)}&nbsp;{cell(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        if len(value) > 8 and all(isinstance(v, (int, float)) for v in value):
            return f"{len(value)} values, {number(min(value))} to {number(max(value))}"
        return ", ".join(cell(v) for v in value[:8]) + (f", … ({len(value)} values)" if len(value) > 8 else "")
    return esc(number(value))


def tables_of(value: Any, label: str) -> list[str]:
    """Any JSON value as tables: a list of objects has a row for each, an object of scalars a row for each name."""
    if records(value):
        head = list(dict.fromkeys(name for row in value for name in row))
        rows = [[cell(row.get(name)) for name in head] for row in value]
        return [table([word(name) for name in head], rows, label=label, kind="results")]
    if not isinstance(value, dict) or not value:
        return [f"<p>{cell(value)}</p>\n"]
    if all(isinstance(row, dict) and all(scalar(v) for v in row.values()) for row in value.values()):
        return tables_of([{label: name} | row for name, row in value.items()], label)
    simple = {name: v for name, v in value.items() if not isinstance(v, dict) and not records(v)}
    out = []
    if simple:
        rows = [(word(name), cell(v)) for name, v in simple.items()]
        out.append(table(["quantity", "value"], rows, label=label, kind="results"))
    for name in [name for name in value if name not in simple]:
        out += [f'<p class="table-title">{word(name)}</p>\n', *tables_of(value[name], name.replace("_", " "))]
    return out


def beginning(parts: list[str], most: int = MOST_ROWS) -> list[str]:
    """The first tables (and their titles), up to `most` rows but one table at least, and how much the file holds beyond."""
    rows = [part.count("<tr>") - 1 if "<table" in part else 0 for part in parts]
    tables = [i for i, n in enumerate(rows) if n]
    fit = [i for i in tables if sum(rows[:i + 1]) <= most] or tables[:1]
    if fit == tables:
        return parts
    end = fit[-1] + 1
    more = f"{len(tables) - len(fit)} more tables with {sum(rows[end:])} rows are in the file.</p>"
    return [*parts[:end], f'<p class="source">{more}\n']


def notes_of(result: dict[str, Any]) -> list[str]:
    found = [result.get("note"), result.get("notes")]
    flat = [note for item in found for note in (item if isinstance(item, list) else [item]) if note]
    return [md(str(note)) + "\n" for note in flat]


def result_section(name: str, result: dict[str, Any]) -> str:
    """One result file: its question, the machine and day, its tables."""
    title = sentence(str(result.get("title") or result.get("question") or re.sub("[-_]", " ", name)))
    about = {key: result[key] for key in WHEN if key in result and scalar(result[key])}
    versions = dict(result.get("versions") or {})
    versions |= {key: result[key] for key in PACKAGES if scalar(result.get(key, []))}
    rest = {key: value for key, value in result.items() if key not in (*about, *versions, *ASIDE)}
    lines = [f"## {md(title)}\n"]
    if result.get("title") and result.get("question"):
        lines.append(md(str(result["question"])) + "\n")
    facts = [f"{word(key)}: {cell(value)}" for key, value in about.items()]
    if versions:
        facts.append("with " + ", ".join(f"{esc(key)} {esc(value)}" for key, value in versions.items()))
    if facts:
        lines.append(f'<p class="when">{" · ".join(facts)}</p>\n')
    lines += beginning(tables_of(rest, title)) if rest else ["The file holds no numbers.\n"]
    source = f"From {code(f'benchmarks/results/{name}.json')}"
    return "\n".join([*lines, *notes_of(result), f'<p class="source">{source}</p>\n'])


def rounding_note(results: dict[str, Any]) -> str:
    """What bf16 rounding costs, from the result file that measured it; said to be missing where it is missing."""
    found = [result for name, result in results.items() if "rounding" in name or "bf16" in name]
    if not found:
        return "The cost of rounding to bf16 has not been measured for this build.\n"
    lines = []
    for result in found:
        lines += tables_of({k: v for k, v in result.items() if k not in (*ASIDE, *PACKAGES)}, "Rounding") + notes_of(result)
    return "\n".join(lines)


def data_note(root: Path) -> str:
    """Texts, models and recorded data: `data/LICENSES.md`, then the provenance files beside the data."""
    notice, rows = root / "data" / "LICENSES.md", []
    words = notice.read_text("utf-8").split("\n", 1)[1].strip() + "\n\n" if notice.exists() else ""
    for path in sorted((root / "data").rglob("*.json")):
        about = json.loads(path.read_text("utf-8"))
        about = about.get("about", about) if isinstance(about, dict) else {}
        licence = about.get("licence") or about.get("license")
        if licence:
            source = about.get("source") or about.get("text") or about.get("provenance")
            maker = code(str(about.get("maker") or about.get("script") or "")) or "–"
            rows.append((code(path.relative_to(root).as_posix()), cell(source), cell(licence), maker))
    if not rows:
        return words + "No recorded data is in this build.\n"
    head = ["file", "made from", "licence", "made by"]
    return words + "## Recorded data\n\n" + table(head, rows, label="Recorded data", kind="results")
