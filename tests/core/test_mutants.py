"""Planted bugs stay plantable: the text each one changes is there once, and the tests that must catch it exist.

Running all of them takes an hour (`make mutants`); a change runs ten. This finds at once what a change left behind.
"""

import shlex

from tests.mutants.run import ROOT, all_mutants


def test_every_planted_bug_can_be_planted_and_names_tests_that_exist():
    stale = []
    for mutant in all_mutants():
        path = ROOT / mutant.file
        times = path.read_text("utf-8").count(mutant.old) if path.exists() else 0
        if times != 1:
            stale.append(f"{mutant.name}: its text occurs {times} times in {mutant.file}")
        assert mutant.old != mutant.new, mutant.name
        for selection in (word for word in shlex.split(mutant.tests) if word.startswith("tests/")):
            file, _, test = selection.partition("::")
            text = (ROOT / file).read_text("utf-8") if (ROOT / file).is_file() else ""
            name = test.rpartition("::")[2].partition("[")[0]
            if not (ROOT / file).exists() or (name and f"def {name}(" not in text):
                stale.append(f"{mutant.name}: there is no {selection}")
    assert not stale, "\n".join(stale)
