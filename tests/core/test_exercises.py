import doctest

import pytest

import tutor.exercises
from tutor.exercises import RECORD, exercise


def test_the_docstring_example():
    assert doctest.testmod(tutor.exercises).failed == 0


def test_hints_come_one_after_another(capsys):
    task = exercise("?", check=lambda a: a == 1, hints=["first", "second"])
    task.hint(), task.hint(), task.hint()
    assert capsys.readouterr().out.splitlines() == ["Hint 1 of 2: first", "Hint 2 of 2: second", "No more hints."]


def test_a_check_may_say_what_is_wrong(capsys):
    task = exercise("?", check=lambda a: True if a == 1 else "Too large." if a > 1 else False)
    assert not task.check(2) and "Too large." in capsys.readouterr().out
    assert task.check(1)
    assert not task.check(0)


def test_an_unanswered_exercise_is_neither_right_nor_recorded(capsys):
    before = len(RECORD)
    assert exercise("?", check=lambda a: True).check(...) is False
    assert len(RECORD) == before


def test_answers_are_recorded_with_the_hints_used():
    task = exercise("counted?", check=lambda a: a == 1, hints=["h"])
    task.hint()
    task.check(1)
    assert RECORD[-1] == {"question": "counted?", "right": True, "hints": 1}


def test_a_check_that_is_no_function_is_refused():
    with pytest.raises(ValueError, match="check must be a function"):
        exercise("?", check=5)
