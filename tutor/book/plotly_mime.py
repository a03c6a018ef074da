"""Plotly figures on the static site: the figure's JSON goes into the page, one shared script draws it.

MyST-NB knows no renderer for `application/vnd.plotly.v1+json`. This one, found through the entry-point group
`myst_nb.mime_renderers`, writes an empty box and the JSON beside it; `book/assets/plotly-init.js` loads the site's own
`plotly.min.js` (copied from the installed package, so that notebook and page cannot differ) on pages that need it.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

from docutils import nodes
from myst_nb.core.render import MimeData, MimeRenderPlugin, NbElementRenderer

MIME = "application/vnd.plotly.v1+json"


def title_of(figure: dict[str, Any]) -> str:
    """The figure's title as plain text, which stands above the picture and wraps with the page."""
    title = figure.get("layout", {}).get("title", "")
    text = title.get("text", "") if isinstance(title, dict) else title
    return " ".join(re.sub(r"<[^>]+>", " ", str(text or "")).split())


def figure_html(figure: dict[str, Any]) -> str:
    """A box and the JSON that fills it; `<` is written as \\u003c so that no text can end the script tag."""
    payload = {key: figure.get(key) or default for key, default in (("data", []), ("layout", {}), ("frames", []))}
    text = json.dumps(payload, separators=(",", ":")).replace("<", "\\u003c")
    height = int(figure.get("layout", {}).get("height") or 420)
    title = title_of(figure)
    caption = f'<figcaption aria-live="polite">{html.escape(title)}</figcaption>' if title else ""
    name = "" if title else ' role="group" aria-label="Chart"'
    return (
        f'<figure class="tutor-plotly"{name}>{caption}'
        f'<div class="tutor-plotly-box" style="min-height:{height}px"></div>'
        f'<script type="application/vnd.tutor.plotly+json">{text}</script></figure>'
    )


class PlotlyRenderer(MimeRenderPlugin):
    """Turns a Plotly output into a box that `plotly-init.js` fills."""

    mime_priority_overrides = [("*", MIME, 5)]

    @staticmethod
    def handle_mime(renderer: NbElementRenderer, data: MimeData, inline: bool) -> None | list[nodes.Element]:
        if inline or data.mime_type != MIME:
            return None
        figure = json.loads(data.content) if isinstance(data.content, (str, bytes)) else data.content
        return [nodes.raw(text=figure_html(figure), format="html", classes=["output"])]
