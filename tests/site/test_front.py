"""The small pictures of the front page draw what was recorded, and nothing else."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tutor.book import front
from tutor.data import path
from tutor.schemas import ANN_KINDS
from tutor.trace import Trace


def recorded(family: str, name: str) -> Trace:
    return Trace.load(path(family, f"{name}.safetensors"))


def strokes(picture: str) -> dict[str, int]:
    """Number of strokes of each kind."""
    root = ElementTree.fromstring(f"<svg>{picture}</svg>")
    return {part.get("class"): len(re.findall("M", part.get("d"))) for part in root.iter("path")}


def test_a_map_shows_the_largest_weight_of_each_square():
    weights = np.zeros((8, 8))
    weights[7, 0], weights[3, 3], weights[4, 1], weights[5, 5] = 0.9, 0.05, 1e-3, 1.0
    assert strokes(front.attention(weights, cells=4)) == {"g-heat1": 0, "g-heat2": 0, "g-heat3": 1, "g-heat4": 2}
    assert "M36 66h22" in front.attention(weights, cells=4)              # row 3 of 4, column 0


def test_every_row_of_the_cache_is_one_line():
    run = recorded("kvcache", "h2o")
    evicted = run.arrays["evicted_at"][1, 2]
    assert strokes(front.cache(run, 1, 2)) == {"g-evicted": (evicted >= 0).sum(), "g-kept": (evicted < 0).sum()}
    assert (evicted < 0).sum() == run.subject["budget"]


def test_passes_give_what_their_sentences_say():
    run = recorded("speculative", "tree_prose")
    told = [re.search(r"(\d+) tokens for one forward", run.describe(i)) for i in range(run.steps)]
    given = front.tokens_per_pass(run)
    assert given.tolist() == [int(t[1]) if t else 1 for t in told]
    assert strokes(front.speculation(run)) == {"g-own": run.steps, "g-accepted": given.sum() - run.steps}


def test_a_search_shows_each_compared_vector_once_and_rings_the_true_neighbours():
    run = recorded("ann", "hnsw_ef64")
    kind, held = run.events["kind"], run.events["n_correct"]
    seen = {int(dst) for dst, k in zip(run.events["dst"], kind) if ANN_KINDS[k] == "evaluated"}
    picture = front.search(run)
    assert strokes(picture) == {"g-dot": 600 - len(seen), "g-seen": len(seen)} and picture.count("<circle") == 8
    count = 0
    for k, correct in zip(kind, held):
        count += ANN_KINDS[k] == "evaluated"
        if correct == held.max():
            break
    assert front.comparisons_until_found(run) == count < len(seen)


@pytest.mark.parametrize("text", ["a < b", 'a "b"'])
def test_cards_escape_and_link(text):
    html = front.cards([front.Idea(text, "x.html", text, "", text)])
    assert html.count("<a ") == 1 and text not in html and ElementTree.fromstring(html).find(".//h3/a").text == text
