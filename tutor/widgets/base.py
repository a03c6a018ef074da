"""The base of every figure: one Python class and one plain ES module draw one kind of trace.

How to write a widget
---------------------
Two files named after the figure, `tutor/widgets/my_figure.py` and `tutor/widgets/my_figure.js` (and, if it needs
rules of its own, `my_figure.css`). No build step and no imports: at class creation the text of `shared.js` is put in
front of `my_figure.js` (and `shared.css` in front of `my_figure.css`), which gives one self-contained ES module that
runs in JupyterLab and, through `book/assets/tutor-widgets.js`, on a static page with no kernel.

Python::

    class MyFigure(TutorWidget):
        '''What it shows. Draws "my.schema/1".'''

        figure = "my_figure"                       # the files my_figure.js / my_figure.css
        schemas = ("my.schema/1",)                 # traces it accepts; anything else is refused by name

        def _still(self, still, trace, step):      # the printed form: pure Python, drawn from the trace
            still.text(0, 20, "…")                 # see tutor/widgets/still.py

JavaScript (every name below is defined in shared.js, which stands above your file)::

    export default figure({
      name: "my_figure",                           // CSS class tw-my_figure on the root
      mount(ctx) {                                 // once per view: build your DOM inside ctx.stage
        const box = h("div", { class: "tw-my-box" });
        ctx.stage.append(box);
        return {
          draw(state, changed) { … },              // at most once per animation frame
          destroy() { … },                         // optional
        };
      },
      legend: [{ mark: "kept", shape: "fill", label: "kept" }],     // or (state) => [...]
      readout: (state, view) => "kept mass 87 %",  // optional: one short line beside the title
      stepLabel: (state, view) => "row 3 of 96",   // optional: beside the slider
      keys: (event, state, ctx, view) => false,    // optional: return true for keys you handled
      describe: (trace, step, settings) => "…",    // optional, only where recording every sentence would be too large;
    });                                            //   then test under node that it equals Trace.describe

`state` has `trace`, `step`, `settings` (dial values by name), `selection` (an object or null), `width` (CSS pixels of
the stage) and `theme` ("light" or "dark"). `changed` is a Set of "trace", "step", "settings", "selection", "size",
"theme". `state.trace` has `schema, method, params, subject, kinds, steps`, `arrays[name]` and `events[name]`; each is a
typed array with a `.shape` (int64 arrives as Int32Array or Float64Array, float16 as Float32Array, bool as Uint8Array).
`eventRange(trace, step)` gives the [first, last) rows of the event table that belong to a step. Words (sentence,
read-out, legend, step label) are renewed when trace, step, settings or selection change, so that a pan or a hover,
announced by `ctx.refresh("look")`, costs a drawing only.

`ctx` offers `root, stage, model, isStatic, setStep(i), setSetting(name, value), select(object), tip(text, x, y)` (and
`tip(null)`), `say(text)` for the live region, `colour("kept")` for canvas work, `reduced()` (reduced motion).
DOM helpers: `h(tag, attributes, ...children)`, `svg(tag, attributes, ...children)`, `fitCanvas(canvas, w, h)`.
In CSS use the variables of shared.css: `--tw-ink --tw-muted --tw-line --tw-paper --tw-soft` and the meanings
`--tw-kept --tw-evicted --tw-candidate --tw-accepted --tw-rejected --tw-exact --tw-approximate --tw-query --tw-heat`.
Colour is never alone: repeat its meaning by shape, pattern or text.

The chrome is not yours to write: title, controls and keys (← → space Home End), dials, legend, live region, caption,
light and dark, loading of data and reduced motion come with `figure(...)`.

A widget never computes an algorithm. It draws the arrays named in `tutor/schemas.py`; the arithmetic that a dial may
need for display (top-k over recorded scores) is an exported pure function, tested under node against Python.

Dials
-----
`dial("budget", "rows kept", values=[16, 64, 256], value=64)` with `mode`:

- `"static"`  works with no kernel: it picks one of the recorded `variants`, or is display arithmetic in JavaScript;
- `"live"`    calls Python (`live={"budget": function_of_settings_returning_a_trace}`); a static page shows its `note`
              instead, one sentence that says what a running notebook lets you do.

Variants are recorded traces for the combinations of static dials, at most 60, in one buffer where equal arrays are
stored once::

    CacheShelf(variants=[({"policy": "h2o"}, trace_a), ({"policy": "window"}, trace_b)],
               dials=[dial("policy", "policy", values=["h2o", "window"])], caption="…")

Two figures move together through `ipywidgets.jslink((a, "step"), (b, "step"))`, or "selection"; the static host knows
these links, too, and horizontal and vertical boxes.

Large traces (`widget.nbytes` above `INLINE_LIMIT`): `file="long_text"` keeps the buffer out of the saved state.
JupyterLab asks the kernel for it; while a book is built (`TUTOR_ASSETS` names its assets folder) it is written to
`traces/<file>-<hash>.bin`, which the static page fetches from its own server when the figure comes into view.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets as t

from tutor.trace import Trace
from tutor.widgets.dials import dial
from tutor.widgets.pack import pack, plain
from tutor.widgets.still import Still

HERE = Path(__file__).parent
MOST_VARIANTS = 60
INLINE_LIMIT = 200 * 1024           # bytes of data that a figure may keep in the saved state of a page


# ------------------------------------------------------------------------------------------------------------ source
def module_source(figure: str) -> str:
    """The whole ES module of a figure: `shared.js`, then its own file."""
    return (HERE / "shared.js").read_text("utf-8") + "\n" + (HERE / f"{figure}.js").read_text("utf-8")


def style_source(figure: str) -> str:
    own = HERE / f"{figure}.css"
    return (HERE / "shared.css").read_text("utf-8") + ("\n" + own.read_text("utf-8") if own.exists() else "")


# ------------------------------------------------------------------------------------------------------------- widget
class TutorWidget(anywidget.AnyWidget):
    """A figure of one trace (or of a few recorded variants). The module docstring says how to write one.

    Args:
        trace: what to draw; may be left out when `variants` are given.
        variants: recorded traces for static dials, `[({"dial": value, …}, trace), …]`, every combination present.
        live: `{dial name: function(settings) -> Trace}`, called when that dial moves and a kernel runs.
        dials: made by `dial(...)`; left out, the figure's own. Dials named in `variants` are made for you.
        caption: the finding, in one or two sentences ("Four tokens hold 61 % of the attention").
        title: short heading.
        step: where the figure opens; choose the step that shows the point.
        file: keep a large buffer out of the saved state (see the module docstring).
    """

    figure: ClassVar[str] = ""
    schemas: ClassVar[tuple[str, ...]] = ()
    speaks: ClassVar[str] = "python"              # "js": describe() of the ES module speaks, no sentences are stored

    header = t.Dict().tag(sync=True)
    buffer = t.Bytes().tag(sync=True)
    variants = t.List().tag(sync=True)
    sentences = t.List().tag(sync=True)
    dials = t.List().tag(sync=True)
    settings = t.Dict().tag(sync=True)
    step = t.Int(0).tag(sync=True)
    selection = t.Dict(allow_none=True, default_value=None).tag(sync=True)
    title = t.Unicode().tag(sync=True)
    caption = t.Unicode().tag(sync=True)
    file = t.Unicode().tag(sync=True)
    busy = t.Bool(False).tag(sync=True)
    notice = t.Unicode().tag(sync=True)

    def __init_subclass__(cls, **kwargs):
        if cls.figure and "_esm" not in cls.__dict__:
            cls._esm = module_source(cls.figure)
            cls._css = style_source(cls.figure)
        super().__init_subclass__(**kwargs)

    def __init__(self, trace: Trace | None = None, *, variants: Iterable[tuple[dict, Trace]] = (),
                 live: Mapping[str, Callable[[dict], Trace]] | None = None, dials: Iterable[dict] | None = None,
                 caption: str = "", title: str = "", step: int | None = None, file: str = "", **traits):
        self._live = dict(live or {})
        self._asked = ""                          # the live dial whose function made the trace now shown
        recorded = [(dict(when), found) for when, found in variants]
        if trace is None and not recorded:
            raise ValueError("trace must be given (or variants=[({'dial': value}, trace), …]); got neither")
        first = trace or recorded[0][1]
        self._check(first)
        dials = self._dials(list(self._own_dials(first) if dials is None else dials), recorded)
        settings = {d["name"]: d["value"] for d in dials}
        if trace is None:
            trace = next(found for when, found in recorded if _matches(when, settings))
        self._recorded = [({}, trace)] + recorded if not recorded else recorded
        self._trace = trace
        for _, found in self._recorded + [({}, trace)]:
            self._check(found)
        super().__init__(title=title or self._title(trace), caption=caption, dials=dials, settings=settings,
                         step=self._first_step(trace) if step is None else step, **traits)
        self._show(trace, recorded, file)
        self.observe(self._on_settings, "settings")
        self.on_msg(self._on_message)

    # -- what a figure may say about itself
    def _title(self, trace: Trace) -> str:
        return trace.method

    def _own_dials(self, trace: Trace) -> list[dict]:
        """Dials of display arithmetic that the figure brings when none are given."""
        return []

    def _first_step(self, trace: Trace) -> int:
        return 0

    def _still(self, still: Still, trace: Trace, step: int) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no still form yet; write _still(still, trace, step)")

    # -- state
    @property
    def trace(self) -> Trace:
        """The trace that is shown now."""
        return self._trace

    def describe(self, step: int | None = None) -> str:
        """The sentence that the live region speaks."""
        return self._trace.describe(self.step if step is None else step)

    @property
    def nbytes(self) -> int:
        """Bytes of data that this figure adds to a saved page, without its code (limit: `INLINE_LIMIT`)."""
        texts = json.dumps([self.header, self.variants, self.sentences, self.dials, self.caption])
        return len(self.buffer) + len(texts.encode())

    def _check(self, trace: Trace) -> None:
        if self.schemas and trace.schema not in self.schemas:
            raise ValueError(f"{type(self).__name__} draws {' or '.join(self.schemas)}; got a trace of "
                             f"{trace.schema!r}. Pick the figure named in tutor/schemas.py for it.")

    def _dials(self, dials: list[dict], recorded: list[tuple[dict, Trace]]) -> list[dict]:
        if len(recorded) > MOST_VARIANTS:
            raise ValueError(f"variants must be at most {MOST_VARIANTS}; got {len(recorded)}. Drop values of a dial, "
                             "or make it a live one.")
        names = list(dict.fromkeys(name for when, _ in recorded for name in when))
        for name in names:
            if name not in [d["name"] for d in dials]:
                dials.append(dial(name, values=list(dict.fromkeys(when[name] for when, _ in recorded if name in when))))
        chosen = [d for d in dials if d["name"] in names]
        for d in chosen:
            if "values" not in d:
                raise ValueError(f"dial {d['name']!r} picks recorded variants, so it needs values=[…]")
        for combination in product(*(d["values"] for d in chosen)):
            wanted = dict(zip([d["name"] for d in chosen], combination))
            if recorded and not any(_matches(when, wanted) for when, _ in recorded):
                raise ValueError(f"no variant was recorded for {wanted}; record it, or take the value from its dial")
        for name in self._live:
            known = [d for d in dials if d["name"] == name]
            if not known or known[0]["mode"] != "live":
                raise ValueError(f"live names the dial {name!r}, which is not there or not mode='live'; add "
                                 f"dial({name!r}, …, mode='live', note='what a running notebook lets you do')")
        return dials

    def _sentences(self, trace: Trace) -> list[str]:
        return [trace.describe(i) for i in range(trace.steps)] if self.speaks == "python" else []

    def _show(self, trace: Trace, recorded: list[tuple[dict, Trace]], file: str = "") -> None:
        headers, buffer = pack([trace, *(found for _, found in recorded)])
        with self.hold_sync(), self.hold_trait_notifications():
            self.header = headers[0]
            self.sentences = self._sentences(trace)
            self.variants = [{"when": plain(when), "header": header,
                              "sentences": None if found is trace else self._sentences(found)}
                             for (when, found), header in zip(recorded, headers[1:])]
            self._buffer = buffer
            if file:
                self.file = f"{file}-{hashlib.sha256(buffer).hexdigest()[:8]}.bin"
                self._write_asset(buffer)
            else:
                self.file, self.buffer = "", buffer
            self.step = max(0, min(self.step, trace.steps - 1))

    def _write_asset(self, buffer: bytes) -> None:
        folder = os.environ.get("TUTOR_ASSETS")
        if folder:
            place = Path(folder) / "traces"
            place.mkdir(parents=True, exist_ok=True)
            part = place / f"{self.file}.{os.getpid()}.part"
            part.write_bytes(buffer)
            part.replace(place / self.file)

    # -- dials that move
    def _on_settings(self, change: Any) -> None:
        moved = [name for name in change["new"] if change["new"][name] != change["old"].get(name)]
        picks = {name for when, _ in self._recorded for name in when}
        self._asked = next((name for name in moved if name in self._live), self._asked)
        if self._asked and (self._asked in moved or picks.intersection(moved)):
            self._recompute(self._live[self._asked])
        elif not self._asked:
            self._trace = next((found for when, found in self._recorded if _matches(when, change["new"])), self._trace)

    def _recompute(self, make: Callable[[dict], Trace]) -> None:
        self.busy, self.notice = True, ""
        try:
            found = make(dict(self.settings))
            self._check(found)
            self._trace = found
            self._show(found, [])
        except ValueError as error:              # a dial can ask for the impossible: the figure says why
            self.notice = str(error)
        finally:
            self.busy = False

    def _on_message(self, _widget: Any, content: dict, _buffers: list) -> None:
        if content.get("want") == "buffer":
            self.send({"is": "buffer"}, buffers=[self._buffer])

    # -- other forms
    def still(self, step: int | None = None, width: int = 720) -> str:
        """The figure as an SVG text, for print and for places without scripts."""
        step = self.step if step is None else step
        still = Still(width, title=self.title, caption=self.caption, sentence=self.describe(step))
        self._still(still, self._trace, step)
        return still.finish()

    def __repr__(self) -> str:
        name, trace = type(self).__name__, self._trace
        return f"{name}({trace.schema}, {trace.steps} steps): {self.title}. {self.caption}".strip()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        found = super()._repr_mimebundle_(**kwargs)
        if found is not None:
            found[0]["text/plain"] = f"{self!r}\n{self.describe()}"
        return found


def _matches(when: Mapping, settings: Mapping) -> bool:
    return all(settings.get(name) == value for name, value in when.items())
