"""The base of the figures: packing, dials, variants, live dials, sentences, stable texts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.widgets.node import Node
from tests.widgets.traces import frontier_trace, grid_trace, strip_trace
from tutor.trace import Recorder
from tutor.widgets import AttentionGrid, Frontier, TokenStrip, dial
from tutor.widgets.base import HERE, INLINE_LIMIT
from tutor.widgets.pack import pack, plain, unpack
from tutor.widgets.still import COLOURS

ALL = {"token_strip": (TokenStrip, strip_trace), "attention_grid": (AttentionGrid, grid_trace),
       "frontier": (Frontier, frontier_trace)}
each = pytest.mark.parametrize("make", [lambda c=c, t=t: c(t(), caption="A finding.") for c, t in ALL.values()],
                               ids=ALL)


def test_importing_the_package_is_cheap():
    code = "import sys, tutor.widgets; print(sorted({'torch', 'anywidget'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------- arrays
def trace_of(**arrays):
    recorder = Recorder("text.weights/1", method="m", subject={"tokens": ["a"]})
    recorder.step = 1
    return recorder.finish(weights=np.ones((1, 1), np.float32), **arrays)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(st.sampled_from(["int8", "uint8", "int32", "float16", "float32", "float64", "bool", "int64"]),
                  hnp.array_shapes(max_dims=3, max_side=5)))
def test_arrays_come_back_as_they_were(array):
    headers, buffer = pack([trace_of(extra=array)])
    found = unpack(headers[0], buffer)["arrays"]["extra"]
    if not (array.dtype == np.int64 and np.abs(array.astype(float)).max() >= 2 ** 53):     # a JavaScript number's reach
        np.testing.assert_array_equal(found, array)
    assert found.shape == array.shape and headers[0]["arrays"]["extra"]["offset"] % 8 == 0


def test_equal_arrays_are_stored_once():
    big = np.arange(10_000, dtype=np.int32)
    _, one = pack([trace_of(extra=big)])
    headers, two = pack([trace_of(extra=big), trace_of(extra=big.copy()), trace_of(extra=big + 1)])
    assert len(two) == len(one) + big.nbytes
    np.testing.assert_array_equal(unpack(headers[2], two)["arrays"]["extra"], big + 1)


def test_texts_are_refused_as_arrays():
    with pytest.raises(ValueError, match="texts belong in trace.subject"):
        pack([trace_of(extra=np.array(["a", "b"]))])


def test_headers_are_json_even_with_nan():
    value = plain({"a": float("nan"), "b": np.float32(1.5), "c": (np.int64(3), {"d": np.inf}), "e": np.arange(2)})
    assert value == {"a": None, "b": 1.5, "c": [3, {"d": None}], "e": [0, 1]}
    json.dumps(value, allow_nan=False)


def test_javascript_reads_what_python_packed():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, 5)).astype(t) for t in ("float16", "float32", "float64", "int8", "int32")]
    arrays += [np.array([0.0, -0.0, 6e-8, 65504, -1.5, np.inf, -np.inf, np.nan], np.float16), np.array([True, False]),
               np.array([2 ** 40, -3]), np.array([7, -3])]
    for array, found in zip(arrays, Node(TokenStrip).calls([("identity", a) for a in arrays])):
        np.testing.assert_array_equal(np.asarray(found, float), array.astype(float).ravel())


def test_topk_ties_go_to_the_lower_index():
    # 3 1 3 2 3: the three largest are places 0, 2, 4; the two largest of the equals are 0 and 2
    values = np.array([3, 1, 3, 2, 3], float)
    node = Node(TokenStrip)
    got = node.calls([("topk", values, k) for k in (0, 2, 3, 4, 9)])
    assert got == [[], [0, 2], [0, 2, 4], [0, 2, 4, 3], [0, 2, 4, 3, 1]]
    many = np.random.default_rng(0).integers(0, 9, 100).astype(float)
    for k, got in zip((1, 15, 16, 40, 100), node.calls([("topk", many, k) for k in (1, 15, 16, 40, 100)])):
        assert got == np.argsort(-many, kind="stable")[:k].tolist()


def test_events_of_a_step():
    recorder = Recorder("text.weights/1", method="m", subject={"tokens": ["a"]})
    for count in (2, 0, 3):
        for _ in range(count):
            recorder.event("weighted", row=0)
        recorder.next_step()
    trace = recorder.finish(weights=np.ones((3, 1), np.float32))
    assert Node(TokenStrip).calls([("eventRange", trace, s) for s in range(4)]) == [[0, 2], [2, 2], [2, 5], [5, 5]]


# -------------------------------------------------------------------------------------------------------------- dials
def test_a_dial_says_what_it_is():
    assert dial("on")["kind"] == "toggle" and dial("n", min=0, max=9)["kind"] == "slider"
    assert dial("n", values=[1, 2, 4])["kind"] == "slider" and dial("n", values=[1, 2, 4])["value"] == 1
    assert dial("n", values=["a", "b"])["kind"] == "segments" and dial("n", values=list("abcde"))["kind"] == "select"


@pytest.mark.parametrize("wrong, says", [
    ({"values": [1, 2], "value": 3}, "value must be one of"), ({"kind": "knob"}, "kind must be"),
    ({"mode": "both"}, "mode must be"), ({"kind": "slider"}, "give values="),
    ({"values": [1, 2], "labels": ["one"]}, "one text per value")])
def test_a_wrong_dial_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        dial("n", **wrong)


def test_variants_follow_the_dials():
    a, b = strip_trace(seed=1), strip_trace(rows=5, seed=2)
    widget = TokenStrip(variants=[({"seed": 1}, a), ({"seed": 2}, b)], step=10)
    assert widget.trace is a and [d["name"] for d in widget.dials] == ["seed"]
    widget.settings = {"seed": 2}
    assert widget.trace is b and widget.describe(0) == b.describe(0)
    assert widget.variants[1]["sentences"] == [b.describe(i) for i in range(5)]
    assert "tokens" not in widget.variants[1]["header"]["subject"]        # the same text is not stored twice


def test_each_combination_of_static_dials_must_be_recorded():
    with pytest.raises(ValueError, match=r"no variant was recorded for \{'k': 2, 'on': True\}"):
        TokenStrip(variants=[({"k": 1, "on": False}, strip_trace()), ({"k": 1, "on": True}, strip_trace()),
                             ({"k": 2, "on": False}, strip_trace())])


def test_too_many_variants_are_refused():
    trace = strip_trace()
    with pytest.raises(ValueError, match="at most 60; got 61"):
        TokenStrip(variants=[({"k": i}, trace) for i in range(61)])


def test_a_live_dial_brings_a_new_trace():
    asked = []

    def run(now):
        asked.append(now)
        if now["seed"] > 8:
            raise ValueError("seed must be <= 8; got 9")
        return strip_trace(rows=now["seed"] + 2, seed=now["seed"])

    widget = TokenStrip(strip_trace(), live={"seed": run}, step=11,
                        dials=[dial("seed", min=0, max=9, mode="live", note="Draw other weights.")])
    before = widget.buffer
    widget.settings = {"seed": 3}
    assert asked == [{"seed": 3}] and widget.trace.steps == 5 and widget.step == 4 and widget.buffer != before
    assert widget.sentences == [widget.trace.describe(i) for i in range(5)]
    widget.settings = {"seed": 9}
    assert widget.notice == "seed must be <= 8; got 9" and not widget.busy and widget.trace.steps == 5
    widget.settings = {"seed": 1}
    assert widget.notice == "" and widget.trace.steps == 3


def test_a_recorded_dial_asks_again_once_a_live_one_moved():
    def run(now):
        return strip_trace(seed=100 * now["a"] + now["b"])

    variants = [({"a": a}, strip_trace(seed=100 * a)) for a in (1, 2)]
    widget = TokenStrip(variants=variants, live={"b": run},
                        dials=[dial("a", values=[1, 2]), dial("b", min=0, max=9, mode="live")])
    weights = lambda: widget.trace.arrays["weights"]
    widget.settings = {"a": 2, "b": 0}
    np.testing.assert_array_equal(weights(), strip_trace(seed=200).arrays["weights"])
    widget.settings = {"a": 2, "b": 5}
    np.testing.assert_array_equal(weights(), strip_trace(seed=205).arrays["weights"])
    widget.settings = {"a": 1, "b": 5}
    np.testing.assert_array_equal(weights(), strip_trace(seed=105).arrays["weights"])


def test_a_live_function_needs_its_dial():
    with pytest.raises(ValueError, match="live names the dial 'k'"):
        TokenStrip(strip_trace(), live={"k": lambda s: strip_trace()})


# ------------------------------------------------------------------------------------------------------------ figures
@each
def test_traits_round_trip(make):
    widget = make()
    found = unpack(widget.header, widget.buffer)["arrays"]
    for name, array in widget.trace.arrays.items():
        np.testing.assert_array_equal(found[name], array)
    json.dumps([widget.header, widget.dials, widget.settings, widget.sentences], allow_nan=False)
    assert widget.nbytes <= INLINE_LIMIT
    if type(widget).speaks == "python":
        assert widget.sentences == [widget.trace.describe(i) for i in range(widget.trace.steps)]


@each
def test_texts_are_the_same_in_each_run(make):
    one, two = make(), make()
    assert repr(one) == repr(two) and "0x" not in repr(one) and "A finding." in repr(one)
    bundle = one._repr_mimebundle_()[0]
    assert bundle["text/plain"] == f"{one!r}\n{one.describe()}"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == one.model_id


@each
def test_the_still_is_a_drawing_with_words(make):
    from xml.etree import ElementTree

    widget = make()
    root = ElementTree.fromstring(widget.still(step=1))
    texts = " ".join("".join(node.itertext()) for node in root.iter() if node.text)
    assert "A finding." in texts and widget.describe(1) in texts
    assert len(list(root.iter())) > 12
    if "head" in widget.settings:
        widget.settings = {**widget.settings, "head": 1}
        assert "head 1:" in widget.still()
    assert widget.still(step=0) != widget.still(step=2) == widget.still(step=2)


@each
def test_a_foreign_trace_is_refused(make):
    widget = make()
    foreign = frontier_trace() if not isinstance(widget, Frontier) else strip_trace()
    with pytest.raises(ValueError, match=f"{type(widget).__name__} draws .*; got a trace of '{foreign.schema}'"):
        type(widget)(foreign)


@each
def test_the_module_is_one_plain_file(make):
    source = make()._esm
    assert source.count("export default") == 1
    assert not re.search(r"^\s*import\b|\bimport\s*\(|https?://(?!www\.w3\.org/2000/svg)", source, re.M)


def test_large_data_stays_out_of_the_saved_state(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTOR_ASSETS", str(tmp_path))
    widget = TokenStrip(strip_trace(), file="long")
    assert widget.buffer == b"" and re.fullmatch(r"long-[0-9a-f]{8}\.bin", widget.file)
    written = (tmp_path / "traces" / widget.file).read_bytes()
    np.testing.assert_array_equal(unpack(widget.header, written)["arrays"]["weights"], widget.trace.arrays["weights"])
    assert [p.name for p in (tmp_path / "traces").iterdir()] == [widget.file]
    sent = []
    monkeypatch.setattr(TokenStrip, "send", lambda self, content, buffers=None: sent.append((content, buffers)))
    widget._on_message(widget, {"want": "buffer"}, [])
    assert sent == [({"is": "buffer"}, [written])]


def test_no_asset_is_written_while_no_book_is_built(tmp_path, monkeypatch):
    monkeypatch.delenv("TUTOR_ASSETS", raising=False)
    monkeypatch.chdir(tmp_path)
    TokenStrip(strip_trace(), file="long")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------- colour
def _variables(theme: str) -> dict[str, str]:
    text = (HERE / "shared.css").read_text("utf-8")
    start = text.index('.tw[data-theme="dark"] {') if theme == "dark" else text.index(".tw {")
    return dict(re.findall(r"--tw-([a-z]+): (#[0-9a-f]{6})", text[start:text.index("}", start)]))


def _contrast(a: str, b: str) -> float:
    def light(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_arithmetic():
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    assert _contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_from_the_ground(theme):
    colour = _variables(theme)
    for name in ("ink", "muted", "query", "rejected"):                        # these are also colours of text
        for ground in ("paper", "soft"):
            assert _contrast(colour[name], colour[ground]) >= 4.5, (name, ground)
    assert _contrast(colour["ink"], colour["heat"]) >= 4.5                    # a word on the strongest shade
    for name in ("kept", "evicted", "candidate", "accepted", "rejected", "exact", "approximate", "query"):
        assert _contrast(colour[name], colour["paper"]) >= 3, name


def test_stills_use_the_light_palette():
    light = _variables("light")
    assert {name: light[name] for name in COLOURS} == COLOURS


def test_both_themes_define_the_same_colours():
    assert set(_variables("light")) == set(_variables("dark"))


def test_each_figure_has_its_files():
    for name, (cls, _) in ALL.items():
        assert cls.figure == name and (Path(HERE) / f"{name}.js").exists()
