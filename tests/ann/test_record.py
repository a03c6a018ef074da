"""Traces: recording changes nothing, every distance is an event, the last state is the answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ann.world import built, gaussian, registered
from tutor.ann.record import Layout, record
from tutor.trace import Recorder, Trace

COVERS = ("ann.flat", "ann.ivf", "ann.hnsw", "ann.faiss_replay")
INDEXES = registered()
every_index = pytest.mark.parametrize("entry", INDEXES, ids=[m.name for m in INDEXES])


def efforts(index):
    return [{index.effort: e} for e in (8, 40)] if index.effort else [{}]


@every_index
def test_recorded_and_unrecorded_runs_return_the_same(entry):
    index = built(entry.name)
    for q in gaussian()[1][:5]:
        for effort in efforts(index):
            quiet = index.search(q, 8, **effort)
            recorder = Recorder("ann.search/1", method=entry.name)
            loud = index.search(q, 8, trace=recorder, **effort)
            np.testing.assert_array_equal(quiet.ids, loud.ids)
            np.testing.assert_array_equal(quiet.distances, loud.distances)
            assert quiet.cost == loud.cost


@every_index
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_every_distance_is_one_event(entry, metric):
    index = built(entry.name, metric)
    for q in gaussian()[1][:5]:
        for effort in efforts(index):
            trace = record(index, q, 8, **effort)
            cost = index.search(q, 8, **effort).cost
            assert len(trace.of_kind("evaluated")["dst"]) == cost["ndist"]
            assert len(trace.of_kind("expanded")["dst"]) == cost["nhops"]
            if entry.name == "ivf":
                assert len(trace.of_kind("opened_list")["dst"]) == cost["nlists"]


@every_index
def test_the_last_state_is_the_answer(entry):
    index = built(entry.name)
    for q in gaussian()[1][:5]:
        for effort in efforts(index):
            trace = record(index, q, 8, **effort)
            result = index.search(q, 8, **effort).ids[0]
            assert trace.arrays["result"].tolist() == result.tolist()
            hits = len(set(result.tolist()) & set(trace.arrays["truth"].tolist()))
            assert trace.events["n_correct"][-1] == hits
            seen = trace.events["n_correct"][trace.events["level"] == 0]
            assert (np.diff(seen) >= 0).all()
            now = trace.of_kind("evaluated")
            now = {name: column[now["level"] == 0] for name, column in now.items()}
            np.testing.assert_allclose(now["dist"], trace.arrays["true_dist"][now["dst"]], rtol=1e-5, atol=1e-6)
            met = np.concatenate([now["dst"], trace.of_kind("entered")["dst"]])
            assert set(result[result >= 0].tolist()) <= set(met.tolist())


@every_index
def test_accepted_rows_make_up_the_beam(entry):
    """Replaying `accepted` alone rebuilds what was held: best_k_worst is its worst, the answer its best."""
    index = built(entry.name)
    effort = {index.effort: 16} if index.effort else {}
    room = 16 if index.effort == "ef" else 8
    trace = record(index, gaussian()[1][0], 8, **effort)
    e, held = trace.events, []
    columns = (e[name] for name in ("level", "dst", "dist", "accepted", "best_k_worst"))
    for kind, level, dst, dist, accepted, worst in zip(trace.kind_names(), *columns):
        if level == 0 and kind in ("entered", "evaluated"):
            before = len(held) == room and (held[-1] if held else None)
            assert accepted == (len(held) < room or (dist, dst) < before)
            if accepted:
                held = sorted([*held, (dist, dst)])[:room]
            assert (np.isnan(worst) and len(held) < room) or worst == held[-1][0]
    assert [int(i) for _, i in held[:8]] == trace.arrays["result"].tolist()


@every_index
def test_every_step_has_its_sentence(entry):
    index = built(entry.name)
    trace = record(index, gaussian()[1][0], 5, subject={"labels": [f"row-{i}" for i in range(300)]})
    sentences = [trace.describe(step) for step in range(trace.steps)]
    total = index.search(gaussian()[1][0], 5).cost["ndist"]
    assert all(s.startswith(f"Step {i}: ") for i, s in enumerate(sentences))
    assert f"{total} distances so far" in sentences[-1]
    word = {"flat": "opens list", "ivf": "opens list"}.get(entry.name, "expands")
    assert any(word in s for s in sentences)


def test_saved_and_loaded_traces_are_equal(tmp_path):
    trace = record(built("hnsw", N=100), gaussian()[1][0], 5, ef=8)
    again = Trace.load(trace.save(tmp_path / "walk.safetensors"))
    assert again.header() == trace.header() and again.method == "hnsw" and again.params == {"k": 5, "ef": 8}
    for name, column in trace.events.items():
        np.testing.assert_array_equal(again.events[name], column)


def test_edges_and_cells_are_there_to_be_drawn():
    walk = record(built("hnsw", N=100), gaussian()[1][0], 5)
    index = built("hnsw", N=100)
    drawn = {tuple(edge) for edge in walk.arrays["edges"].tolist()}
    assert drawn == {tuple(sorted((i, int(j)))) for i, row in enumerate(index.layers[0]) for j in row}
    assert "edges" not in record(index, gaussian()[1][0], 5, max_edges=10).arrays
    lists = record(built("ivf"), gaussian()[1][0], 5)
    assert lists.arrays["cell"].shape == (300,) and lists.arrays["centroid_xy"].shape[1] == 2


def test_a_trace_records_one_query():
    with pytest.raises(ValueError, match="a trace records one query; got 20"):
        built("flat").search(gaussian()[1], 3, trace=Recorder("ann.search/1", method="flat"))


@settings(max_examples=30, deadline=None)
@given(N=st.integers(1, 20), d=st.integers(1, 4), seed=st.integers(0, 10 ** 6))
def test_the_map_is_the_best_plane_and_always_the_same(N, d, seed):
    X = np.random.default_rng(seed).standard_normal((N, d))
    xy = Layout(X)(X).astype(np.float64)
    np.testing.assert_array_equal(xy, Layout(X)(X).astype(np.float64))
    assert xy.shape == (N, 2)
    np.testing.assert_allclose(xy.mean(0), 0, atol=1e-5)
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(X.T, bias=True).reshape(d, d)))[::-1] if N > 1 else np.zeros(d)
    assert (xy ** 2).mean(0).sum() == pytest.approx(spectrum[:2].sum(), abs=1e-5)   # no plane keeps more variance
