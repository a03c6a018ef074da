"""The decoder on tiny random models in float64: equal to its definition, however the rows are fed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.partial import Partial, merge
from tutor.model import rope
from tutor.model.cache import FullCache, Part
from tutor.model.llama import Config, sample, tiny_llama


def by_definition(model, ids, allowed=None, positions=None):
    """Logits `(T, V)` of one row of ids, one head and one query at a time, sharing no code with the decoder."""
    c = model.config
    T, G, D = len(ids), c.n_heads // c.n_kv_heads, c.head_dim
    positions = list(range(T)) if positions is None else positions
    allowed = [[j for j in range(t + 1)] for t in range(T)] if allowed is None else allowed
    norm = lambda x, w: x / torch.sqrt((x * x).mean(-1, keepdim=True) + c.norm_eps) * w
    speeds = [c.rope_base ** (-2 * i / D) for i in range(D // 2)]

    def turn(x, p):
        out = x.clone()
        for i, s in enumerate(speeds):
            a, b = x[i], x[i + D // 2]
            out[i] = a * math.cos(p * s) - b * math.sin(p * s)
            out[i + D // 2] = b * math.cos(p * s) + a * math.sin(p * s)
        return out

    x = model.embedding[ids]
    for block in model.blocks:
        q, k, v = (norm(x, block.norm_1) @ block.qkv.T).split([c.n_heads * D, c.n_kv_heads * D, c.n_kv_heads * D], -1)
        heads = []
        for h in range(c.n_heads):
            g = h // G
            qs = [turn(q[t, h * D : (h + 1) * D], positions[t]) for t in range(T)]
            ks = [turn(k[t, g * D : (g + 1) * D], positions[t]) for t in range(T)]
            rows = []
            for t in range(T):
                weights = torch.softmax(torch.stack([qs[t] @ ks[j] for j in allowed[t]]) / math.sqrt(D), 0)
                rows.append(weights @ v[allowed[t], g * D : (g + 1) * D])
            heads.append(torch.stack(rows))
        x = x + torch.cat(heads, -1) @ block.o.T
        y = norm(x, block.norm_2)
        gate = y @ block.gate.T
        x = x + ((gate / (1 + torch.exp(-gate))) * (y @ block.up.T)) @ block.down.T
    return norm(x, model.final_norm) @ model.head_weight.T


def ids_of(n, seed=0, vocab=97):
    return torch.randint(0, vocab, (1, n), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny():
    return tiny_llama()


@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (6, 1)], ids=["Hq4-Hkv2", "Hq3-Hkv3", "Hq6-Hkv1"])
def test_equals_its_definition(heads):
    model = tiny_llama(n_heads=heads[0], n_kv_heads=heads[1], head_dim=6, width=20, seed=3)
    ids = ids_of(9)
    # inv_freq is float32 in the model, as in checkpoints: 1e-6 covers the difference in its last digits
    assert torch.allclose(model.forward(ids).logits[0], by_definition(model, ids[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunks", [(17,), (1,) * 17, (5, 1, 7, 4), (16, 1)], ids=str)
def test_cached_and_chunked_equal_uncached(tiny, chunks):
    ids = ids_of(17)
    whole = tiny.forward(ids).logits
    cache, pieces = tiny.new_cache(), []
    for part in ids.split(list(chunks), dim=1):
        pieces.append(tiny.forward(part, cache=cache).logits)
    assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-9
    assert cache.seen == cache.rows == 17


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99), st.sampled_from([1, 3]))
def test_any_chunking_gives_the_same_logits(chunks, seed, batch):
    model = tiny_llama(n_layers=1, head_dim=4, width=8, ffn_width=8, seed=seed)
    ids = torch.randint(0, 97, (batch, sum(chunks)), generator=torch.Generator().manual_seed(seed))
    cache = model.new_cache()
    pieces = [model.forward(part, cache=cache).logits for part in ids.split(chunks, dim=1)]
    assert (torch.cat(pieces, 1) - model.forward(ids).logits).abs().max() < 1e-9


def test_general_attention_equals_the_fast_one(tiny):
    ids = ids_of(13)
    assert (tiny.forward(ids, attend=tiny.attend).logits - tiny.forward(ids).logits).abs().max() < 1e-9


def test_general_attention_in_tiles_equals_itself(tiny, monkeypatch):
    ids = ids_of(13)
    whole = tiny.forward(ids, attend=tiny.attend, collect=["lse"])
    monkeypatch.setattr("tutor.model.attention.TILE", 4 * 13 * 3)      # three queries at a time
    tiled = tiny.forward(ids, attend=tiny.attend, collect=["lse"])
    assert torch.allclose(whole.logits, tiled.logits, atol=1e-12)
    assert torch.allclose(whole.collected["lse"][1], tiled.collected["lse"][1], atol=1e-12)


TREE = [-1, 0, 0, 1, 1, 2]                       # parents; node 0 is the root, paths of depth up to 2


def tree_of(parents):
    n = len(parents)
    mask, depth = torch.eye(n, dtype=torch.bool), [0] * n
    for i, p in enumerate(parents):
        if p >= 0:
            mask[i] |= mask[p]
            depth[i] = depth[p] + 1
    return mask, torch.tensor(depth)


@pytest.mark.parametrize("general", [False, True], ids=["fast", "general"])
def test_every_node_of_a_tree_sees_its_own_path_only(tiny, general):
    prefix, nodes = ids_of(7), ids_of(len(TREE), seed=5)
    mask, depth = tree_of(TREE)
    attend = tiny.attend if general else None
    cache = tiny.new_cache()
    tiny.forward(prefix, cache=cache, logits="none")
    tree = tiny.forward(nodes, positions=7 + depth, tree_mask=mask, cache=cache, attend=attend).logits[0]
    for node in range(len(TREE)):
        path = mask[node].nonzero().flatten()                    # ancestors in order, the node last
        alone = tiny.forward(torch.cat([prefix, nodes[:, path]], 1)).logits[0, -1]
        assert (tree[node] - alone).abs().max() < 1e-9


def test_a_tree_without_a_cache_or_with_one_row(tiny):
    mask, depth = tree_of(TREE)
    nodes = ids_of(len(TREE), seed=5)
    tree = tiny.forward(nodes, positions=depth, tree_mask=mask).logits[0]
    alone = tiny.forward(nodes[:, [0, 1, 4]]).logits[0, -1]
    assert (tree[4] - alone).abs().max() < 1e-9
    one = tiny.forward(nodes[:, :1], tree_mask=torch.ones(1, 1, dtype=torch.bool)).logits
    assert (one - tiny.forward(nodes[:, :1]).logits).abs().max() < 1e-9


def test_an_accepted_path_is_gathered(tiny):
    prefix, nodes, more = ids_of(7), ids_of(len(TREE), seed=5), ids_of(3, seed=8)
    mask, depth = tree_of(TREE)
    cache = tiny.new_cache()
    tiny.forward(prefix, cache=cache, logits="none")
    tiny.forward(nodes, positions=7 + depth, tree_mask=mask, cache=cache, logits="none")
    cache.gather(7, torch.tensor([0, 1, 4]))
    assert cache.seen == 10
    after = tiny.forward(more, cache=cache).logits
    straight = tiny.forward(torch.cat([prefix, nodes[:, [0, 1, 4]], more], 1)).logits[:, -3:]
    assert (after - straight).abs().max() < 1e-9


def test_masking_is_by_position_not_by_storage(tiny):
    # rows fed in another order, with their true positions: every row still sees all rows before it in the text
    ids, order = ids_of(6), torch.tensor([3, 0, 5, 1, 4, 2])
    straight = tiny.forward(ids).logits
    shuffled = tiny.forward(ids[:, order], positions=order).logits
    assert (shuffled - straight[:, order]).abs().max() < 1e-9


class SplitCache(FullCache):
    """Answers with two parts: the first rows before RoPE, the rest after it; with every row's weight written out."""

    def __init__(self, n_layers, weights=False, cut=3):
        super().__init__(n_layers)
        self.weights, self.cut, self.pre = weights, cut, [[] for _ in range(n_layers)]

    def append(self, layer, k_pre, k, v, pos):
        self.pre[layer].append(k_pre)
        super().append(layer, k_pre, k, v, pos)

    def view(self, layer, q):
        part = super().view(layer, q)[0]
        c = min(self.cut, part.k.shape[2] - q.shape[2])
        k_pre = torch.cat(self.pre[layer], 2)
        w = torch.ones(part.k.shape[:3]) if self.weights else None
        pos = part.pos.expand(part.k.shape[:3])                   # (B, Hkv, S)
        first = Part(k_pre[:, :, :c], part.v[:, :, :c], pos[:, :, :c], None if w is None else w[:, :, :c], rope="pre")
        last = Part(part.k[:, :, c:], part.v[:, :, c:], part.pos[c:], None if w is None else w[:, :, c:])
        return [first, last] if c > 0 else [last]


@pytest.mark.parametrize("weights", [False, True])
def test_a_view_of_several_parts_is_one_attention(tiny, weights):
    ids = ids_of(12)
    cache = SplitCache(2, weights)
    pieces = [tiny.forward(part, cache=cache).logits for part in ids.split([5, 4, 1, 1, 1], dim=1)]
    assert (torch.cat(pieces, 1) - tiny.forward(ids).logits).abs().max() < 1e-9


def test_a_row_of_weight_two_counts_twice(tiny, rng):
    q, k, v = (torch.randn(1, h, n, 16, generator=rng, dtype=torch.float64) for h, n in ((4, 1), (2, 3), (2, 3)))
    pos, far = torch.arange(3, dtype=torch.int32), torch.tensor([9], dtype=torch.int32)
    double = torch.tensor([1.0, 2.0, 1.0]).expand(1, 2, 3)
    merged = tiny.attend(0, q, [Part(k, v, pos, double)], pos_q=far)
    twice = torch.tensor([0, 1, 1, 2])
    spelled = tiny.attend(0, q, [Part(k[:, :, twice], v[:, :, twice], pos[twice])], pos_q=far)
    assert torch.allclose(merged.o, spelled.o, atol=1e-12) and torch.allclose(merged.lse, spelled.lse, atol=1e-12)


def test_padding_is_never_read_even_as_nan(tiny, rng):
    q, k, v = (torch.randn(1, h, n, 16, generator=rng, dtype=torch.float64) for h, n in ((4, 1), (2, 5), (2, 5)))
    pos = torch.tensor([0, 1, 2, -1, -1], dtype=torch.int32)
    k[:, :, 3:], v[:, :, 3:] = float("nan"), float("nan")
    far = torch.tensor([9], dtype=torch.int32)
    padded = tiny.attend(0, q, [Part(k, v, pos)], pos_q=far)
    plain = tiny.attend(0, q, [Part(k[:, :, :3], v[:, :, :3], pos[:3])], pos_q=far)
    assert torch.equal(padded.o, plain.o) and torch.equal(padded.lse, plain.lse)


def test_ragged_heads_keep_positions_of_their_own(tiny, rng):
    q, k, v = (torch.randn(1, h, n, 16, generator=rng, dtype=torch.float64) for h, n in ((4, 2), (2, 4), (2, 4)))
    pos = torch.tensor([[[0, 3, 7, 8], [2, 5, 7, 8]]], dtype=torch.int32)     # (B, Hkv, S)
    pos_q = torch.tensor([7, 8], dtype=torch.int32)
    ragged = tiny.attend(0, q, [Part(k, v, pos)], pos_q=pos_q)
    for head in range(4):
        g = head // 2
        alone = tiny.attend(0, q[:, [head]], [Part(k[:, [g]], v[:, [g]], pos[0, g])], pos_q=pos_q)
        assert torch.allclose(ragged.o[:, head], alone.o[:, 0], atol=1e-12)


class Watcher(FullCache):
    wants_observation = True

    def __init__(self, n_layers):
        super().__init__(n_layers)
        self.seen_by = []

    def observe(self, layer, observation):
        self.seen_by.append(observation)


def test_an_observation_tells_the_truth(tiny):
    ids, cache = ids_of(9), Watcher(2)
    out = tiny.forward(ids[:, :8], cache=cache, collect=["q", "q_pre", "hidden", "lse", "attn"])
    tiny.forward(ids[:, 8:], cache=cache)
    assert [o.layer for o in cache.seen_by] == [0, 1, 0, 1]
    assert [o.phase for o in cache.seen_by] == ["prefill", "prefill", "decode", "decode"]
    seen = cache.seen_by[1]
    assert seen.n_layers == 2 and seen.pos_q.tolist() == list(range(8))
    for name, value in (("q", seen.q), ("q_pre", seen.q_pre), ("lse", seen.lse)):
        assert torch.equal(value, out.collected[name][1])
    assert torch.equal(seen.hidden, out.collected["hidden"][1])
    part = seen.attended[0]
    k = part.k[:, :, :8].repeat_interleave(2, 1)
    p = torch.exp(seen.q @ k.mT / 4 - seen.lse[..., None]).tril()              # sqrt(D) = 4
    assert torch.allclose(p.sum(-1), torch.ones(1, 4, 8, dtype=torch.float64))
    assert torch.allclose(p @ part.v[:, :, :8].repeat_interleave(2, 1), out.collected["attn"][1])


def test_watching_changes_nothing(tiny):
    ids = ids_of(11)
    watched = tiny.forward(ids, cache=Watcher(2), collect=["q", "lse"]).logits
    assert (watched - tiny.forward(ids).logits).abs().max() < 1e-9


def test_collect_by_layer(tiny):
    found = tiny.forward(ids_of(5), collect=["k.1", "v", "k_pre.0", "k_pre.1"], logits="none").collected
    assert {name: sorted(found[name]) for name in found} == {"k": [1], "v": [0, 1], "k_pre": [0, 1]}
    assert found["k"][1].shape == (1, 2, 5, 16)
    turned = rope.rotate(found["k_pre"][1], torch.arange(5), tiny.rope.inv_freq)
    assert torch.allclose(turned, found["k"][1], atol=1e-12)
    assert tiny.forward(ids_of(5)).collected == {}


def test_which_logits(tiny):
    ids = ids_of(5)
    whole, last, none = (tiny.forward(ids, logits=which) for which in ("all", "last", "none"))
    assert torch.allclose(whole.logits[:, -1:], last.logits) and none.logits is None
    assert torch.equal(whole.hidden, none.hidden)
    assert torch.allclose(tiny.head(whole.hidden), whole.logits)


def test_layers_can_run_in_two_halves(tiny):
    model, ids = tiny_llama(n_layers=4), ids_of(6)
    first = model.forward(ids, layers=range(2), logits="none").hidden
    second = model.forward(embeds=first, layers=(2, 3))
    assert torch.allclose(second.logits, model.forward(ids).logits, atol=1e-12)
    assert not torch.allclose(model.forward(ids, layers=(0, 1, 3)).logits, second.logits, atol=1e-3)


def test_embeds_replace_ids_and_may_carry_a_gradient(tiny):
    ids = ids_of(6)
    x = tiny.embed(ids).clone().requires_grad_()
    out = tiny.forward(embeds=x)
    assert torch.equal(out.logits, tiny.forward(ids).logits)
    out.logits[0, 2].sum().backward()
    assert x.grad[0, :3].abs().min() > 0 and torch.equal(x.grad[0, 3:], torch.zeros_like(x.grad[0, 3:]))


def test_the_attend_seam_receives_what_attention_needs(tiny):
    ids, calls = ids_of(6), []

    def halves(layer, q, view, *, pos_q, tree_mask, trace=None):
        calls.append((layer, q.shape, len(view), pos_q.tolist(), tree_mask))
        part = view[0]
        cut = part.k.shape[2] // 2
        parts = [Part(part.k[:, :, s], part.v[:, :, s], part.pos[s]) for s in (slice(0, cut), slice(cut, None))]
        return merge(*(tiny.attend(layer, q, [p], pos_q=pos_q) for p in parts))

    assert (tiny.forward(ids, attend=halves).logits - tiny.forward(ids).logits).abs().max() < 1e-9
    assert calls == [(layer, (1, 4, 6, 16), 1, list(range(6)), None) for layer in (0, 1)]
    nothing = lambda layer, q, view, **_: Partial(torch.zeros_like(q), torch.zeros(q.shape[:-1]))
    assert not torch.allclose(tiny.forward(ids, attend=nothing).logits, tiny.forward(ids).logits, atol=1e-3)


def test_the_ffn_seam(tiny):
    ids = ids_of(6)
    same = tiny.forward(ids, ffn=lambda layer, x: tiny.ffn(layer, x)).logits
    assert torch.equal(same, tiny.forward(ids).logits)
    without = tiny.forward(ids, ffn=lambda layer, x: torch.zeros_like(x)).logits
    assert not torch.allclose(without, same, atol=1e-3)


def test_generate_is_argmax_of_uncached_logits(tiny):
    prompt = ids_of(5)
    out = tiny.generate(prompt, max_new=12)
    ids = prompt
    for token in out.tokens:
        assert token == int(tiny.forward(ids).logits[0, -1].argmax())
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert out.steps == 12 and out.tokens == tiny.generate(prompt[0].tolist(), max_new=12).tokens


def test_generate_continues_a_cache_and_stops_at_eos(tiny):
    prompt = ids_of(9)
    cache = tiny.new_cache()
    tiny.forward(prompt[:, :5], cache=cache, logits="none")
    whole = tiny.generate(prompt, max_new=12).tokens
    assert tiny.generate(prompt[:, 5:], max_new=12, cache=cache).tokens == whole
    stopping = tiny_llama(eos=(whole[3],))
    assert stopping.generate(prompt, max_new=12).tokens == whole[: whole.index(whole[3]) + 1]
    assert stopping.generate(prompt, max_new=12, stop_at_eos=False).tokens == whole
    assert tiny.generate(prompt, max_new=0).tokens == []


def test_cache_factory_is_used(tiny):
    model = tiny_llama()
    model.cache_factory = lambda: SplitCache(2)
    assert isinstance(model.new_cache(), SplitCache)
    assert model.generate(ids_of(6), max_new=6).tokens == tiny.generate(ids_of(6), max_new=6).tokens


def test_sample_follows_the_law(rng):
    p = torch.tensor([0.4, 0.3, 0.2, 0.1])
    draw = lambda **how: torch.bincount(torch.tensor([sample(p.log(), generator=rng, **how) for _ in range(3000)]),
                                        minlength=4) / 3000
    assert torch.allclose(draw(temperature=1.0), p, atol=0.03)
    assert torch.allclose(draw(temperature=1.0, top_k=2), torch.tensor([4 / 7, 3 / 7, 0, 0]), atol=0.03)
    # top_p 0.7 is reached by the first two (0.4 + 0.3), 0.71 needs the third
    assert torch.allclose(draw(temperature=1.0, top_p=0.69), torch.tensor([4 / 7, 3 / 7, 0, 0]), atol=0.03)
    assert torch.allclose(draw(temperature=1.0, top_p=0.71), torch.tensor([4 / 9, 3 / 9, 2 / 9, 0]), atol=0.03)
    hot = (p ** 0.5) / (p ** 0.5).sum()
    assert torch.allclose(draw(temperature=2.0), hot, atol=0.03)
    assert sample(torch.tensor([1.0, 3.0, 3.0])) == 1                     # greedy, tie to the lower id


def test_sampling_is_reproducible(tiny):
    draw = lambda seed: tiny.generate(ids_of(4), max_new=10, temperature=1.0,
                                      generator=torch.Generator().manual_seed(seed)).tokens
    assert draw(1) == draw(1) != draw(2)


def test_nll_is_cross_entropy_of_the_next_token(tiny):
    ids = torch.cat([ids_of(300), ids_of(300, seed=4)])
    logp = torch.log_softmax(tiny.forward(ids).logits[:, :-1], -1)
    expected = -logp.gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(tiny.nll(ids), expected.float(), atol=1e-5)


ROW, FIRST = torch.zeros(1, 2, 1, 16), torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize("call, words", [
    (lambda m: m.forward(), "exactly one of ids and embeds"),
    (lambda m: m.forward(torch.tensor([[96, 97]])), r"ids must be in \[0, 97\)"),
    (lambda m: m.forward(torch.zeros(1, 0, dtype=torch.long)), "ids must be whole numbers"),
    (lambda m: m.forward(torch.zeros(1, 3)), "ids must be whole numbers"),
    (lambda m: m.forward(embeds=torch.zeros(1, 3, 63, dtype=torch.float64)), "embeds must be"),
    (lambda m: m.forward(embeds=torch.full((1, 3, 64), float("nan"))), "NaN"),
    (lambda m: m.forward(ids_of(3), positions=torch.arange(4)), "positions must be 3"),
    (lambda m: m.forward(ids_of(3), positions=torch.arange(3) - 1), "positions must be 3"),
    (lambda m: m.forward(ids_of(3), tree_mask=torch.ones(3, 4, dtype=torch.bool)), "tree_mask must be bool"),
    (lambda m: m.forward(ids_of(3), tree_mask=torch.ones(3, 3)), "tree_mask must be bool"),
    (lambda m: m.forward(ids_of(3), layers=[2]), "layers must be in"),
    (lambda m: m.forward(ids_of(3), collect=["queries"]), "collect knows"),
    (lambda m: m.forward(ids_of(3), collect=["q.2"]), "collect knows"),
    (lambda m: m.forward(ids_of(3), logits="first"), "logits must be one of"),
    (lambda m: m.generate(ids_of(0)), "prompt is empty"),
    (lambda m: m.generate(ids_of(2), max_new=-1), "max_new"),
    (lambda m: m.generate(ids_of(2), temperature=-1.0), "temperature"),
    (lambda m: m.attend(0, torch.zeros(1, 3, 1, 16), [Part(ROW, ROW, FIRST)], pos_q=FIRST), "no multiple of"),
    (lambda m: m.attend(0, torch.zeros(1, 4, 1, 16), [], pos_q=FIRST), "view is empty"),
])
def test_errors_name_the_argument(tiny, call, words):
    with pytest.raises(ValueError, match=words):
        call(tiny)


def test_config_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="n_heads must be a multiple of n_kv_heads; got 4 and 3"):
        Config(1, 4, 3, 8, 32, 32, 9, 1e4, 64, 1e-5, (), "x", "random")


def test_unwritten_memory_never_reaches_the_logits(tiny, poison):
    ids, cache = ids_of(70), tiny.new_cache()                         # the cache grows once: 64 -> 128 rows
    pieces = [tiny.forward(part, cache=cache).logits for part in ids.split([60, 1, 9], dim=1)]
    assert (torch.cat(pieces, 1) - tiny.forward(ids).logits).abs().max() < 1e-9


@pytest.mark.gpu
def test_a_gpu_gives_the_same_logits():
    ids = ids_of(40)
    here, there = tiny_llama(), tiny_llama(device="cuda")
    cache = there.new_cache()
    pieces = [there.forward(part.cuda(), cache=cache).logits.cpu() for part in ids.split([33, 1, 6], dim=1)]
    assert (torch.cat(pieces, 1) - here.forward(ids).logits).abs().max() < 1e-9
    assert there.generate(ids, max_new=5).tokens == here.generate(ids, max_new=5).tokens
