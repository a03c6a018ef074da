"""Attaching a policy to a model, recording its story, measuring its price."""

import math

import numpy as np
import pytest
import torch

import tutor
from tutor.kvcache import RaggedCache, evaluate, make
from tutor.kvcache.record import record
from tutor.model.cache import FullCache
from tutor.model.llama import tiny_llama
from tutor.trace import Trace


def ids_of(n, seed=0):
    return torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------------- attach
def test_attach_lasts_as_long_as_the_block():
    model = tiny_llama()
    before = model.generate(ids_of(20), max_new=8)
    with tutor.attach(model, "window", budget=5) as attached:
        assert attached is model
        cache = model.new_cache()
        assert isinstance(cache, RaggedCache) and cache.policy == make("window") and cache.budget == 5
        inside = model.generate(ids_of(20), max_new=8)
        with tutor.attach(model, "h2o", budget=6):
            assert model.new_cache().policy == make("h2o")
        assert model.new_cache().policy == make("window")
    assert isinstance(model.new_cache(), FullCache)
    assert inside.tokens != before.tokens and model.generate(ids_of(20), max_new=8).tokens == before.tokens


def test_attach_restores_after_an_error():
    model = tiny_llama()
    with pytest.raises(KeyError), tutor.attach(model, "window", budget=5):
        raise KeyError
    assert isinstance(model.new_cache(), FullCache)


@pytest.mark.parametrize("name", ["random", "window", "sinks_window", "h2o", "full"])
def test_a_wide_budget_generates_the_same_text(name):
    model = tiny_llama()
    with tutor.attach(model, name, budget=64):
        inside = model.generate(ids_of(20), max_new=24).tokens
    assert inside == model.generate(ids_of(20), max_new=24).tokens


def test_each_cache_is_new():
    model = tiny_llama()
    with tutor.attach(model, "h2o", budget=6):
        first, second = (model.generate(ids_of(20), max_new=8).tokens for _ in range(2))
    assert first == second


@pytest.mark.parametrize("how, message", [
    (lambda model: tutor.attach("gpt", "window", budget=4), r"model must be one .*; got builtins.str. Open a"),
    (lambda model: tutor.attach(model, "window"), "budget is None"),
    (lambda model: tutor.attach(model, "sinks_window", budget=3), "budget=3 is too small"),
    (lambda model: tutor.attach(model, "snoopy", budget=3), "no method 'snoopy'"),
])
def test_attach_refuses_before_the_block_is_entered(how, message):
    with pytest.raises(ValueError, match=message):
        how(tiny_llama())


# --------------------------------------------------------------------------------------------------------------- record
@pytest.fixture(scope="module")
def story():
    return record(tiny_llama(), ids_of(30), "h2o", 8, decode_steps=12, layers=(0, 1))


def test_a_record_tells_who_came_and_who_went(story, tmp_path):
    a = story.arrays
    assert story.steps == 13 and a["appended_at"].tolist() == [0] * 18 + list(range(1, 13))
    assert a["evicted_at"].shape == (2, 2, 30) and a["nbytes"].shape == a["nll"].shape == (13,)
    for step in range(13):
        held = (a["appended_at"] <= step) & ((a["evicted_at"] < 0) | (a["evicted_at"] > step))
        assert (held.sum(-1) == 8).all()
    gone = story.of_kind("evicted")
    told = np.full_like(a["evicted_at"], -1)
    told[gone["layer"], gone["head"], gone["pos"]] = gone["step"]             # the events say the same as the array
    assert np.array_equal(told, a["evicted_at"]) and np.isfinite(gone["score"]).all()
    again = Trace.load(story.save(tmp_path / "story.safetensors"))
    assert again.describe(3) == story.describe(3) and "token 20" in story.describe(3)


def test_recording_changes_no_result(story):
    model, ids = tiny_llama(), ids_of(30)
    cache = RaggedCache.for_model(model, make("h2o"), 8)
    rows = [model.forward(ids[None, :18], cache=cache, logits="last").logits[0, -1]]
    rows += [model.forward(ids[None, t:t + 1], cache=cache).logits[0, -1] for t in range(18, 30)]
    nll = [torch.nn.functional.cross_entropy(row.float(), ids[18 + i]).item() for i, row in enumerate(rows[:-1])]
    assert np.array_equal(story.arrays["nll"][:-1], np.array(nll, np.float32)) and math.isnan(story.arrays["nll"][-1])
    for layer in (0, 1):
        for head, positions in enumerate(cache.positions(layer)[0]):
            assert np.flatnonzero(story.arrays["evicted_at"][layer, head] < 0).tolist() == positions.tolist()
    assert story.arrays["nbytes"][-1] == cache.nbytes


@pytest.mark.parametrize("how, message", [
    ({"decode_steps": 30}, r"decode_steps must be in \[1, 29\]"),
    ({"decode_steps": 3, "layers": (5,)}, r"layers must be in \[0, 2\); got \[5\]"),
])
def test_record_names_what_is_out_of_range(how, message):
    with pytest.raises(ValueError, match=message):
        record(tiny_llama(), ids_of(30), "window", 8, **how)


# ------------------------------------------------------------------------------------------------------------- evaluate
def test_losses_without_eviction_are_those_of_the_model():
    model, ids = tiny_llama(), ids_of(40)
    expected = model.nll(ids)[0, 20:]                                          # tokens 21 … 39
    for name, budget in (("full", None), ("h2o", 40)):
        cache = RaggedCache.for_model(model, make(name), budget)
        loss, peak = evaluate.losses(model, ids, cache, prefix=20, chunk=7)
        torch.testing.assert_close(loss, expected)
        assert len(loss) == 19 and peak >= cache.nbytes


def test_a_chunk_of_one_is_decoding():
    model, ids = tiny_llama(), ids_of(40)
    cache = RaggedCache.for_model(model, make("window"), 6)
    model.forward(ids[None, :20], cache=cache)
    rows = torch.cat([model.forward(ids[None, t:t + 1], cache=cache).logits[0] for t in range(20, 39)])
    expected = torch.nn.functional.cross_entropy(rows.float(), ids[21:], reduction="none")
    loss, _ = evaluate.losses(model, ids, RaggedCache.for_model(model, make("window"), 6), prefix=20)
    torch.testing.assert_close(loss, expected)


def test_a_curve_has_a_point_per_budget_and_one_for_the_full_cache():
    curves = evaluate.perplexity_curve(tiny_llama(), ids_of(40), ["full", "window"], [4, 8], prefix=20, chunk=5)
    assert [p.budget for p in curves["full"]] == [None] and [p.budget for p in curves["window"]] == [4, 8]
    small, large = curves["window"]
    assert small.nbytes < large.nbytes < curves["full"][0].nbytes
    assert small.tokens == 19 and small.low < small.perplexity < small.high


def test_interval_by_hand():
    # block means 1 and 3: mean 2, standard deviation sqrt(2), half width 1.96 · sqrt(2) / sqrt(2)
    low, high = evaluate.interval(torch.tensor([1.0, 1.0, 3.0, 3.0]), block=2)
    assert (low, high) == pytest.approx((0.04, 3.96))


@pytest.mark.parametrize("how, message", [({"prefix": 39}, "prefix must leave at least two of the 40 tokens; got 39"),
                                          ({"prefix": 9, "chunk": 0}, "chunk must be >= 1; got 0")])
def test_losses_name_what_is_out_of_range(how, message):
    model = tiny_llama()
    with pytest.raises(ValueError, match=message):
        evaluate.losses(model, ids_of(40), RaggedCache.for_model(model, make("full")), **how)
