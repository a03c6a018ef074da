"""Plotly figures: JSON into the page, drawn there by the site's own plotly.min.js."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("myst_nb", reason="the book extra is not installed")
import plotly.graph_objects as go

from tests.browser import served
from tutor.book.plotly_mime import MIME, PlotlyRenderer, figure_html

ROOT = Path(__file__).resolve().parents[2]


def figure() -> dict:
    x = np.arange(5, dtype=np.float32)
    chart = go.Figure(
        [go.Scatter(x=x, y=x**2, name="squares"), go.Bar(x=x, y=x, name="bars")],
        frames=[go.Frame(data=[go.Scatter(y=x)], name="one")],
    )
    return json.loads(chart.update_layout(title="A </script> in a title", height=300).to_json())


def test_the_renderer_is_found_by_myst_nb():
    from myst_nb.core.render import load_mime_renders

    assert PlotlyRenderer in load_mime_renders()


def test_only_plotly_outputs_on_their_own_line_are_taken():
    from myst_nb.core.render import MimeData

    nodes = PlotlyRenderer.handle_mime(None, MimeData(MIME, figure()), False)
    assert len(nodes) == 1 and "tutor-plotly" in nodes[0].astext()
    assert PlotlyRenderer.handle_mime(None, MimeData("text/plain", "x"), False) is None
    assert PlotlyRenderer.handle_mime(None, MimeData(MIME, figure()), True) is None


def test_no_text_of_a_figure_can_end_the_script_tag():
    html = figure_html(figure())
    assert html.count("</script>") == 1 and "min-height:300px" in html
    body = html.split('+json">')[1].split("</script>")[0]
    assert json.loads(body)["layout"]["title"]["text"] == "A </script> in a title"


def test_the_title_stands_above_the_chart_as_text():
    html = figure_html(figure() | {"layout": {"title": {"text": "<b>One</b> of<br>two & three"}}})
    assert '<figcaption aria-live="polite">One of two &amp; three</figcaption>' in html and "aria-label" not in html
    untitled = figure_html(figure() | {"layout": {}})
    assert "figcaption" not in untitled and 'aria-label="Chart"' in untitled


def page_of(tmp_path: Path, *figures: dict) -> None:
    shutil.copy(ROOT / "book" / "assets" / "plotly-init.js", tmp_path)
    (tmp_path / "vendor").mkdir()
    shutil.copy(Path(find_spec("plotly").origin).parent / "package_data" / "plotly.min.js", tmp_path / "vendor")
    shutil.copy(ROOT / "book" / "assets" / "tutor.css", tmp_path)
    (tmp_path / "index.html").write_text(
        '<!doctype html><html data-theme="light"><head><link rel="stylesheet" href="tutor.css"></head><body>'
        f'<div class="bd-article">{"".join(map(figure_html, figures))}</div>'
        '<script src="plotly-init.js"></script></body></html>'
    )


@pytest.mark.browser
def test_a_title_is_shown_once_follows_the_dial_and_survives_the_theme(tmp_path, open_page):
    buttons = [dict(label=name, method="update", args=[{}, {"title.text": f"{name} <b>finding</b>"}])
               for name in ("First", "Second")]
    chart = go.Figure(go.Bar(x=[1, 2], y=[1, 2])).update_layout(
        title="First<br>finding", height=400, margin_t=90, updatemenus=[dict(type="buttons", y=-0.2, buttons=buttons)])
    page_of(tmp_path, json.loads(chart.to_json()))
    with served(tmp_path) as address:
        page = open_page(address + "index.html")
        page.wait_for_selector(".tutor-plotly-box[data-drawn]")
        caption = page.locator("figcaption")
        assert caption.inner_text() == "First finding" and not page.locator(".gtitle").is_visible()
        box = page.locator(".tutor-plotly-box").bounding_box()
        assert box["height"] <= 330 and page.locator(".draglayer .nsewdrag").bounding_box()["y"] - box["y"] < 20
        page.locator(".updatemenu-button").nth(1).click()
        page.wait_for_function("() => document.querySelector('figcaption').textContent === 'Second finding'")
        page.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
        page.wait_for_function("() => document.querySelector('.tutor-plotly-box')._fullLayout.font.color === '#d9dde3'")
        assert caption.inner_text() == "Second finding"


@pytest.mark.browser
def test_the_page_draws_it_and_follows_the_theme(tmp_path, open_page):
    page_of(tmp_path, figure())
    (tmp_path / "plain.html").write_text(
        '<!doctype html><html><body><script src="plotly-init.js"></script></body></html>'
    )
    with served(tmp_path) as address:
        page = open_page(address + "index.html")
        page.wait_for_selector(".tutor-plotly-box[data-drawn]")
        drawn = page.evaluate("""() => { const b = document.querySelector(".tutor-plotly-box");
            return { y: [...b._fullData[0].y], kinds: b._fullData.map((t) => t.type), ink: b._fullLayout.font.color,
                     frames: b._transitionData._frames.length }; }""")
        assert drawn["y"] == [0, 1, 4, 9, 16] and drawn["kinds"] == ["scatter", "bar"] and drawn["frames"] == 1
        page.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
        page.wait_for_function(
            "ink => document.querySelector('.tutor-plotly-box')._fullLayout.font.color !== ink", arg=drawn["ink"]
        )
        plain = open_page(address + "plain.html")
        assert plain.evaluate("() => typeof window.Plotly") == "undefined"  # loaded only where needed
