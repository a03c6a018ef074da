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
    assert [name for name, _ in found.lines()] == ["The paper says", "We measured", "Just now", "Verdict", "Where it stops"]
    assert "0.4 to 0.6" in repr(found) and "It was so." in found._repr_html_()


def test_a_card_escapes_markup():
    from tutor.claim import Card

    sneaky = Claim("toy.x", "attention", "toy", "a <b> & c", "§1", claim().experiment, claim().expected)
    assert "a &lt;b&gt; &amp; c" in Card(sneaky)._repr_html_()


def test_an_unknown_card_lists_the_known_ones():
    from tutor.claim import card

    with pytest.raises(ValueError, match="no claim 'h2o.makes-coffee'; there are"):
        card("h2o.makes-coffee")
