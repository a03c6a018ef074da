"""What every registered selector promises; a new method is tested here without another line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutor import catalog
from tutor.attention.dense import attend, causal_pairs, positions
from tutor.attention.frontier import frontier, selectors
from tutor.attention.selection import Selector, attend_selected, mass_recall
from tutor.trace import Recorder

COVERS = ("attention.dense", "attention.window", "attention.streaming", "attention.oracle_topk",
          "attention.oracle_topp", "attention.random_k")

SELECTORS = [pytest.param(entry, id=entry.name) for entry in selectors()]
ROWWISE = [pytest.param(entry, id=entry.name) for entry in selectors() if "rowwise" in entry.flags]
MONOTONE = [pytest.param(entry, id=entry.name) for entry in selectors() if "monotone" in entry.flags]
T, S = 37, 141


@pytest.fixture(scope="module")
def qkv():
    """A chunk of queries with some structure: keys drift, queries resemble earlier keys."""
    g = torch.Generator().manual_seed(5)
    k = torch.randn(2, 2, S, 16, generator=g) + torch.randn(2, 2, S, 16, generator=g).cumsum(2) * 0.2
    q = k[:, :, -T:].repeat_interleave(2, 1) + torch.randn(2, 4, T, 16, generator=g)
    return q, k, torch.randn(2, 2, S, 8, generator=g)


@pytest.mark.parametrize("entry", SELECTORS)
def test_a_full_budget_is_dense_attention(entry, qkv):
    q, k, v = qkv
    method = entry.build()
    assert isinstance(method, Selector)
    sel, cost = method.full(S).select(q, k, v=v)
    part, truth = attend_selected(q, k, v, sel), attend(q, k, v)
    torch.testing.assert_close(part.o, truth.o, rtol=0, atol=1e-12)
    torch.testing.assert_close(part.lse, truth.lse, rtol=0, atol=1e-12)
    assert cost["loaded"] == cost["pairs"]


@pytest.mark.parametrize("entry", SELECTORS)
def test_keys_are_causal_unique_and_ascending_and_the_cost_is_filled(entry, qkv):
    q, k, v = qkv
    assert entry.grid, "a method needs a grid of parameter sets to stand on the frontier"
    for params in entry.grid:
        sel, cost = entry.build(**params).select(q, k, v=v)
        token = sel.to_token()
        row = token.row_of()
        assert sel.shape == (2, 4, T, S) and torch.equal(sel.pos, positions(q, k))
        assert (token.indices <= token.pos[row % T]).all()
        assert ((token.indices.diff() > 0) | (row.diff() > 0)).all()
        assert cost["loaded"] == sel.nnz == int(sel.counts().sum())
        assert cost["pairs"] == 8 * causal_pairs(sel.pos, S)
        assert (cost["scored"] > 0) or "oracle" not in entry.flags


@pytest.mark.parametrize("entry", SELECTORS)
def test_the_same_seed_gives_the_same_keys_and_watching_changes_nothing(entry, qkv):
    q, k, v = qkv
    method = entry.build(**entry.grid[0])
    first, cost = method.select(q, k, v=v)
    recorder = Recorder("attention.grid/1", method=entry.name)
    again, same_cost = method.select(q, k, v=v, trace=recorder)
    assert torch.equal(first.mask(), again.mask()) and cost == same_cost and recorder.step == T


@pytest.mark.parametrize("entry", MONOTONE)
def test_more_budget_never_keeps_less_mass(entry, qkv):
    q, k, v = qkv
    mass = [mass_recall(q, k, entry.build(**params).select(q, k, v=v)[0]) for params in entry.grid]
    for small, large in zip(mass, mass[1:]):
        assert (large >= small - 1e-12).all()


@pytest.mark.parametrize("entry", ROWWISE)
def test_decoding_chooses_what_the_last_row_of_a_prefill_chose(entry, qkv):
    q, k, v = qkv
    method = entry.build(**entry.grid[0])
    whole, _ = method.select(q, k, v=v)
    last, _ = method.select(q[:, :, -1:], k, v=v)
    assert torch.equal(last.mask()[:, :, 0], whole.mask()[:, :, -1])
    rows = torch.tensor([3, 20, 36])
    some, _ = method.select(q[:, :, rows], k, v=v, pos_q=positions(q, k)[rows])
    assert torch.equal(some.mask(), whole.mask()[:, :, rows])


@pytest.mark.parametrize("entry", SELECTORS)
def test_grouped_heads_choose_what_copied_heads_choose(entry, qkv):
    q, k, v = qkv
    method = entry.build(**entry.grid[0])
    grouped, _ = method.select(q, k, v=v)
    copied, _ = method.select(q, k.repeat_interleave(2, 1), v=v.repeat_interleave(2, 1))
    assert torch.equal(grouped.mask(), copied.mask())


@pytest.mark.parametrize("entry", SELECTORS)
def test_more_queries_than_keys_leaves_the_first_rows_empty(entry, qkv):
    q, k, v = qkv
    sel, _ = entry.build(**entry.grid[0]).select(q, k[:, :, :30], v=v[:, :, :30])
    assert (sel.counts()[:, :, :7] == 0).all() and (sel.counts()[:, :, 7:] > 0).all()


@pytest.mark.parametrize("entry", SELECTORS)
def test_a_method_names_bad_tensors(entry, qkv):
    q, k, _ = qkv
    method = entry.build()
    with pytest.raises(ValueError, match="floating point"):
        method.select(q.int(), k)
    with pytest.raises(ValueError, match="Hq must be a multiple of Hkv"):
        method.select(q[:, :3], k)


DOES = {"selector": "select", "convolution": "conv", "recurrent": "run", "layer": "forward"}


def test_every_method_of_the_family_chooses_or_attends_or_says_what_it_does():
    for entry in catalog.methods("attention"):
        does = [DOES[flag] for flag in entry.flags if flag in DOES] or ["attend"]
        assert all(callable(getattr(entry.build, name, None)) for name in does), entry.name


def test_every_method_beats_random_keys_on_real_heads():
    """At equal load, averaged over the heads of one layer that read the first 1 024 recorded tokens."""
    from tutor.data import capture

    recorded = capture("reference_4096")
    layer = recorded.layers[len(recorded.layers) // 2]
    table = frontier(tuple(x[:, :, :1024] for x in (recorded.q(layer), recorded.k(layer), recorded.v(layer))), rows=16)
    blind = table.series("random_k")
    for point in table.points:
        if {"control", "exact"} & catalog.get("attention", point["method"]).flags or point["load"] > 0.5:
            continue                                       # nothing to choose, or most of a short text is read
        chance = np.interp(point["load"], [0] + [p["load"] for p in blind], [0] + [p["mass"] for p in blind])
        told = f"{point['method']} {point['params']} keeps {point['mass']:.3f}, random keys {chance:.3f}"
        assert point["mass"] > chance, told
