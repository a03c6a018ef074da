"""The real vectors and the recorded searches that ship with the package."""

import numpy as np
import pytest

from tests.ann.world import brute
from tutor import data
from tutor.ann import bench, corpus, metrics
from tutor.ann.flat import Flat
from tutor.trace import Trace

COVERS = ("ann.flat", "ann.ivf", "ann.hnsw", "ann.faiss_replay")
SEARCHES = [f"hnsw_ef{ef}" for ef in (8, 16, 64)] + [f"ivf_nprobe{n}" for n in (1, 4, 16)]
FRONTIERS = ["frontier", "frontier_keys", "frontier_queries", "frontier_raw_queries"]


@pytest.mark.parametrize("asked, n", [("sentences", 200), ("questions", 24)])
def test_docstrings_are_unit_vectors_with_labels(asked, n):
    c = corpus.docstrings(asked)
    assert c.X.shape == (2000, 384) and c.Q.shape == (n, 384) and len(c.labels) == 2000 and len(c.asks) == n
    for rows in (c.X, c.Q):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-3)   # float16 on disk
    assert len(set(c.labels)) == 2000


def test_a_sentence_finds_the_docstring_it_was_taken_from():
    c, sources = corpus.docstrings(), corpus.sources()
    found = Flat().build(c.X, c.metric).search(c.Q, 10).ids
    assert (found == sources[:, None]).any(1).mean() > 0.5       # guessing: 0.005


def test_keys_lie_in_the_past_of_those_who_ask():
    capture = data.capture("reference_4096")
    c = corpus.attention(20, 6, nq=5)
    np.testing.assert_array_equal(c.X, capture.k(20)[0, 2, :3072].numpy())       # query head 6 reads KV head 2 of 3
    np.testing.assert_array_equal(c.Q[0], capture.q(20)[0, 6, 3072].numpy())
    np.testing.assert_array_equal(c.Q[-1], capture.q(20)[0, 6, -1].numpy())
    assert c.labels == capture.tokens[:3072] and c.asks[-1] == capture.tokens[-1]


def test_centring_keys_changes_no_attention():
    raw, centred = (corpus.attention(25, 0, nq=20, centre=centre) for centre in (False, True))
    weights = []
    for c in (raw, centred):
        logits = -brute(c.X, c.Q, "ip") / 8
        weights.append(np.exp(logits - logits.max(1, keepdims=True)))
        weights[-1] /= weights[-1].sum(1, keepdims=True)
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-5)
    assert np.abs(raw.X.mean(0)).max() > 1 > 1e3 * np.abs(centred.X.mean(0)).max()
    ids = [bench.truth(c.X, c.Q, 10, "ip") for c in (raw, centred)]
    assert metrics.recall(*ids) > 0.99


@pytest.mark.parametrize("how, message", [
    (dict(keys=5000), "keys must be in"), (dict(nq=2000), "nq in"), (dict(head=9), "head must be in"),
    (dict(asked="values"), "asked 'queries' or 'keys'"), (dict(layer=3), "layer must be one of"),
])
def test_what_was_not_recorded_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        corpus.attention(**how)
    with pytest.raises(ValueError, match="asked must be"):
        corpus.docstrings("answers")


@pytest.mark.parametrize("name", SEARCHES)
def test_recorded_searches_tell_a_consistent_story(name):
    path = data.path("ann", f"{name}.safetensors")
    trace = Trace.load(path)
    assert path.stat().st_size <= 180_000
    assert len(trace.subject["labels"]) == len(trace.arrays["xy"]) == 600 and trace.subject["query"]
    order = np.lexsort((np.arange(600), trace.arrays["true_dist"]))
    assert trace.arrays["truth"].tolist() == order[:8].tolist()
    hits = set(trace.arrays["truth"].tolist()) & set(trace.arrays["result"].tolist())
    assert trace.events["n_correct"][-1] == len(hits)
    assert ("edges" in trace.arrays) == name.startswith("hnsw") and ("cell" in trace.arrays) == name.startswith("ivf")


def test_more_effort_finds_more_in_the_recorded_searches():
    found = [Trace.load(data.path("ann", f"{name}.safetensors")).events["n_correct"][-1] for name in SEARCHES]
    assert found[0] < found[1] <= found[2] == 8 and found[3] < found[4] < found[5] == 8


@pytest.mark.parametrize("name", FRONTIERS)
def test_recorded_frontiers_hold_four_series(name):
    trace = Trace.load(data.path("ann", f"{name}.safetensors"))
    a = trace.arrays
    assert trace.steps == len(trace.subject["names"]) == len(np.unique(a["series"])) == 4
    assert (a["lo"] <= a["y"] + 1e-6).all() and (a["y"] <= a["hi"] + 1e-6).all() and (a["y"] <= 1).all()
    for series in range(4):
        assert (np.diff(a["x"][a["series"] == series]) >= 0).all()   # more effort, more distances
