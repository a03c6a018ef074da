"""The builder: what it gathers, and what it refuses to publish."""

import json
from pathlib import Path

import pytest

pytest.importorskip("jupyter_book", reason="the book extra is not installed")
from tutor.book import build, faults

ROOT = Path(__file__).resolve().parents[2]
WIDGET = '<script type="application/vnd.jupyter.widget-view+json">{"model_id": "m1"}</script>'
STATE = '<script type="application/vnd.jupyter.widget-state+json">{"state": {"m1": {}}}</script>'


def site_of(folder: Path, **pages: str) -> Path:
    for name, body in pages.items():
        (folder / f"{name}.html").write_text(f"<html><body>{body}</body></html>", "utf-8")
    return folder


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "asks another server"),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', "asks another server"),
        ('<img src="http://a.example/b.png">', "asks another server"),
        ('<link rel="preconnect" href="https://fonts.example">', "asks another server"),
        ('<a href="nowhere.html">x</a>', "does not exist"),
        ('<a href="other.html#gone">x</a>', "no such anchor"),
        ('<a href="#gone">x</a>', "no such anchor"),
        ('<img src="missing.png">', "does not exist"),
        (WIDGET, "no saved state"),
    ],
)
def test_a_faulty_page_is_refused(tmp_path, body, what):
    site_of(tmp_path, index=body, other='<p id="here"></p>')
    with pytest.raises(RuntimeError, match=what):
        faults.inspect(tmp_path)


def test_a_sound_page_passes(tmp_path):
    body = (
        '<p id="a"></p><a href="#a">1</a><a href="other.html#here">2</a><a href="https://arxiv.org/abs/1">3</a>'
        '<link rel="canonical" href="https://tutor.example/index.html"><a href="mailto:x@y.z">4</a>' + WIDGET + STATE
    )
    site_of(tmp_path, index=body, other='<p id="here"></p><a href="/index.html">5</a>')
    pages, size = faults.inspect(tmp_path)
    assert pages == 2 and size > 0


def test_a_site_that_is_too_large_is_refused(tmp_path, monkeypatch):
    site_of(tmp_path, index="x")
    (tmp_path / "big.bin").write_bytes(bytes(2000))
    monkeypatch.setattr(faults, "MOST_BYTES", 1000)
    with pytest.raises(RuntimeError, match="at most"):
        faults.inspect(tmp_path)


def test_globs_become_pages_in_order_and_methods_hang_below_their_family():
    toc = {
        "parts": [
            {
                "caption": "Lessons",
                "chapters": [{"file": "notebooks/00_a"}, {"glob": "notebooks/10_x/*"}, {"glob": "notebooks/20_y/*"}],
            },
            {"caption": "None", "chapters": [{"glob": "notebooks/90_z/*"}]},
            {"caption": "Covered", "chapters": [{"file": "methods/index", "sections": [{"glob": "methods/*/index"}]}]},
        ]
    }
    places = [
        "notebooks/10_x/02_b.ipynb",
        "notebooks/10_x/01_a.ipynb",
        "notebooks/00_a.ipynb",
        "methods/index.md",
        "methods/ann/index.md",
        "methods/ann/flat.md",
        "methods/kvcache/index.md",
    ]
    parts = build.expand_toc(toc, places)["parts"]
    assert [p["caption"] for p in parts] == ["Lessons", "Covered"]
    assert [c["file"] for c in parts[0]["chapters"]] == ["notebooks/00_a", "notebooks/10_x/01_a", "notebooks/10_x/02_b"]
    assert parts[1]["chapters"] == [
        {
            "file": "methods/index",
            "sections": [
                {"file": "methods/kvcache/index"},
                {"file": "methods/ann/index", "sections": [{"file": "methods/ann/flat"}]},
            ],
        }
    ]


def test_the_cell_of_a_method_gets_one_anchor():
    cell = {"cell_type": "code", "source": "1", "metadata": {"tags": ["method:ann.flat", "other"]}}
    cells = build.for_readers({"cells": [cell, cell]})["cells"]
    assert [c["cell_type"] for c in cells] == ["markdown", "code", "code"] and 'id="method-ann-flat"' in cells[0][
        "source"
    ]


def test_code_that_lays_out_a_chart_is_folded_and_other_code_is_not():
    chart = {"cell_type": "code", "source": ["f = go.Figure()\n", "f.update_layout(height=3)"], "metadata": {"tags": ["z"]}}
    idea = {"cell_type": "code", "source": "weights = scores.softmax(-1)", "metadata": {}}
    text = {"cell_type": "markdown", "source": "call `figure.update_layout()`", "metadata": {}}
    found = build.for_readers({"cells": [chart, idea, text]})["cells"]
    assert [c["metadata"].get("tags", []) for c in found] == [["hide-input", "z"], [], []]
    assert chart["metadata"] == {"tags": ["z"]}


def test_executed_pages_are_made_anew_when_the_package_changes(tmp_path):
    for folder in ("tutor", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tutor" / "a.py").write_text("x = 1")
    first = build.stamp(tmp_path)
    assert build.stamp(tmp_path) == first
    (tmp_path / "tutor" / "a.py").write_text("x = 2")
    second = build.stamp(tmp_path)
    (tmp_path / "data" / "b.bin").write_bytes(b"1")
    assert len({first, second, build.stamp(tmp_path)}) == 3


def test_the_new_site_replaces_the_old_one_without_leftovers(tmp_path):
    html, out = tmp_path / "from", tmp_path / "out"
    (html / "_static").mkdir(parents=True)
    for name in ("index.html", "_static/a.js", "_static/a.js.map", "_static/fontawesome.js", "404.html"):
        (html / name).write_text('<head><script src="a.js"></script><script defer src="fontawesome.js?digest=1"></script></head>')
    out.mkdir()
    (out / "old.html").write_text("x")
    build.finish(html, tmp_path / "new", address="https://tutor.example/book")
    build.publish(tmp_path / "new", out)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "404.html",
        "_static/a.js",
        "index.html",
    ]
    assert '<base href="https://tutor.example/book/">' in (out / "404.html").read_text()
    assert (out / "index.html").read_text() == '<head><script src="a.js"></script></head>'


def test_only_pages_with_formulas_ask_for_mathjax(tmp_path):
    load = '<script>window.MathJax = {"options": {}}</script><script defer="defer" src="mathjax/tex-svg.js?v=1"></script>'
    inline, plain = '<span class="math notranslate">x</span>', '<section class="tex2jax_ignore mathjax_ignore">x</section>'
    site_of(tmp_path, inline=load + inline, block=load + '<div class="amsmath math">x</div>', plain=load + plain)
    build.finish(tmp_path, tmp_path.with_name("out"))
    text = lambda name: (tmp_path.with_name("out") / f"{name}.html").read_text()
    assert load + inline in text("inline") and load in text("block")
    assert text("plain") == f"<html><body>{plain}</body></html>"


def test_everything_that_the_table_of_contents_names_is_there():
    """Prose pages exist, generated pages are generated."""
    import yaml

    from tutor.book import pages

    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))
    named = {item["file"] for part in toc["parts"] for item in part["chapters"] if "file" in item}
    named = {name for name in named if not name.startswith("notebooks/")}
    made = {Path(name).with_suffix("").as_posix() for name in pages.everything(ROOT, [])}
    written = {p.stem for p in (ROOT / "book").glob("*.md")}
    assert named <= made | written


def test_the_configuration_loads_nothing_from_elsewhere():
    import yaml

    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text("utf-8"))["sphinx"]["config"]
    assert "sphinx_thebe" not in config["extensions"]
    assert (ROOT / "book" / "assets" / config["mathjax_path"]).stat().st_size > 1_000_000
    assert "//" not in json.dumps([config["html_css_files"], config["html_js_files"], list(config["nb_ipywidgets_js"])])
