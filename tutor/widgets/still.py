"""A small SVG page: title, drawing, sentence and caption, light palette. For print and places without scripts."""

from __future__ import annotations

from html import escape

# The light palette of shared.css; tests/widgets compares the two.
COLOURS = {
    "ink": "#1c2026", "muted": "#5b6370", "line": "#d5d9df", "paper": "#ffffff", "soft": "#f4f5f7",
    "kept": "#0072b2", "evicted": "#857c72", "candidate": "#b87700", "accepted": "#007f5f", "rejected": "#c4420b",
    "exact": "#26344d", "approximate": "#b0528a", "query": "#6a3fa0", "heat": "#62abd8",
}


def mix(colour: str, amount: float, ground: str = "paper") -> str:
    """`amount` of a named colour over another, as #rrggbb."""
    parts = [[int(COLOURS.get(c, c)[i:i + 2], 16) for i in (1, 3, 5)] for c in (colour, ground)]
    return "#" + "".join(f"{round(amount * a + (1 - amount) * b):02x}" for a, b in zip(*parts))


def wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of about `width` pixels; a character of a sans-serif face is taken as half its size wide."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width / (0.5 * size):
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return lines + ([line] if line else [])


def text_width(text: str, size: float) -> float:
    """About how wide a sans-serif face draws a text."""
    def ems(c: str) -> float:
        if c in "iljtfr.,;:'|!()[]I ":
            return 0.32
        return 0.88 if c in "mwMW@%" else 0.66 if c.isupper() else 0.59
    return size * sum(map(ems, text))


class Still:
    """Collects SVG elements; the figure draws in coordinates that begin at (0, 0) below the title."""

    def __init__(self, width: int, title: str = "", caption: str = "", sentence: str = ""):
        self.width, self.title, self.caption, self.sentence = width, title, caption, sentence
        self.inner = width - 32
        self.height = 0.0
        self._body: list[str] = []

    def _reach(self, y: float) -> None:
        self.height = max(self.height, y)

    def element(self, tag: str, text: str | None = None, **attributes: object) -> None:
        pairs = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
                        for name, value in attributes.items() if value is not None)
        self._body.append(f"<{tag}{pairs}/>" if text is None else f"<{tag}{pairs}>{escape(text)}</{tag}>")

    def text(self, x: float, y: float, text: str, size: float = 12, fill: str = "ink", **attributes: object) -> None:
        self.element("text", text, x=x, y=y, font_size=size, fill=COLOURS.get(fill, fill), **attributes)
        self._reach(y + 0.3 * size)

    def rect(self, x: float, y: float, width: float, height: float, fill: str = "kept", **attributes: object) -> None:
        self.element("rect", x=x, y=y, width=width, height=height, fill=COLOURS.get(fill, fill), **attributes)
        self._reach(y + height)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str = "line", **attributes: object) -> None:
        self.element("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=COLOURS.get(stroke, stroke), **attributes)
        self._reach(max(y1, y2))

    def circle(self, cx: float, cy: float, r: float, fill: str = "kept", **attributes: object) -> None:
        self.element("circle", cx=cx, cy=cy, r=r, fill=COLOURS.get(fill, fill), **attributes)
        self._reach(cy + r)

    def path(self, d: str, bottom: float, **attributes: object) -> None:
        """A path; `bottom` is its lowest y, so that the page is tall enough."""
        for name in ("fill", "stroke"):
            if name in attributes:
                attributes[name] = COLOURS.get(str(attributes[name]), attributes[name])
        self.element("path", d=d, **attributes)
        self._reach(bottom)

    def finish(self) -> str:
        top = 34 if self.title else 12
        y = top + self.height + 22
        below = []
        for text, size, fill in ((self.sentence, 12, "ink"), (self.caption, 12, "muted")):
            for line in wrap(text, self.inner, size):
                below.append(f'<text x="16" y="{_number(y)}" font-size="{size}" fill="{COLOURS[fill]}">'
                             f"{escape(line)}</text>")
                y += 1.45 * size
            y += 4
        title = (f'<text x="16" y="24" font-size="14" font-weight="600" fill="{COLOURS["ink"]}">'
                 f"{escape(self.title)}</text>")
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {_number(y)}" width="{self.width}" '
                f'height="{_number(y)}" role="img" font-family="system-ui, sans-serif">'
                f'<title>{escape(self.title)}</title><desc>{escape(f"{self.sentence} {self.caption}".strip())}</desc>'
                f'<rect width="100%" height="100%" fill="{COLOURS["paper"]}"/>{title if self.title else ""}'
                f'<g transform="translate(16 {top})">{"".join(self._body)}</g>{"".join(below)}</svg>')


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
