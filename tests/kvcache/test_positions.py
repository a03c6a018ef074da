"""Positions after eviction: the bugs that everybody writes, and what shows them."""

import pytest
import torch

from tests.kvcache.harness import draw, held, run, step, turn
from tutor.attention.partial import from_logits
from tutor.kvcache import RaggedCache, make
from tutor.kvcache.rows import part_logits
from tutor.model.cache import Part
from tutor.model.llama import tiny_llama

COVERS = ("kvcache.window", "kvcache.sinks_window")


def ids_of(n, seed=0):
    return torch.randint(0, 97, (1, n), generator=torch.Generator().manual_seed(seed))


def decode(model, cache, ids):
    return torch.cat([model.forward(row, cache=cache).logits for row in ids.split(1, dim=1)], 1)


def band(n, width, sinks=0):
    """What row i sees when the cache holds `width` rows before it comes: itself, the last ones, the sinks."""
    i, j = torch.arange(n)[:, None], torch.arange(n)
    return (j <= i) & ((i - j <= width - sinks) | (j < sinks))


@pytest.mark.parametrize("budget", [1, 5, 11, 40])
def test_window_is_a_sliding_window_mask(budget):
    # row i meets the `budget` rows that the cache holds and itself; decoded from the start, in every layer
    model, ids = tiny_llama(), ids_of(24)
    cached = decode(model, RaggedCache.for_model(model, make("window"), budget), ids)
    torch.testing.assert_close(cached, model.forward(ids, tree_mask=band(24, budget)).logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sinks, budget", [(1, 4), (4, 9)])
def test_sinks_in_place_are_a_mask_too(sinks, budget):
    model, ids = tiny_llama(), ids_of(24)
    policy = make("sinks_window", n_sink=sinks, rerotate=False)
    cached = decode(model, RaggedCache.for_model(model, policy, budget), ids)
    expected = model.forward(ids, tree_mask=band(24, budget, sinks)).logits
    torch.testing.assert_close(cached, expected, rtol=1e-9, atol=1e-9)


def test_window_after_a_prefill_in_one_layer():
    model, ids = tiny_llama(n_layers=1), ids_of(24)
    cache = RaggedCache.for_model(model, make("window"), 6)
    cached = torch.cat([model.forward(ids[:, :15], cache=cache).logits, decode(model, cache, ids[:, 15:])], 1)
    mask = band(24, 6)
    mask[:15] = torch.ones(24, 24, dtype=torch.bool).tril()[:15]              # the prompt is attended, then compressed
    torch.testing.assert_close(cached, model.forward(ids, tree_mask=mask).logits, rtol=1e-9, atol=1e-9)


def test_the_next_position_is_what_was_seen_and_not_what_is_stored():
    """The most common bug: after eviction, positions restart at the number of stored rows."""

    class Forgetful(RaggedCache):
        @property
        def seen(self):
            return int(self.rows.max()) if self.rows.numel() else 0

    model, ids = tiny_llama(), ids_of(24)
    expected = model.forward(ids, tree_mask=band(24, 5)).logits
    right, wrong = (decode(model, kind.for_model(model, make("window"), 5), ids) for kind in (RaggedCache, Forgetful))
    assert (right - expected).abs().max() < 1e-9
    assert (wrong - expected).abs().max() > 1e-2


def test_attention_sees_distances_only():
    # q at p against rows at P … P + S - 1 equals everything moved by -P
    q, k, v = draw(10)
    outputs = []
    for start in (0, 3, 500):
        pos = torch.arange(start, start + 10, dtype=torch.int32)
        outputs.append(from_logits(part_logits(turn(q, pos), Part(turn(k, pos), v, pos), pos), v[:, :, None]).o)
    for other in outputs[1:]:
        torch.testing.assert_close(outputs[0], other, rtol=1e-4, atol=1e-5)     # the speeds are float32


@pytest.mark.parametrize("calls", [[1] * 20, [6, *[1] * 14], [6, 3, 1, 5, 2, 3]], ids=["decode", "prefill", "chunks"])
def test_rerotated_keys_stand_where_the_paper_puts_them(calls):
    # the paper, literally: n rows in the cache are at positions 0 … n - 1, and so are the queries of this call, which
    # are its last rows
    q, k, v = draw(20)
    budget, sinks = 7, 3
    cache = RaggedCache(make("sinks_window", n_sink=sinks), budget, 1, rotate=turn)
    done = 0
    for new in calls:
        before = held(cache)[0][0] if done else []
        rows = [*before, *range(done, done + new)]
        n = len(rows)
        slots = torch.arange(n, dtype=torch.int32)
        part = Part(turn(k[:, :, rows], slots), v[:, :, rows], slots)
        queries = turn(q[:, :, done:done + new], slots[n - new:])
        expected = from_logits(part_logits(queries, part, slots[n - new:]), part.v[:, :, None]).o.flatten(1, 2)
        out = step(cache, *(x[:, :, done:done + new] for x in (q, k, v)), done)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)         # the speeds are float32
        done += new
        assert held(cache)[0][0] == [*range(min(sinks, done)), *range(max(sinks, done - budget + sinks), done)]


def test_rerotated_distances_never_exceed_the_cache():
    cache, _ = run(make("sinks_window", n_sink=2), 6, draw(50), prefill=9)
    pos = cache._rows(0).pos
    assert cache.slot_positions(pos).tolist() == [44, 45, 46, 47, 48, 49]       # newest - (n - 1 - slot)
    assert pos[0, 0].tolist() == [0, 1, 46, 47, 48, 49]


def test_original_positions_differ_from_rerotated_ones():
    sinks = [make("sinks_window", n_sink=2, rerotate=turned) for turned in (True, False)]
    (_, a), (_, b) = (run(policy, 6, draw(30), prefill=9) for policy in sinks)
    assert torch.allclose(a[:, :, :9], b[:, :, :9]) and (a - b)[:, :, 12:].abs().max() > 1e-2


def test_mask_goes_by_position_and_not_by_slot():
    # after a sparse eviction the stored rows are no contiguous tail: a call of several rows must still be causal
    q, k, v = draw(20)
    cache, _ = run(make("random"), 5, tuple(x[:, :, :14] for x in (q, k, v)), prefill=14)
    before = held(cache)[0]
    out = step(cache, q[:, :, 14:18], k[:, :, 14:18], v[:, :, 14:18], 14)
    keys = turn(k, torch.arange(20))
    for t in range(4):
        for h in range(6):
            rows = [*before[h // 3], *range(14, 15 + t)]
            query = turn(q[:, :, 14 + t:15 + t], torch.tensor([14 + t]))[0, h, 0]
            expected = (keys[0, h // 3, rows] @ query * 8 ** -0.5).softmax(0) @ v[0, h // 3, rows]
            torch.testing.assert_close(out[0, h, t], expected, rtol=1e-12, atol=1e-12)
