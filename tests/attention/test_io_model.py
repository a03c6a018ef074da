"""Words moved: the machine counts them, a closed form foretells them, and the output is dense attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.dense import attend
from tutor.attention.machine import Machine
from tutor.attention.methods.flash import Flash
from tutor.attention.methods.io_model import (
    ALGORITHMS,
    IOModel,
    count,
    flash_tiles,
    flash_words,
    lower_bound,
    run,
    square_tile,
    trace,
)
from tutor.trace import Trace

COVERS = ("attention.io_model",)

WAYS = [("standard", "paper"), ("flash1", "paper"), ("flash1", "strict"), ("flash2", "paper"), ("small", "paper")]


def make(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(3)]


def least(algorithm, blocks, d):
    if algorithm in ("standard", "small"):
        return 5
    return 4 * d if (algorithm, blocks) == ("flash1", "paper") else 4 * d + 3


def test_two_tokens_by_hand():
    # N = 2, d = 1, M = 7 = 4d + 3: one query against one key at a time.
    # Queries outside: per query 1 (q) + 2 * 2 (k, v) + 1 (o) + 1 (log-sum-exp) = 7, two queries: 14.
    # Keys outside: per key 2 (k, v) + per query 4 read (q, o, m, l) + 3 written (o, m, l) = 2 + 14, two keys: 32.
    # Small tiles, t = 1: per pair q, k read, s written; then s, v read: 5; four pairs 20, and o written twice: 22.
    # Standard: s read and p written once more per pair: 22 + 8 = 30.
    q, k, v = make(2, 1)
    assert square_tile(2, 1, 7) == 1 and flash_tiles("flash2", 2, 1, 7) == (1, 1)
    moved = {way: run(way[0], q, k, v, 7, blocks=way[1]).words for way in WAYS}
    assert moved == {("flash2", "paper"): 14, ("flash1", "paper"): 32, ("flash1", "strict"): 32,
                     ("small", "paper"): 22, ("standard", "paper"): 30}


@pytest.mark.parametrize("M, flash1, flash2, small", [
    (1024, 8.23e8, 3.59e8, 2.56e8), (4096, 2.06e8, 7.24e7, 1.36e8), (65536, 1.34e7, 5.25e6, 5.57e7)])
def test_known_counts_at_4096_tokens_of_width_64(M, flash1, flash2, small):
    for algorithm, want in (("flash1", flash1), ("flash2", flash2), ("small", small)):
        assert float(f"{count(algorithm, 4096, 64, M):.2e}") == want
    assert count("standard", 4096, 64, M) == pytest.approx(count("small", 4096, 64, M) + 2 * 4096**2)


@settings(max_examples=120, deadline=None)
@given(way=st.sampled_from(WAYS), n=st.integers(1, 20), d=st.integers(1, 9), more=st.integers(0, 400),
       seed=st.integers(0, 1000))
def test_any_run_is_dense_attention_and_moves_the_words_foretold(way, n, d, more, seed):
    (algorithm, blocks), (q, k, v) = way, make(n, d, seed)
    M = least(algorithm, blocks, d) + more
    done = run(algorithm, q, k, v, M, blocks=blocks, scale=0.8)
    want = attend(q[None, None], k[None, None], v[None, None], causal=False, scale=0.8)
    torch.testing.assert_close(done.o, want.o[0, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(done.lse, want.lse[0, 0], rtol=0, atol=1e-12)
    assert done.words == count(algorithm, n, d, M, blocks=blocks, edges=True)
    assert done.peak <= M or (algorithm, blocks) == ("flash1", "paper")


def test_causal_words_by_hand():
    # N = 4, d = 1, M = 13: flash2 takes Br = 2, Bc = 2 (2 * (2 + 2 + 2) = 12 words of rows and scores would leave one for
    # keys, so Bc = (13 - 2 * 4) // (2 + 2) = 1). Rows 0-1 read keys 0-1, rows 2-3 keys 0-3: 2 * (2 + 4) = 12 words of k, v;
    # q, o and the log-sum-exps 3 * 4 = 12: 24. Without a mask 2 * (4 + 4) + 12 = 28.
    # N = 3, M = 10: Br = 1, Bc = 2. Row 0 reads keys 0-1, its tile whole; row 1 the same, row 2 keys 0-2: 14 + 3 * 3 = 23.
    # flash1, strict, N = 4, M = 13: Bc = (13 - 4) // 3 = 3, Br = 1. Keys 0-2 meet 4 rows, key 3 one: 5 * (3 + 4) + 8 = 43.
    assert flash_tiles("flash2", 3, 1, 10) == (1, 2)
    assert run("flash2", *make(3, 1), 10, causal=True).words == 23 == count("flash2", 3, 1, 10, causal=True)
    q, k, v = make(4, 1)
    assert flash_tiles("flash2", 4, 1, 13) == (2, 1) and flash_tiles("flash1", 4, 1, 13, blocks="strict") == (1, 3)
    assert run("flash2", q, k, v, 13, causal=True).words == 24 and run("flash2", q, k, v, 13).words == 28
    assert run("flash1", q, k, v, 13, blocks="strict", causal=True).words == 43


@settings(max_examples=80, deadline=None)
@given(way=st.sampled_from([way for way in WAYS if way[0].startswith("flash")]), n=st.integers(1, 20), d=st.integers(1, 9),
       more=st.integers(0, 400), seed=st.integers(0, 1000))
def test_a_causal_run_is_causal_attention_and_moves_the_words_foretold(way, n, d, more, seed):
    (algorithm, blocks), (q, k, v) = way, make(n, d, seed)
    M = least(algorithm, blocks, d) + more
    done = run(algorithm, q, k, v, M, blocks=blocks, causal=True)
    want = attend(q[None, None], k[None, None], v[None, None])
    torch.testing.assert_close(done.o, want.o[0, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(done.lse, want.lse[0, 0], rtol=0, atol=1e-12)
    assert done.words == count(algorithm, n, d, M, blocks=blocks, causal=True) <= count(algorithm, n, d, M, blocks=blocks)
    assert done.peak <= M or (algorithm, blocks) == ("flash1", "paper")


def test_causal_words_are_those_of_the_flash_method():
    # The same tiles counted in another place; order 1 writes m and l, order 2 the log-sum-exp, as here.
    for N, d, M in ((40, 4, 64), (33, 3, 200), (16, 8, 1000)):
        q, x = make(N, d), torch.empty(1, 1, N, d)
        for order, algorithm in ((1, "flash1"), (2, "flash2")):
            br, bc = flash_tiles(algorithm, N, d, M)
            assert run(algorithm, *q, M, causal=True).words == Flash(br, bc, order=order).cost(x, x, x)["words"]
    heads = [x[None, None] for x in make(9, 3)]
    torch.testing.assert_close(IOModel(40).attend(*heads, causal=True).o, attend(*heads).o, rtol=0, atol=1e-12)
    assert IOModel(40).cost(*heads, causal=True)["words"] == count("flash2", 9, 3, 40, causal=True)


@settings(max_examples=40, deadline=None)
@given(algorithm=st.sampled_from(["standard", "small"]), t=st.integers(1, 4), strips=st.integers(1, 4),
       columns=st.integers(1, 3), slack=st.integers(0, 4))
def test_the_smooth_form_is_exact_when_tiles_divide(algorithm, t, strips, columns, slack):
    n, d, M = t * strips, t * columns, 3 * t * t + 2 * t + slack
    assert square_tile(n, d, M) == t
    words = count(algorithm, n, d, M)
    assert isinstance(words, int) and words == count(algorithm, n, d, M, edges=True)
    assert words == run(algorithm, *make(n, d), M).words


@settings(max_examples=200, deadline=None)
@given(way=st.sampled_from(WAYS), n=st.integers(1, 5000), d=st.integers(1, 128), M=st.integers(600, 10**6),
       more=st.integers(0, 10**5))
def test_more_fast_memory_never_costs_words_and_no_run_beats_the_bound(way, n, d, M, more):
    algorithm, blocks = way
    words = count(algorithm, n, d, M, blocks=blocks)
    assert count(algorithm, n, d, M + more, blocks=blocks) <= words
    assert words >= lower_bound(n, d, M)                              # its shape with constant 1


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5000), d=st.integers(1, 128), more=st.integers(0, 10**5))
def test_tiles_fit_and_no_larger_ones_do(n, d, more):
    M = 4 * d + 3 + more
    br, bc = flash_tiles("flash2", n, d, M)
    assert min(br, bc) >= 1 and flash_words(br, bc, d) <= M and (br == n or flash_words(br + 1, 1, d) > M)
    assert bc == n or flash_words(br, bc + 1, d) > M
    br, bc = flash_tiles("flash1", n, d, M, blocks="strict")
    assert min(br, bc) >= 1 and flash_words(br, bc, d) <= M and (bc == n or flash_words(1, bc + 1, d) > M)
    t = square_tile(n, d, M)
    assert 3 * t * t + 2 * t <= M and (t == n or 3 * (t + 1) ** 2 + 2 * (t + 1) > M)


def test_the_choice_of_tiles_is_the_best_there_is():
    n, d = 12, 2
    for M in range(4 * d + 3, 120):
        fits = [(br, bc) for br in range(1, n + 1) for bc in range(1, n + 1) if flash_words(br, bc, d) <= M]
        assert flash_tiles("flash2", n, d, M)[0] == max(br for br, _ in fits)
        assert flash_tiles("flash1", n, d, M, blocks="strict")[1] == max(bc for _, bc in fits)


def test_the_papers_blocks_do_not_fit_and_strict_ones_do():
    q, k, v = make(32, 4)
    assert run("flash1", q, k, v, 128).peak > 128 >= run("flash1", q, k, v, 128, blocks="strict").peak


@pytest.mark.parametrize("algorithm, blocks", WAYS)
def test_too_small_a_memory_is_told_the_minimum(algorithm, blocks):
    q, k, v = make(6, 5)
    low = least(algorithm, blocks, 5)
    assert run(algorithm, q, k, v, low, blocks=blocks).words == count(algorithm, 6, 5, low, blocks=blocks, edges=True)
    for call in (lambda: run(algorithm, q, k, v, low - 1, blocks=blocks),
                 lambda: count(algorithm, 6, 5, low - 1, blocks=blocks)):
        with pytest.raises(ValueError, match=f"M must be >= {low} .*got {low - 1}"):
            call()


def test_huge_logits_stay_finite():
    q, k, v = make(9, 3)
    for algorithm, blocks in WAYS:
        done = run(algorithm, 300 * q, 300 * k, v, 40, blocks=blocks)
        want = attend(300 * q[None, None], 300 * k[None, None], v[None, None], causal=False)
        torch.testing.assert_close(done.o, want.o[0, 0], rtol=0, atol=1e-9)


def test_the_bound_bends_at_d_squared():
    N, d = 4096, 64
    rest = [lower_bound(N, d, M) - N * d for M in (1024, 4096, 16384)]
    assert rest[0] / rest[1] == pytest.approx(2) and rest[1] / rest[2] == pytest.approx(4)


def test_heads_are_run_one_by_one_and_grouped():
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, h, 7, 4, generator=g) for h in (4, 2, 2))
    want = attend(q, k, v, causal=False)
    for algorithm in ALGORITHMS:
        method = IOModel(64, algorithm)
        part = method.attend(q, k, v)
        torch.testing.assert_close(part.o, want.o, rtol=0, atol=1e-12)
        torch.testing.assert_close(part.lse, want.lse, rtol=0, atol=1e-12)
        assert method.cost(q, k, v)["words"] == 8 * run(algorithm, q[0, 0], k[0, 0], v[0, 0], 64).words


def test_the_machine_counts_words_and_keeps_its_limit():
    machine, x = Machine(6), torch.arange(4.0)
    machine.load("x", x).mul_(2)
    assert x.tolist() == [0, 1, 2, 3]                                 # slow memory changes by a store alone
    machine.store("x", x)
    assert x.tolist() == [0, 2, 4, 6] and (machine.loaded, machine.stored, machine.words) == (4, 4, 8)
    machine.make("y", torch.zeros(2))
    assert machine.words == 8 and machine.resident == 6
    with pytest.raises(RuntimeError, match="'z' of 1 words does not fit: 6 of M = 6 words are held .x 4, y 2."):
        machine.load("z", torch.zeros(1))
    machine.free("x")
    machine.load("z", torch.zeros(3))
    assert machine.resident == 5 and machine.peak == 6 and machine.words == 11


def test_errors_name_the_argument():
    q, k, v = make(4, 2)
    heads = q[None, None], k[None, None], v[None, None]
    machine = Machine(4)
    machine.make("a", torch.zeros(2))
    for call, text in (
            (lambda: Machine(0), "M must be >= 1"),
            (lambda: machine.make("a", torch.zeros(1)), "'a' is in use"),
            (lambda: machine.store("a", torch.zeros(1)), "has shape"),
            (lambda: machine.free("b"), "no buffer 'b'"),
            (lambda: count("flash3", 4, 2, 64), "algorithm must be one of"),
            (lambda: count("flash1", 4, 2, 64, blocks="loose"), "blocks must be one of"),
            (lambda: count("small", 0, 2, 64), "N must be >= 1"),
            (lambda: lower_bound(4, 2, 0), "M must be >= 1"),
            (lambda: run("small", q, k[:3], v, 64), "one shape"),
            (lambda: IOModel(4), "M must be >= 5"),
            (lambda: IOModel(64, "small").attend(*heads, causal=True), "causal must be False for small"),
            (lambda: count("standard", 4, 2, 64, causal=True), "causal must be False for standard"),
            (lambda: IOModel().cost(heads[0], heads[1][:, :, :3], heads[2][:, :, :3]), "share length and width")):
        with pytest.raises(ValueError, match=text):
            call()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way))
def test_the_trace_tells_every_move_and_changes_nothing(way, tmp_path):
    (algorithm, blocks), (q, k, v) = way, make(6, 4)
    told, done = trace(algorithm, q, k, v, 40, blocks=blocks), run(algorithm, q, k, v, 40, blocks=blocks)
    moved, level = told.arrays["moved"], told.arrays["level"]
    crossed = sum(int(told.of_kind(kind)["words"].sum()) for kind in ("loaded", "stored"))
    assert moved[-1] == crossed == done.words and (moved[1:] >= moved[:-1]).all()
    assert level.max() == done.peak and level[-1] == 0 and told.subject["capacity"] == 40
    for step in (0, told.steps - 1):                                   # words held = words placed less words freed
        placed = {}
        for kind, lane, words in zip(told.kind_names(), told.events["lane"].tolist(), told.events["words"].tolist()):
            if kind in ("loaded", "made"):
                placed[lane] = words
            elif kind == "freed":
                del placed[lane]
            if step == 0:
                break
        assert sum(placed.values()) == level[step]
    again = Trace.load(told.save(tmp_path / "moves.safetensors"))
    assert again.describe(1) == told.describe(1) and "of 40 words in fast memory" in again.describe(1)


def test_a_move_in_words():
    # N = 2, d = 1, M = 7: q, o, m, l, k and v hold one word each; then the score makes seven.
    # Per query 4 buffers, per key 3 placed and 3 freed, twice, 2 stores, 4 freed: 22 moves; two queries: 44.
    told = trace("flash2", *make(2, 1), 7)
    assert told.describe(0) == "Step 1 of 44: load q 0 (1 words); 1 of 7 words in fast memory, 1 words moved."
    assert [told.kind_names()[i] for i in range(7)] == ["loaded", "made", "made", "made", "loaded", "loaded", "made"]
    assert told.arrays["level"][:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 6, 5, 4]
    assert told.subject["labels"][:6] == ["q 0", "", "", "", "k 0", "v 0"]
    wide = trace("flash2", *make(6, 4), 60)
    assert [label for label in wide.subject["labels"] if label.startswith("q")] == ["q 0-3", "q 4-5"]
    assert wide.subject["lanes"] == ["q", "k", "v", "s", "o", "m", "l"]
