"""The plain cache: what it holds, forgets, copies and refuses."""

from __future__ import annotations

import pytest
import torch

from tutor.model.cache import Cache, FullCache
from tutor.model.llama import tiny_llama


def filled(n=5, layers=2, heads=2, d=4, capacity=0):
    cache = FullCache(layers, capacity=capacity)
    for layer in range(layers):
        k = torch.arange(n, dtype=torch.float32).view(1, 1, n, 1).expand(1, heads, n, d) + 100 * layer
        cache.append(layer, k, k, k + 0.5, torch.arange(n, dtype=torch.int32))
    return cache


def held(cache, layer=0):
    part = cache.view(layer, None)[0]
    return part.k[0, 0, :, 0].tolist(), part.pos.tolist()


def test_it_keeps_the_contract():
    assert isinstance(filled(), Cache)


def test_bytes_are_those_of_the_rows():
    # 2 layers x (k, v) x 2 heads x 5 rows x 4 numbers x 4 bytes = 640
    assert filled().nbytes == 640 and filled(capacity=1000).nbytes == 640 and filled().state_nbytes == 0


def test_it_grows_and_keeps_what_it_had():
    cache = filled(60)
    for layer in range(2):
        k = torch.full((1, 2, 10, 4), 7.0)
        cache.append(layer, k, k, k, torch.arange(60, 70, dtype=torch.int32))
    rows, pos = held(cache)
    assert rows == [float(i) for i in range(60)] + [7.0] * 10 and pos == list(range(70))


def test_truncate_forgets_the_tail():
    cache = filled()
    cache.truncate(3)
    assert cache.seen == 3 and held(cache) == ([0.0, 1.0, 2.0], [0, 1, 2])
    cache.truncate(0)
    assert cache.seen == 0 and cache.nbytes == 0


def test_gather_moves_rows_and_their_positions():
    cache = filled(6)
    cache.gather(2, torch.tensor([0, 3, 1]))               # rows 2, 5, 3 in this order
    assert held(cache) == ([0.0, 1.0, 2.0, 5.0, 3.0], [0, 1, 2, 5, 3])
    assert held(cache, 1)[0] == [100.0, 101.0, 102.0, 105.0, 103.0]
    cache.gather(2, torch.tensor([], dtype=torch.long))
    assert cache.seen == 2


def test_a_fork_lives_its_own_life():
    cache = filled()
    twin = cache.fork()
    k = torch.full((1, 2, 1, 4), 9.0)
    for layer in range(2):
        twin.append(layer, k, k, k, torch.tensor([5], dtype=torch.int32))
    twin._k[0][:] = -1
    assert held(cache)[0] == [0.0, 1.0, 2.0, 3.0, 4.0] and (cache.seen, twin.seen) == (5, 6)


def test_skipped_layers_are_noticed():
    model = tiny_llama()
    ids = torch.arange(8).view(1, 8)
    cache = model.new_cache()
    model.forward(ids[:, :4], cache=cache)
    model.forward(ids[:, 4:6], cache=cache, layers=[0])    # layer 1 lacks two rows now
    with pytest.raises(ValueError, match="truncate the cache"):
        model.forward(ids[:, 6:], cache=cache)
    with pytest.raises(ValueError, match="run all layers before gather"):
        cache.gather(4, torch.tensor([0]))
    cache.truncate(4)
    again = model.forward(ids[:, 4:], cache=cache).logits
    assert torch.allclose(again, model.forward(ids).logits[:, 4:], atol=1e-9)


def test_the_skipped_rows_can_be_filled_in():
    # draft with the first layer, then finish the same rows with the second: the same as one full pass
    model = tiny_llama()
    ids = torch.arange(8).view(1, 8)
    cache = model.new_cache()
    model.forward(ids[:, :5], cache=cache)
    early = model.forward(ids[:, 5:], cache=cache, layers=[0], logits="none").hidden
    late = model.forward(embeds=early, cache=cache, layers=[1], positions=torch.arange(5, 8)).logits
    assert torch.allclose(late, model.forward(ids).logits[:, 5:], atol=1e-9)


@pytest.mark.parametrize("call, words", [
    (lambda: FullCache(0), "n_layers"),
    (lambda: filled().truncate(6), r"length must be in \[0, 5\]"),
    (lambda: filled().truncate(-1), "length"),
    (lambda: filled().gather(3, torch.tensor([2])), "idx must point into rows"),
    (lambda: filled().gather(3, torch.tensor([-1])), "idx must point into rows"),
    (lambda: filled().append(0, *[torch.zeros(2, 2, 1, 4)] * 3, torch.tensor([5], dtype=torch.int32)), "another batch"),
])
def test_errors_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call()
