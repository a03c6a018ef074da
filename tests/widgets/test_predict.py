import json
import shutil
import subprocess

import pytest

from tutor.exercises import RECORD, predict
from tutor.widgets.predict import HERE


def test_the_first_choice_is_recorded_and_judged():
    ask = predict("Where does attention go?", ["to the nearest word", "to the first token"], answer=1, because="It got 61 %.")
    ask.chosen = 1
    assert RECORD[-1]["right"] is True
    before = len(RECORD)
    ask.chosen = 0
    assert len(RECORD) == before


@pytest.mark.parametrize("choices, answer", [(["only one"], 0), (["a", "b"], 2), (["a", "b"], -1)])
def test_bad_questions_are_refused(choices, answer):
    with pytest.raises(ValueError):
        predict("?", choices, answer=answer, because="")


def test_the_text_form_does_not_give_the_answer_away():
    ask = predict("Which?", ["a", "b"], answer=1, because="Because of the number 42.")
    assert "42" not in repr(ask) and "a / b" in repr(ask)


@pytest.mark.skipif(
    shutil.which("node") is None, reason="node is not installed; the JavaScript of the figures is tested where it is"
)
@pytest.mark.parametrize("chosen, words", [(-1, ""), (0, "Not this time: b."), (1, "Yes: b.")])
def test_the_verdict_in_words(chosen, words):
    module = (HERE / "predict.js").read_text("utf-8")
    script = module + f"\nconsole.log(JSON.stringify(verdict(['a', 'b'], 1, {chosen})));"
    done = subprocess.run(["node", "--input-type=module", "-"], input=script, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == words
