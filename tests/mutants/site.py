"""Planted bugs of the site: what would make it flatter, invent or break without anybody noticing."""

from tests.mutants.mutant import Mutant

PAGES, BUILD, RESULTS = "tutor/book/pages.py", "tutor/book/build.py", "tutor/book/results.py"
FAULTS = "tutor/book/faults.py"
GENERATORS, BUILDER = "tests/site/test_generators.py", "tests/site/test_build.py"

MUTANTS = [
    Mutant("site: an unmeasured claim counts as evidence", PAGES,
           '[c for c in row["claims"] if c["status"] != "unmeasured"]', 'row["claims"]', GENERATORS),
    Mutant("site: open papers are left out of the matrix", PAGES,
           'for row in mine if row["status"] == "open"]\n        if waiting:\n            lines.append(table(["paper',
           'for row in mine if row["status"] == "none"]\n        if waiting:\n            lines.append(table(["paper',
           GENERATORS),
    Mutant("site: a chip loses its word", "tutor/book/markup.py",
           'return f\'<span class="chip {status}"><span aria-hidden="true">{sign}</span> {word}</span>\'',
           'return f\'<span class="chip {status}"><span aria-hidden="true">{sign}</span></span>\'', GENERATORS),
    Mutant("site: the lower bound of a claim is shown as its value", PAGES,
           'f"{number(n.low)} to {number(n.high)}"', "number(n.low)", GENERATORS),
    Mutant("site: a folded number is lost", PAGES,
           "table(head, rows[first:], label=f\"More", "table(head, rows[first + 1:], label=f\"More", GENERATORS),
    Mutant("site: the headline of a claim card is lost", "tutor/claim.py",
           "measured = table(rows[:first])", "measured = table(rows[:first - 1])", "tests/core/test_claim.py"),
    Mutant("site: a claim card folds what it should show", "tutor/claim.py",
           "first = len(rows) if len(rows) <= self.MOST_SHOWN else 1", "first = 1", "tests/core/test_claim.py"),
    Mutant("site: a pass is credited with no token of its own", "tutor/book/front.py",
           "accepted[a:b].sum() + 1", "accepted[a:b].sum()", "tests/site/test_front.py"),
    Mutant("site: comparisons are counted without the one that found the last", "tutor/book/front.py",
           "n_correct\"].argmax() + 1]", "n_correct\"].argmax()]", "tests/site/test_front.py"),
    Mutant("site: evicted rows are drawn as kept", "tutor/book/front.py",
           "_path(\"evicted\", map(line, np.flatnonzero(~held)))", "_path(\"kept\", map(line, np.flatnonzero(~held)))",
           "tests/site/test_front.py"),
    Mutant("site: a table forgets columns that the first row lacks", RESULTS,
           "for row in value for name in row))", "for row in value[:1] for name in row))", GENERATORS),
    Mutant("site: prose is not escaped", "tutor/book/markup.py",
           r'out.append(re.sub(r"([\\*_{}\[\]<>#|$~`])", r"\\\1", part))', "out.append(part)", GENERATORS),
    Mutant("site: addresses without a scheme pass as local", FAULTS,
           'return bool(parts.netloc) or parts.scheme in', "return parts.scheme in", BUILDER),
    Mutant("site: a widget without its state is published", FAULTS,
           'if view["model_id"] not in states]', 'if view["model_id"] in states]', BUILDER),
    Mutant("site: folding a chart's code loses the tags of its cell", BUILD,
           'tags = {*cell["metadata"].get("tags", []), "hide-input"}', 'tags = {"hide-input"}', BUILDER),
    Mutant("site: a page with formulas loses MathJax", BUILD,
           "if not re.search(r'class=\"[^\"]*\\bmath(?!jax)', text):", "if True:", BUILDER),
    Mutant("site: anchors are not looked up", FAULTS,
           "unquote(anchor) not in anchors[target]", "unquote(anchor) is None", BUILDER),
    Mutant("site: changed data keep old pictures", BUILD, '("data", None), ', "", BUILDER),
    Mutant("site: lessons come in the order of the disk", BUILD,
           'key=lambda name: [rank.get(part, part) for part in name.split("/")]', "key=len", BUILDER),
    Mutant("site: a chart's text may end its script tag", "tutor/book/plotly_mime.py",
           '.replace("<", "\\\\u003c")', "", "tests/site/test_plotly.py -m 'not browser'"),
]
