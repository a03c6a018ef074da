"""The pages that are made: what they say follows from what they are given, and nothing is invented."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tutor import catalog
from tutor.book import docstrings, markup, pages, results
from tutor.claim import Claim, Expected, Measured, Number

ROOT = Path(__file__).resolve().parents[2]


def row(name="m", *, status="done", family="attention", **more):
    full = {
        "name": name,
        "family": family,
        "title": f"Method {name}",
        "paper": "dao2022flashattention",
        "year": 2022,
        "module": "tutor.attention.methods.window",
        "page": "notebooks/10_attention/01_x.ipynb",
        "kernel": "",
        "claims": [{"id": "m.says", "status": "holds"}],
        "tests": ["tests/a.py::test_one"],
        "status": status,
    }
    if status == "open":
        full |= {"module": "", "page": "", "claims": [], "tests": []}
    return full | more


def claim(status="holds", **more):
    settings = {
        "id": "m.says-so",
        "family": "attention",
        "method": "m",
        "paper_says": "Most mass is on <few> keys.",
        "where": "section 4",
        "experiment": lambda: Measured(status, {"share": 0.5}, ""),
        "stops": "At long contexts.",
        "expected": Expected(
            status, {"share_kept": Number(0.9, 0.95, "of 1")}, "2026-11-23", "abc1234", "2-core laptop-class CPU"
        ),
    }
    return Claim(**(settings | more))


# ------------------------------------------------------------------------------------------------------------ coverage
def test_green_stands_only_beside_what_is_done():
    page = pages.coverage_page([row("a"), row("b", status="partial", tests=[]), row("c", status="open")], {}, {})
    assert page.count('class="chip done"') == 2  # once in the tally, once in the table
    assert re.search(r"Method a</a></th><td><span class=\"chip done\"", page)
    assert re.search(r"Method b</a></th><td><span class=\"chip partial\"", page)
    assert "1 done, 1 partial, 1 open" in page


def test_a_status_is_a_sign_and_a_word():
    for status, (sign, word) in markup.STATUS.items():
        assert f"{sign}</span> {word}</span>" in markup.chip(status)
    assert len({sign for sign, _ in markup.STATUS.values()}) == 3
    assert len({sign for sign, _ in markup.VERDICT.values()}) == 4


def test_an_open_paper_links_to_the_paper_and_to_no_page_of_ours():
    page = pages.coverage_page(
        [row("c", status="open")], {}, {"dao2022flashattention": "https://arxiv.org/abs/2205.14135"}
    )
    assert "https://arxiv.org/abs/2205.14135" in page and "methods/attention/c.html" not in page


def test_the_summary_counts_add_up():
    rows = [
        row("a"),
        row("b", status="partial"),
        row("c", status="open", family="ann"),
        row("d", status="open", family="ann"),
    ]
    page = pages.coverage_summary(rows)
    assert re.search(r"all</th>.*<strong>1</strong>.*<strong>1</strong>.*<strong>2</strong>", page)
    assert 'aria-label="Vector search: 0 done, 0 partial, 2 open of 2"' in page


def test_the_real_coverage_lists_every_planned_paper_once():
    entries = catalog.entries()
    covered = {entry["paper"] for entry in entries}
    assert covered >= {paper["key"] for paper in catalog.papers() if paper["planned"]}
    page = pages.coverage_page(entries, {}, {})
    for entry in entries:
        assert markup.esc(entry["title"]) in page


# -------------------------------------------------------------------------------------------------------------- claims
def test_a_card_says_what_was_said_what_was_measured_and_where_it_stops():
    card = pages.claim_card(claim())
    for text in (
        "Most mass is on &lt;few&gt; keys.",
        "section 4",
        "share kept",
        "0.9 to 0.95",
        "2026-11-23",
        "2-core laptop-class CPU",
        "At long contexts.",
        "✓",
        "holds",
    ):
        assert text in card
    assert "\n\n" not in card  # a blank line would end the HTML block


def test_a_card_with_many_numbers_folds_them_in_the_ledger_and_shows_them_on_the_page_of_its_method():
    numbers = {f"number_{i}": Number(i, i + 0.5, "keys") for i in range(9)}
    many = replace(claim(), expected=replace(claim().expected, numbers=numbers))
    alone, listed = pages.claim_card(many), pages.claim_card(many, address="methods/m.html")
    assert '<details class="claim-more" open><summary>8 more numbers</summary>' in alone
    assert '<details class="claim-more"><summary>8 more numbers</summary>' in listed
    for card in (alone, listed):
        before, after = card.split("<details")
        assert "number 0" in before and "number 1" not in before and all(f"number {i}" in after for i in range(1, 9))
        assert "\n\n" not in card
    assert "<details" not in pages.claim_card(claim())


def test_the_ledger_counts_every_verdict():
    page = pages.claims_page([claim(), claim("not_here", id="m.other"), claim("in_part", id="m.third")])
    assert "does not hold here" in page and page.count("<article") == 3
    choices = re.findall(r'id="only-(\w+)"( checked)?><strong>(\d+)</strong>', page)
    assert choices == [("all", " checked", "3"), ("holds", "", "1"), ("in_part", "", "1"), ("not_here", "", "1")]
    styles = (ROOT / "book" / "assets" / "tutor.css").read_text("utf-8")
    assert all(f":has(#only-{name}:checked) article.claim:not(.{name})" in styles for name in markup.VERDICT)


def test_no_claims_are_said_to_be_none():
    assert "No claim has been measured yet" in pages.claims_page([])


# ------------------------------------------------------------------------------------------------------------- methods
DOC = """Window: read the last `W` keys.

Some words about [dao2022flashattention].

Idea        Near is dear
            and cheap.
Rule        keep(i, j) is true when
              j > i - W
Known bias  it favours * age_of rows
"""


def test_a_docstring_is_read_in_its_parts():
    words = docstrings.told(DOC)
    assert words.title == "Window: read the last `W` keys." and words.prose == (
        "Some words about [dao2022flashattention].",
    )
    assert list(words.sections) == ["Idea", "Rule", "Known bias"]
    assert words.sections["Idea"] == "Near is dear\nand cheap." and words.sections["Rule"].endswith("\n  j > i - W")


def test_the_steps_of_a_rule_stay_apart_and_prose_flows():
    assert docstrings.rule_block("build: a\n  and b\nsearch: c").count("and b</span><span") == 1
    assert docstrings.rule_block("one\ntwo") == '<p class="rule">one two</p>\n'


def test_prose_is_literal_but_for_code_and_known_papers():
    text = markup.md("a*b_c <x> $y$ [known2020] [unknown] `k_v` 1", keys={"known2020"})
    assert text == r"a\*b\_c \<x\> \$y\$ {cite:p}`known2020` \[unknown\] `k_v` 1"


def test_parameters_come_from_the_signature_and_their_words_from_the_docstring():
    @dataclass
    class Policy:
        """One.

        Args:
            sinks: the first rows
                that stay.
            window: the last rows.
        """

        sinks: int = 4
        window: int = 60

    assert docstrings.parameters(Policy) == [
        ("sinks", "int", "4", "the first rows that stay."),
        ("window", "int", "60", "the last rows."),
    ]


def test_a_page_says_what_a_method_still_lacks():
    assert pages.missing(row(tests=[], page="")) == ["tests", "lesson"]
    assert pages.missing(row(claims=[{"id": "x", "status": "unmeasured"}])) == ["measured claim"]


@pytest.mark.parametrize("method", catalog.methods(), ids=lambda method: method.key)
def test_every_method_has_a_page_with_its_idea_and_its_parameters(method):
    entry = next(e for e in catalog.entries(method.family) if e["name"] == method.name)
    page = pages.method_page(method, entry, [], {}, {paper["key"] for paper in catalog.papers()})
    for heading in ("## Idea", "## Rule", "## Cost", "## What differs from the paper"):
        assert heading in page, f"{method.module} lacks the docstring section behind {heading!r}"
    for name, *_ in docstrings.parameters(method.build):
        assert f"<code>{name}</code>" in page
    where = page.find("<dt>see it</dt>")                     # before anything is read, a way to its picture
    assert (0 < where < page.find("## Idea") and ".html#method-" in page[where:]) == bool(entry["page"])


# ------------------------------------------------------------------------------------------------------------- results
def test_a_large_result_file_shows_its_beginning_and_says_how_much_is_left():
    layers = {f"layer_{i}": [{"keys": k, "mass": 0.5} for k in range(30)] for i in range(8)}
    page = results.result_section("big", {"question": "How much?", "layers": layers})
    assert page.count("<table") == 5 and "layer 4" in page and "layer 5" not in page
    assert "3 more tables with 90 rows are in the file." in page and "results/big.json" in page
    one = results.result_section("long", {"points": [{"keys": k} for k in range(200)]})
    assert one.count("<tr>") == 201 and "more tables" not in one


def test_a_result_file_becomes_tables_with_its_machine_and_day():
    result = {
        "question": "How fast?",
        "machine": "a laptop",
        "date": "2026-11-23",
        "torch": "2.13",
        "points": [{"rows": 1, "ms": 17.123456}, {"rows": 64, "ms": 51.0, "retries": 7}],
        "floor": {"bandwidth": 12.5, "heads": [0.5, 0.25] * 5},
    }
    page = pages.numbers_page({"decode": result})
    for text in (
        "## How fast?",
        "machine: a laptop",
        "date: 2026-11-23",
        "torch 2.13",
        "<td>17.12</td>",
        "<td>51</td>",
        "12.5",
        "10 values, 0.25 to 0.5",
        "decode.json",
        "retries</th>",
        "<td>7</td>",
    ):
        assert text in page
    assert page.count("<tr>") == 3 + 3  # two heads, two points, two lines of the floor


def test_what_was_not_measured_is_not_shown():
    assert "No benchmark has been run yet" in pages.numbers_page({})
    assert "has not been measured" in results.rounding_note({})
    assert "0.23" in results.rounding_note({"rounding": {"largest_change_of_a_logit": 0.23}})


@pytest.mark.parametrize(
    ("value", "text"), [(0.00012345, "0.0001234"), (123456.7, "123457"), (12, "12"), (True, "yes"), (1e-9, "1e-09")]
)
def test_numbers_read_as_one_would_say_them(value, text):
    assert markup.number(value) == text


# ------------------------------------------------------------------------------------------------------------- lessons
def test_a_lesson_is_known_by_its_title_and_first_sentence(tmp_path):
    cells = [
        {"cell_type": "code", "source": "# not a title"},
        {"cell_type": "markdown", "source": ["# Which tokens may go?\n", "\n", "Memory is short. And so on."]},
    ]
    path = tmp_path / "01_x.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert pages.lesson_of(path) == ("Which tokens may go?", "Memory is short.")


# -------------------------------------------------------------------------------------------------------------- papers
def test_the_list_of_papers_is_the_one_the_bibliography_gives():
    pytest.importorskip("pybtex")
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_papers", ROOT / "book" / "make_papers.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    text = maker.dump(maker.papers((ROOT / "book" / "references.bib").read_text("utf-8")))
    assert text == (ROOT / "tutor" / "papers.json").read_text("utf-8"), "run book/make_papers.py"
    assert maker.plain(r"{A$^2$ATS}: the {S}t{\'e}phane {KV}") == "A²ATS: the Stéphane KV"
    with pytest.raises(ValueError, match="nowhere"):
        maker.papers(
            "% Part Z. nowhere\n@misc{chen2023sampling,\n title={x}, year={2000}}"
            + "".join(
                f"\n@misc{{{key},\n title={{x}}, year={{2000}}}}"
                for key in {*maker.FAMILY, *maker.BACKGROUND} - {"chen2023sampling"}
            )
        )


def test_titles_hold_no_latex_and_families_are_known():
    for paper in catalog.papers():
        assert not re.search(r"[{}\\$]", paper["title"]), paper["title"]
        assert paper["family"] in catalog.FAMILIES and 1950 < paper["year"] < 2030
    keys = [paper["key"] for paper in catalog.papers()]
    assert len(keys) == len(set(keys))


def test_every_method_cites_a_paper_of_the_list():
    keys = {paper["key"] for paper in catalog.papers()}
    assert not [method.key for method in catalog.methods() if method.paper and method.paper not in keys]
