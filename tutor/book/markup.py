"""Small pieces of Markdown and HTML that the generated pages are made of.

A raw HTML block in Markdown ends at the first blank line, so nothing here contains one.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tutor.claim import Card
from tutor.cost import COUNTERS

# A status is a sign and a word; colour only repeats it.
STATUS = {"done": ("●", "done"), "partial": ("◐", "partial"), "open": ("○", "open")}
VERDICT = {status: tuple(mark.split(" ", 1)) for status, mark in Card.MARKS.items()}
NONE = '<span class="none">–</span>'


def esc(value: Any) -> str:
    return html.escape(str(value), quote=True)


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def code(text: str) -> str:
    return f"<code>{esc(text)}</code>" if text else ""


def link(address: str, text: str) -> str:
    """A link, or the bare text where there is no address; `text` is HTML already."""
    return f'<a href="{esc(address)}">{text}</a>' if address else text


def sentence(text: str) -> str:
    """With a capital first letter, unless the first word is a name of the code."""
    first = re.match(r"[\w.]*", text)[0]
    return text if first in COUNTERS or "_" in first or "." in first.rstrip(".") else text[:1].upper() + text[1:]


def md(text: str, keys: Iterable[str] = ()) -> str:
    """Plain prose as Markdown: everything literal but `code`, and `[key]` of a known paper, which becomes a citation.

    >>> md("A_ij * 2 [knuth] in `x_y`", keys={"knuth"})
    'A\\\\_ij \\\\* 2 {cite:p}`knuth` in `x_y`'
    """
    known, out = set(keys), []
    for part in re.split(r"(``[^`]+``|`[^`\n]+`|\[[\w, ]+\])", re.sub(r"\s+", " ", text.strip())):
        if part.startswith("`") and part.endswith("`") and len(part) > 2:
            out.append("`" + part.strip("`") + "`")
            continue
        cited = [key.strip() for key in part[1:-1].split(",")] if re.fullmatch(r"\[[\w, ]+\]", part) else []
        if cited and known.issuperset(cited):
            out.append("{cite:p}`" + ",".join(cited) + "`")
        else:
            out.append(re.sub(r"([\\*_{}\[\]<>#|$~`])", r"\\\1", part))
    return re.sub(r"^([-+=]|\d+[.)])", r"\\\1", "".join(out))


def rich(text: str) -> str:
    """Plain prose as HTML, with `code` kept."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", esc(re.sub(r"\s+", " ", text.strip())))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, kind: str = "") -> str:
    """An HTML table in a box that scrolls by itself; cells are HTML already, the first one heads its row."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
             for first, *rest in rows]
    return "\n".join([
        f'<div class="table-scroll" role="region" tabindex="0" aria-label="{esc(label)}">',
        f'<table class="tutor-table {kind}">', f"<thead><tr>{top}</tr></thead>", "<tbody>", *lines,
        "</tbody>", "</table>", "</div>", ""])


def chip(status: str) -> str:
    sign, word = STATUS[status]
    return f'<span class="chip {status}"><span aria-hidden="true">{sign}</span> {word}</span>'


def verdict(status: str) -> str:
    sign, word = VERDICT[status]
    return f'<span class="verdict {status}"><span aria-hidden="true">{sign}</span> {word}</span>'


def tally_list(counts: Iterable[tuple[int, str]]) -> str:
    """Large numbers with what they count (HTML) beside them."""
    return '<ul class="tally">' + "".join(f"<li><strong>{n}</strong> {what}</li>" for n, what in counts) + "</ul>\n"


def bar(counts: dict[str, int], label: str) -> str:
    """A bar of three patterns, which says its counts in words."""
    words = ", ".join(f"{n} {STATUS[status][1]}" for status, n in counts.items())
    pieces = "".join(f'<span class="{s}" style="flex-grow:{n}"></span>' for s, n in counts.items() if n)
    name = esc(f"{label}: {words} of {max(sum(counts.values()), 1)}")
    return f'<span class="bar" role="img" aria-label="{name}">{pieces}</span>'


def number(value: Any) -> str:
    """A number as one would say it: four digits, thousands apart, no trailing noise."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        text = f"{value:.4g}"
        return f"{value:.0f}" if "e" in text and 1 < abs(value) < 1e9 else text
    return str(value)
