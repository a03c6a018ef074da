"""The cache on the real model, and what was recorded from it."""

import json
from pathlib import Path

import numpy as np
import pytest

import tutor
from tutor import texts
from tutor.kvcache import RaggedCache, evaluate, make
from tutor.kvcache.metrics import claimed_nbytes, row_bytes
from tutor.trace import Trace

COVERS = ("kvcache.full", "kvcache.random", "kvcache.window", "kvcache.sinks_window", "kvcache.h2o")

TEXT = "The lighthouse key hangs behind the blue door. The sea was grey and the wind came from the north. " * 6
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "kvcache-perplexity.json"
STORIES = ("full", "window", "sinks_window", "h2o", "random")


@pytest.mark.model
@pytest.mark.parametrize("name", ["random", "window", "sinks_window", "h2o"])
def test_measured_bytes_fall_as_claimed(model, name):
    ids = model.encode(TEXT)
    cache = RaggedCache.for_model(model, make(name), 64)
    for call in (ids[:, :-2], ids[:, -2:-1], ids[:, -1:]):
        logits = model.forward(call, cache=cache, logits="last").logits
    assert logits.isfinite().all() and cache.seen == ids.shape[1]
    claimed = claimed_nbytes(model.config, 64, 2, shared=name.endswith("window"))
    assert claimed <= cache.nbytes <= 1.02 * claimed
    assert cache.nbytes < 64 / ids.shape[1] * 1.04 * ids.shape[1] * row_bytes(model.config, 2)


@pytest.mark.model
@pytest.mark.parametrize("name", ["sinks_window", "h2o"])
def test_a_wide_budget_writes_the_same_text(model, name):
    with tutor.attach(model, name, budget=256):
        inside = model.generate(TEXT, max_new=6).tokens
    assert inside == model.generate(TEXT, max_new=6, attend=model.attend).tokens


@pytest.mark.model
def test_forgetting_the_sinks_hurts_more_than_forgetting_the_middle(model):
    ids = model.encode(texts.reference(321, model.tokenizer))[0]
    nll = {name: evaluate.measure(model, ids, name, budget, prefix=192, chunk=32).nll
           for name, budget in (("full", None), ("window", 96), ("sinks_window", 96))}
    assert nll["window"] > nll["full"] + 0.4
    assert nll["sinks_window"] < nll["full"] + 0.3


def test_recorded_bytes_are_the_claimed_ones_and_the_curves_are_in_order():
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    points = {(p["label"], p["budget"]): p for p in found["points"]}
    assert found["tokens"] == 2048 and {budget for _, budget in points} == {None, 64, 128, 256, 512, 1024}
    for p in points.values():
        assert 1 <= p["nbytes"] / p["claimed_nbytes"] <= 1.02
    full = points["full cache", None]["perplexity"]
    for budget in (64, 128, 256, 512, 1024):
        assert full < points["H2O", budget]["perplexity"] < points["window, no sinks", budget]["perplexity"]
        assert full < points["4 sinks + window", budget]["perplexity"] < points["window, no sinks", budget]["perplexity"]


def test_the_frontier_trace_draws_the_recorded_results():
    trace = Trace.load(tutor.data.path("kvcache", "perplexity.safetensors"))
    points = json.loads(RESULTS.read_text(encoding="utf-8"))["points"]
    assert np.allclose(trace.arrays["y"], [p["perplexity"] for p in points])
    assert np.allclose(trace.arrays["x"], [p["nbytes"] / 1e6 for p in points])
    assert [trace.subject["names"][i] for i in trace.arrays["series"]] == [p["label"] for p in points]


@pytest.mark.parametrize("name", STORIES)
def test_recorded_stories_keep_their_budget(name):
    path = tutor.data.path("kvcache", f"{name}.safetensors")
    trace = Trace.load(path)
    a, budget = trace.arrays, trace.subject["budget"]
    assert path.stat().st_size < 150_000 and trace.method == name
    for step in (0, trace.steps // 2, trace.steps - 1):
        held = (a["appended_at"] <= step) & ((a["evicted_at"] < 0) | (a["evicted_at"] > step))
        assert (held.sum(-1) == (budget or (a["appended_at"] <= step).sum())).all()
        assert trace.describe(step).startswith(f"Step {step}: ")
