"""Storage: rows that go give their bytes back, heads may differ, merged rows carry their number."""

from dataclasses import dataclass

import pytest
import torch

from tests.kvcache.harness import draw, held, run, step, turn
from tutor.kvcache import Policy, RaggedCache, Rows, make
from tutor.kvcache.budgets import Uniform
from tutor.kvcache.metrics import claimed_nbytes, row_bytes
from tutor.model.cache import Cache, FullCache
from tutor.model.llama import tiny_llama

COVERS = ("kvcache.full",)


@dataclass(frozen=True)
class Slanted(Uniform):
    """Head 0 gets a row less than its share, the last head a row more."""

    def head_rows(self, scores, rows):
        counts = torch.full(scores.shape[:-1], rows)
        counts[..., 0] -= 2
        counts[..., -1] += 2
        return counts


@dataclass(frozen=True)
class SlantedH2O(type(make("h2o"))):
    shares = Slanted()


def tensors_of(cache):
    return [t for store in cache._layers for t in [*store.columns.values(), store.pos]]


# --------------------------------------------------------------------------------------------------------------- bytes
@pytest.mark.parametrize("policy", [make("window"), make("sinks_window"), make("random"), make("h2o"), SlantedH2O()],
                         ids=lambda p: type(p).__name__)
def test_nbytes_are_the_bytes_of_the_storage(policy):
    cache, _ = run(policy, 8, draw(30), prefill=20)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(cache)}
    assert cache.nbytes + cache.state_nbytes == sum(storages.values())


def test_bytes_by_hand():
    # 2 heads x (8 rows + 1 free slot) x (8 + 8 numbers of 8 bytes) + positions of 4 bytes: shared 9, or 2 x 9
    assert run(make("window"), 8, draw(30), prefill=20)[0].nbytes == 2 * 9 * 16 * 8 + 4 * 9
    h2o = run(make("h2o"), 8, draw(30), prefill=20)[0]
    assert h2o.nbytes == 2 * 9 * 16 * 8 + 4 * 2 * 9 and h2o.state_nbytes == 4 * 2 * 9


@pytest.mark.parametrize("name", ["window", "sinks_window", "random", "h2o"])
@pytest.mark.parametrize("budget", [64, 200])
def test_measured_bytes_are_the_claimed_ones_within_two_percent(name, budget):
    model = tiny_llama(dtype=torch.bfloat16)
    cache = RaggedCache.for_model(model, make(name), budget)
    ids = torch.randint(0, 97, (1, 260))
    for call in (ids[:, :230], *ids[:, 230:].split(1, dim=1)):
        model.forward(call, cache=cache)
    claimed = claimed_nbytes(model.config, budget, 2, shared=name.endswith("window"))
    assert claimed <= cache.nbytes <= 1.02 * claimed
    rows = row_bytes(model.config, 2) * budget
    assert rows < claimed < 1.08 * rows                        # a position is 4 bytes, a row of width 16 is 64


def test_eviction_gives_memory_back_at_once():
    qkv = draw(400)
    cache = RaggedCache(make("window"), 16, 1, rotate=turn)
    q, k, v = qkv
    cache.append(0, k, k, v, torch.arange(400))
    before = cache.nbytes
    assert before == 2 * 400 * 16 * 8 + 4 * 400
    cache, _ = run(make("window"), 16, qkv, prefill=400)
    assert cache.nbytes * 20 < before


# -------------------------------------------------------------------------------------------------- heads that differ
def test_heads_may_hold_different_numbers_of_rows():
    cache, out = run(SlantedH2O(), 8, draw(30, kv_heads=3), prefill=20)
    assert cache.rows.tolist() == [[[6, 8, 10]]]
    assert [len(head) for head in held(cache)[0]] == [6, 8, 10]
    rows = cache._rows(0)
    assert rows.pos.shape == (1, 3, 10) and (rows.pos[0, 0, 6:] == -1).all()
    assert cache.nbytes == (7 + 9 + 11) * (16 * 8 + 4)
    assert out.isfinite().all()


def test_a_ragged_head_computes_what_an_even_one_would():
    # head by head, the same rows in a cache of one head of its own size give the same output
    q, k, v = draw(40, kv_heads=3, group=2)
    cache, _ = run(SlantedH2O(), 8, tuple(x[:, :, :30] for x in (q, k, v)), prefill=20)
    counts, before = cache.rows[0, 0].tolist(), held(cache)[0]
    out = step(cache, q[:, :, 30:31], k[:, :, 30:31], v[:, :, 30:31], 30)
    for h, (count, positions) in enumerate(zip(counts, before)):
        assert len(positions) == count
        keys, values = turn(k[:, h], torch.arange(40))[0, [*positions, 30]], v[0, h, [*positions, 30]]
        query = turn(q[:, 2 * h:2 * h + 2, 30:31], torch.tensor([30]))[0, :, 0]
        expected = (query @ keys.T * 8 ** -0.5).softmax(-1) @ values
        torch.testing.assert_close(out[0, 2 * h:2 * h + 2, 0], expected, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------------------- merges
@dataclass(frozen=True)
class MergeTwins(Policy):
    """For the test: rows 2i and 2i + 1 are twins; keep the later one and let it take the earlier one in."""

    carry: bool = True

    def score(self, rows, observation, budget):
        return (rows.pos % 2).double()

    def merge(self, rows, keep):
        chosen = keep.idx.expand(*rows.k.shape[:2], -1)
        pick = lambda x, idx: x.gather(2, idx[..., None].expand(*idx.shape, x.shape[-1]))
        values = (pick(rows.v, chosen) + pick(rows.v, chosen - 1)) / 2
        return Rows(pick(rows.k, chosen), values, rows.pos, w=2.0 * torch.ones(chosen.shape) if self.carry else None)


@pytest.mark.parametrize("carry", [True, False], ids=["multiplicity", "bare"])
def test_merging_twins_is_lossless_exactly_when_their_number_is_carried(carry):
    # twins before RoPE are no twins after it, so keys go in as they are
    q, k, v = draw(9)
    k[:, :, 1:8:2] = k[:, :, 0:8:2]
    cache = RaggedCache(MergeTwins(carry=carry), 4, 1)
    full = RaggedCache(make("full"), None, 1)
    outputs = []
    for c in (cache, full):
        c._rotate = None
        outputs.append(_plain_steps(c, q, k, v))
    assert cache.rows.tolist() == [[[5, 5]]]
    error = (outputs[0] - outputs[1]).abs().max()
    assert error < 1e-6 if carry else error > 1e-2
    assert ("w" in cache._layers[0].columns) == carry
    if carry:
        assert cache._rows(0).w[0, 0].tolist() == [2, 2, 2, 2, 1]
        assert cache.nbytes == sum(t.untyped_storage().nbytes() for t in tensors_of(cache))


def _plain_steps(cache, q, k, v):
    """Prefill 8 rows and decode one, without RoPE; the output of the last."""
    from tutor.attention.partial import from_logits
    from tutor.kvcache.rows import part_logits
    from tutor.model.cache import Observation

    for rows in (slice(0, 8), slice(8, 9)):
        pos = torch.arange(9, dtype=torch.int32)[rows]
        cache.append(0, k[:, :, rows], k[:, :, rows], v[:, :, rows], pos)
        (part,) = cache.view(0, q[:, :, rows])
        partial = from_logits(part_logits(q[:, :, rows], part, pos), part.v[:, :, None])
        if rows.start == 0:                                    # compress the prompt only
            lse = partial.lse.flatten(1, 2)
            cache.observe(0, Observation(0, 1, q[:, :, rows], q, pos, [part], lse, None, "prefill"))
    return partial.o


# -------------------------------------------------------------------------------------------------- full, and rollback
def test_full_equals_the_plain_cache_in_every_operation():
    model = tiny_llama()
    ids = torch.randint(0, 97, (1, 30), generator=torch.Generator().manual_seed(2))
    found = []
    for cache in (FullCache(2), RaggedCache.for_model(model, make("full"))):
        assert isinstance(cache, Cache) and cache.can_rollback and not cache.wants_observation
        outputs = [model.forward(ids[:, :20], cache=cache).logits]
        cache.truncate(15)
        assert cache.seen == 15
        outputs.append(model.forward(ids[:, 15:25], cache=cache).logits)
        cache.gather(18, torch.tensor([1, 3, 4]))
        assert cache.seen == 21
        twin = cache.fork()
        outputs.append(model.forward(ids[:, 25:26], cache=cache).logits)
        outputs.append(model.forward(ids[:, 26:27], cache=twin).logits)
        assert cache.seen == twin.seen == 22
        found.append(torch.cat(outputs, 1))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_a_full_cache_of_n_rows_takes_the_bytes_of_the_formula():
    model = tiny_llama(dtype=torch.bfloat16)
    cache = RaggedCache.for_model(model, make("full"))
    for call in torch.randint(0, 97, (1, 300)).split([200, *[1] * 100], dim=1):
        model.forward(call, cache=cache)
    claimed = claimed_nbytes(model.config, 300, 2, shared=True)
    assert claimed <= cache.nbytes <= 1.02 * claimed


@pytest.mark.parametrize("what", [lambda c: c.truncate(3), lambda c: c.gather(2, torch.tensor([1]))],
                         ids=["truncate", "gather"])
def test_what_is_evicted_cannot_be_rolled_back(what):
    cache, _ = run(make("window"), 4, draw(9), prefill=9)
    assert not cache.can_rollback
    with pytest.raises(ValueError, match="policy 'window' evicts and cannot bring rows back; speculate"):
        what(cache)


def test_a_fork_goes_its_own_way():
    q, k, v = draw(12)
    cache, _ = run(make("h2o"), 4, tuple(x[:, :, :10] for x in (q, k, v)), prefill=6)
    before, twin = held(cache), cache.fork()
    step(twin, q[:, :, 10:11], k[:, :, 10:11], v[:, :, 10:11], 10)
    assert held(cache) == before and cache.seen == 10 and twin.seen == 11
    step(cache, q[:, :, 10:11], k[:, :, 10:11], v[:, :, 10:11], 10)
    assert held(cache) == held(twin)


def test_interval_evicts_in_bundles():
    cache, _ = run(make("window"), 8, draw(30), prefill=20, interval=4)
    sizes, (q, k, v) = [], draw(42)
    for t in range(30, 42):
        step(cache, q[:, :, t:t + 1], k[:, :, t:t + 1], v[:, :, t:t + 1], t)
        sizes.append(int(cache.rows.max()))
    assert sizes == [11, 8, 9, 10] * 3            # evicts at the twelfth row, down to 8


# --------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("make_cache, message", [
    (lambda: RaggedCache(make("window"), 4, 0), "n_layers must be >= 1; got 0"),
    (lambda: RaggedCache(make("window"), 4, 1, interval=0), "interval must be >= 1; got 0"),
    (lambda: RaggedCache(make("sinks_window"), 8, 1), "needs rotate=.*rerotate=False"),
    (lambda: make("no_such"), "no method 'no_such' in family 'kvcache'; there are: "),
    (lambda: make(make("window"), n_sink=3), "parameters .*need a policy's name"),
])
def test_errors_name_the_remedy(make_cache, message):
    with pytest.raises(ValueError, match=message):
        make_cache()


@pytest.mark.parametrize("pos", [torch.tensor([[0, 1]]), torch.tensor([-1, 0])], ids=["per-batch", "padding"])
def test_padded_batches_are_refused(pos):
    _, k, v = draw(2)
    with pytest.raises(ValueError, match="Batches with padding are not supported"):
        RaggedCache(make("window"), 4, 1).append(0, k, k, v, pos)
