import importlib
import json
import re
import subprocess
import sys

import pytest

from tutor import catalog

FIELDS = {"name", "family", "title", "paper", "year", "module", "page", "kernel", "claims", "tests", "status"}


def test_every_entry_has_the_fields_and_a_family():
    rows = catalog.entries()
    assert rows
    for row in rows:
        assert set(row) == FIELDS and row["family"] in catalog.FAMILIES


def test_every_module_and_kernel_can_be_imported():
    for m in catalog.methods():
        importlib.import_module(m.module)
        if m.kernel:
            module, name = m.kernel.rsplit(".", 1)
            assert callable(getattr(importlib.import_module(module), name)), m.kernel


def test_done_means_page_test_and_a_measured_claim():
    for row in catalog.entries():
        if row["status"] == "done":
            assert row["page"] and row["tests"] and any(c["status"] != "unmeasured" for c in row["claims"]), row["name"]


def test_what_a_test_file_covers_exists():
    known = {m.key for m in catalog.methods()}
    assert set(catalog._tests()) <= known, set(catalog._tests()) - known


def test_what_a_notebook_tag_names_exists():
    known = {m.key for m in catalog.methods()}
    assert set(catalog._pages()) <= known, set(catalog._pages()) - known


def test_every_paper_key_is_in_the_bibliography():
    text = (catalog.root() / "book" / "references.bib").read_text(encoding="utf-8")
    keys = set(re.findall(r"^@\w+\{([^,]+),", text, re.M))
    assert {m.paper for m in catalog.methods() if m.paper} <= keys
    assert {p["key"] for p in catalog.papers()} <= keys


def test_a_method_without_evidence_is_not_done(monkeypatch):
    row = next(row for row in catalog.entries() if row["status"] == "done")
    for missing in ("_pages", "_tests", "claims"):
        with monkeypatch.context() as patch:
            patch.setattr(catalog, missing, lambda: {})
            again = next(r for r in catalog.entries(row["family"]) if r["name"] == row["name"])
            assert again["status"] != "done", f"done without {missing}"


def test_two_methods_of_one_name_are_refused():
    first = catalog.methods("attention")[0]

    def other(): ...

    with pytest.raises(ValueError, match="is defined in both"):
        catalog.method(first.name, "attention", "again")(other)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="streaming"):
        catalog.get("attention", "streamming")
    with pytest.raises(ValueError, match="family must be one of"):
        catalog.methods("attentoin")


def test_the_command_prints_json():
    done = subprocess.run(
        [sys.executable, "-m", "tutor.cli", "catalog", "--family", "ann", "--json"], capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout)
    assert {row["family"] for row in rows} == {"ann"}


def test_every_claim_names_a_method_and_has_numbers_once_measured():
    for claim in catalog.claims().values():
        assert claim.id.split(".")[0] == claim.method, claim.id
        if claim.status != "unmeasured":
            assert claim.expected.numbers and claim.expected.date and claim.stops, claim.id
