import pytest

from tutor.claim import Claim, Expected, Measured, Number


def claim(verdict="holds", value=0.5, stored="holds", low=0.4, high=0.6) -> Claim:
    return Claim(
        id="toy.says-so",
        family="attention",
        method="toy",
        paper_says="It is so.",
        where="section 1",
        experiment=lambda: Measured(verdict, {"ratio": value}, "It was so."),
        expected=Expected(stored, {"ratio": Number(low, high)}, date="2026-11-23"),
    )


def test_a_claim_inside_its_interval_passes():
    assert claim().check().numbers == {"ratio": 0.5}


@pytest.mark.parametrize(
    "drift, message",
    [
        (claim(value=0.61), "ratio = 0.61 left"),
        (claim(verdict="not_here"), "verdict is 'not_here', stored 'holds'"),
        (claim(value=float("nan")), "left"),
    ],
)
def test_drift_fails_and_says_what_drifted(drift, message):
    with pytest.raises(AssertionError, match=message):
        drift.check()


def test_a_number_that_vanished_fails():
    lost = Claim(
        "toy.x", "attention", "toy", "…", "…", lambda: Measured("holds", {}, ""), Expected("holds", {"ratio": Number(0, 1)})
    )
    with pytest.raises(AssertionError, match="differ from the stored"):
        lost.check()


def test_bad_verdicts_and_empty_intervals_are_refused():
    with pytest.raises(ValueError, match="verdict must be one of"):
        Expected("proved", {})
    with pytest.raises(ValueError, match="interval is empty"):
        Number(2, 1)


def test_a_card_says_all_four_things():
    from tutor.claim import Card

    found = Card(claim(), claim().check())
    assert [name for name, _ in found.lines()] == ["Verdict", "The paper says", "We measured", "Just now", "Where it stops"]
    assert "0.4 to 0.6" in repr(found) and "It was so." in found._repr_html_()


def test_the_headline_comes_first_and_must_be_a_number_of_the_claim():
    from dataclasses import replace

    from tutor.claim import Card

    three = Expected("holds", {"a": Number(1, 1), "b": Number(2, 2), "c": Number(3, 3)})
    told = replace(claim(), expected=three, headline="c")
    assert [name for name, _ in Card(told).numbers()] == ["c", "a", "b"]
    assert [name for name, _ in Card(replace(told, headline="")).numbers()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="headline must be one of"):
        replace(told, headline="d")


def many(n: int):
    from tutor.claim import Card

    names = [f"number_{i}" for i in range(n)]
    expected = Expected("holds", {name: Number(i, i + 0.5, "keys") for i, name in enumerate(names)}, date="2026-11-23")
    return Card(Claim("toy.many", "attention", "toy", "…", "…", claim().experiment, expected))


def test_three_numbers_stand_in_the_open_and_more_can_be_folded():
    assert "<details" not in many(3)._repr_html_()
    html = many(18)._repr_html_()
    shown, folded = html.split("<details")
    assert "number 0" in shown and "number 1" not in shown
    assert folded.startswith(' class="claim-more" open>') and "<summary>17 more numbers</summary>" in folded
    assert all(f"<th scope=row>number {i}</th><td>{i} to {i + 0.5} keys</td>" in folded for i in range(1, 18))


def test_a_card_in_plain_text_has_a_line_for_each_number():
    lines = repr(many(18)).splitlines()
    assert [line for line in lines if "keys" in line] == [f"    {f'number {i}':<9}  {i} to {i + 0.5} keys"
                                                          for i in range(18)]
    assert lines[1] == "  Verdict: ✓ holds"


def test_a_card_with_no_number_yet_says_so_only_by_its_verdict():
    from tutor.claim import Card

    card = Card(Claim("toy.x", "attention", "toy", "a", "§1", claim().experiment, Expected("unmeasured", {})))
    assert "not measured" in repr(card) and "<table" not in card._repr_html_()
    assert card.lines()[2] == ("We measured", "nothing yet")


def test_a_card_escapes_markup():
    from tutor.claim import Card

    sneaky = Claim("toy.x", "attention", "toy", "a <b> & c", "§1", claim().experiment, claim().expected)
    assert "a &lt;b&gt; &amp; c" in Card(sneaky)._repr_html_() and "<b>" not in Card(sneaky)._repr_html_()


def test_an_unknown_card_lists_the_known_ones():
    from tutor.claim import card

    with pytest.raises(ValueError, match="no claim 'h2o.makes-coffee'; there are"):
        card("h2o.makes-coffee")
