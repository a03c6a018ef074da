"""The pebble game: legal schedules give dense attention, illegal ones are refused, and the fewest words are the fewest."""

from __future__ import annotations

import heapq
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.dense import attend
from tutor.attention.methods.io_model import count
from tutor.attention.pebbles import ASIDE, DONE, EMPTY, FAST, TO_COME, Game, IllegalStep

COVERS = ("attention.io_model",)

ONE = Game(1, 2, 11)
ONE_STEPS = [("load", "q0", "k0"), ("dot", "q0", "k0"), ("free", "q0", "k0"), ("load", "v0"), ("add", "s00", "v0"),
             ("store", "o0")]
TWO = Game(2, 2, 11)
TWO_SCORES = [("load", "k0", "k1", "q0"), ("dot", "q0", "k0"), ("dot", "q0", "k1"), ("free", "q0"), ("load", "q1"),
              ("dot", "q1", "k0"), ("dot", "q1", "k1"), ("free", "q1", "k0", "k1")]
HALF = [*TWO_SCORES, ("store", "s11"), ("free", "s11"), ("load", "v0"), ("add", "s00", "v0"), ("store", "o0"), ("free", "o0"),
        ("add", "s10", "v0"), ("free", "v0"), ("load", "v1", "o0"), ("add", "s01", "v1"), ("store", "o0"), ("free", "o0"),
        ("load", "s11"), ("add", "s11", "v1"), ("store", "o1")]


def inputs(game, seed=0):
    return torch.randn(3, game.N, game.d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(N, d, M):
    """A game with less memory than `Game` lets in, so that even two queries cannot move every vector once."""
    game = Game(N, d, 4 * d + 3)
    object.__setattr__(game, "M", M)
    return game


def test_one_query_and_one_key_by_hand():
    # q, k, v in and o out, two words each: 8. q + k + score are 5 words, then score + value + sum, maximum, weight 1 + 2 + 4.
    played = ONE.play(ONE_STEPS)
    assert (played.words, played.loaded, played.stored, played.peak) == (8, 6, 2, 7) and ONE.floor == 8
    assert played.o.tolist() == inputs(ONE)[2].tolist()


def test_two_by_two_by_hand():
    # FlashAttention, a query and a key at a time: per query 2 (q) + 2 * (2 + 2) (k, v) + 2 (o) = 12, so 24 in all.
    # Both keys held while the queries pass, then both values: every vector once, 4 * 2 * 2 = 16; and never more than 11 words.
    assert TWO.words(TWO.baseline()) == 24 and TWO.floor == 16
    # Most are held when v1 joins v0, o0 and three scores: 2 + 2 + 4 + 3 = 11.
    played = TWO.play([*TWO_SCORES, ("load", "v0"), ("add", "s00", "v0"), ("load", "v1"), ("add", "s01", "v1"), ("store", "o0"),
                       ("free", "o0"), ("add", "s10", "v0"), ("add", "s11", "v1"), ("store", "o1")])
    assert played.words == 16 and played.peak == 11


def test_putting_aside_costs_both_ways():
    # An unfinished output is its two sums, a maximum and a weight: 4 words out, 4 in; a score one each way. 16 + 8 + 2 = 26.
    played = TWO.play(HALF)
    assert (played.words, played.loaded, played.stored) == (26, 12 + 5, 4 + 5)


@pytest.mark.parametrize("steps, text", [
    ([("fly", "q0")], r"Step 1 of 1, \('fly', 'q0'\), is illegal: there is no 'fly'; the verbs are load"),
    (["load q0"], "a step is a tuple of words"),
    ([()], "a step is a tuple of words"),
    ([("load", "q2")], "there is no 'q2'; names are q0, .* counted to 1"),
    ([("load", "w0")], "there is no 'w0'"),
    ([("load",)], "load needs a name"),
    ([("dot", "k0", "q0")], "dot takes a query and a key, in this order"),
    ([("add", "s00")], "add takes a score and a value"),
    ([("load", "q0"), ("load", "q0")], "Step 2 of 2, .* q0 is in fast memory already"),
    ([("load", "s00")], "s00 is not in slow memory: it was never put aside"),
    ([("load", "o0")], "o0 is not in slow memory"),
    ([("load", "q0"), ("dot", "q0", "k0")], "k0 is not in fast memory"),
    ([("free", "k1")], "k1 is not in fast memory"),
    ([("load", "q0"), ("store", "q0")], "q0 never changes: slow memory has it"),
    ([("store", "o0")], "o0 is not in fast memory"),
    ([("load", "q0", "q1", "k0", "k1", "v0"), ("load", "v1")], "'v1' of 2 words does not fit: 10 of M = 11 words are held"),
    ([("load", "q0", "k0"), ("dot", "q0", "k0"), ("dot", "q0", "k0")], "s00 was made before, and each score is made once"),
    ([("load", "q0", "k0"), ("dot", "q0", "k0"), ("free", "s00")], "slow memory lacks s00, and a score is made only once"),
    ([("load", "q0", "k0"), ("dot", "q0", "k0"), ("store", "s00", "s00")], "slow memory has this s00 already"),
    ([("load", "q0", "k0", "v1"), ("dot", "q0", "k0"), ("add", "s00", "v1")], "s00 weighs v0, not v1"),
    ([("load", "q0", "k0"), ("dot", "q0", "k0"), ("free", "q0"), ("load", "v0"), ("add", "s00", "v0"), ("free", "o0")],
     "slow memory lacks o0, and its sums would be lost"),
    ([("load", "q0", "k0"), ("dot", "q0", "k0"), ("free", "q0", "k0"), ("load", "v0"), ("add", "s00", "v0"),
      ("add", "s00", "v0")], "s00 is not in fast memory"),
    ([("load", "q0", "k0"), ("dot", "q0", "k0"), ("free", "q0", "k0"), ("load", "v0"), ("add", "s00", "v0"),
      ("load", "s00")], "s00 is used up"),
    ([("load", "q0", "k0", "k1"), ("dot", "q0", "k0"), ("dot", "q0", "k1"), ("free", "q0", "k0", "k1"), ("load", "v0"),
      ("add", "s00", "v0"), ("store", "o0"), ("free", "o0", "v0"), ("load", "v1"), ("add", "s01", "v1")],
     "o0 was put aside: load it"),
    ([], "ends without output o0: it has met 0 of 2 keys"),
    (TWO.baseline()[:-2], "ends without output o1: it has met 2 of 2 keys and was not stored"),
    ([*TWO.baseline(), ("load", "o0")], "o0 is finished and written"),
])
def test_what_is_forbidden_is_told(steps, text):
    with pytest.raises(IllegalStep, match=text):
        TWO.play(steps)
    assert TWO.judge(steps) is not True


def test_errors_name_the_argument():
    for bad, text in (((0, 2, 30), "N must be in"), ((10, 2, 30), "N must be in"), ((2, 0, 30), "d must be >= 1"),
                      ((2, 4, 18), "M must be >= 19 = 4d [+] 3")):
        with pytest.raises(ValueError, match=text):
            Game(*bad)


def legal_steps(game, referee):
    """Every step that the rules allow now, found by asking the rules and not the referee's messages."""
    n, fast, room = game.N, referee.machine.fast, game.M - referee.machine.resident
    steps = [("load", name) for name in referee.inputs if name not in fast and room >= game.d]
    steps += [("load", name) for name, x in referee.aside.items()
              if name not in fast and name not in referee.done and room >= x.numel()]
    for i in range(n):
        for j in range(n):
            s, o = f"s{i}{j}", f"o{i}"
            if f"q{i}" in fast and f"k{j}" in fast and s not in referee.made and room >= 1:
                steps.append(("dot", f"q{i}", f"k{j}"))
            if s in fast and f"v{j}" in fast and (o in fast or not referee.met[o] and room >= game.d + 2):
                steps.append(("add", s, f"v{j}"))
    steps += [("store", name) for name in fast if name in referee.changed]
    return steps + [("free", name) for name in fast if name not in referee.changed]


@settings(max_examples=40, deadline=None)
@given(N=st.integers(1, 3), d=st.integers(1, 4), more=st.integers(0, 20), seed=st.integers(0, 10**6))
def test_any_legal_schedule_gives_dense_attention(N, d, more, seed):
    from tutor.attention.pebbles import _Referee

    game, rng = Game(N, d, 4 * d + 3 + more), random.Random(seed)
    x = inputs(game, seed)
    referee, steps = _Referee(game, *x), []
    useful = {"add": 40, "dot": 20, "store": 2, "load": 3, "free": 2}
    while len(referee.done) < N:                                              # wanders, mostly forwards
        allowed = legal_steps(game, referee)
        step = rng.choices(allowed, [useful[verb] for verb, *_ in allowed])[0]
        referee.take(step)
        steps.append(step)
    played = game.play(steps, seed=seed)
    want = attend(*(rows[None, None] for rows in x), causal=False).o[0, 0]
    torch.testing.assert_close(played.o, want, rtol=0, atol=1e-12)
    assert played.peak <= game.M and played.words >= game.floor
    loads = sum(game.d if step[1][0] in "qkv" else 1 if step[1][0] == "s" else game.d + 2 for step in steps if step[0] == "load")
    assert played.loaded == loads


@settings(max_examples=60, deadline=None)
@given(N=st.integers(1, 6), d=st.integers(1, 6), more=st.integers(0, 60))
def test_the_baseline_is_flash_attention(N, d, more):
    game = Game(N, d, 4 * d + 3 + more)
    played = game.play(game.baseline())
    assert played.words == count("flash2", N, d, game.M) - N                  # the log-sum-exp is not written here
    assert played.peak <= game.M


def rules(game):
    """Fewest words by Dijkstra over single steps, from the rules alone: nothing is put off, merged or taken for granted."""
    n, d, every = game.N, game.d, [f"{x}{i}" for x in "qkv" for i in range(game.N)]
    weight = lambda name: {"s": 1, "o": d + 2}.get(name[0], d)
    start = (frozenset(), frozenset(), frozenset(), frozenset(), frozenset())        # fast, aside, changed, made, used
    queue, seen, tie = [(0, 0, start, 0)], {}, 0
    while queue:
        words, _, state, written = heapq.heappop(queue)
        if seen.get((state, written), 10**9) < words:
            continue
        if written == 2**n - 1:
            return words
        fast, aside, changed, made, used = state
        room, after = game.M - sum(map(weight, fast)), []
        for name in [*every, *aside]:
            if name not in fast and weight(name) <= room and not (name[0] == "o" and written >> int(name[1]) & 1):
                after.append((weight(name), (fast | {name}, aside, changed, made, used), written))
        for name in fast:
            if name not in changed:
                after.append((0, (fast - {name}, aside, changed, made, used), written))
            elif name[0] == "o" and all(f"s{name[1]}{j}" in used for j in range(n)):
                after.append((d, (fast - {name}, aside - {name}, changed - {name}, made, used), written | 1 << int(name[1])))
            else:
                after.append((weight(name), (fast, aside | {name}, changed - {name}, made, used), written))
        for i in range(n):
            for j in range(n):
                s, o = f"s{i}{j}", f"o{i}"
                if {f"q{i}", f"k{j}"} <= fast and s not in made and room >= 1:
                    after.append((0, (fast | {s}, aside, changed | {s}, made | {s}, used), written))
                begun = any(f"s{i}{x}" in used for x in range(n))
                if {s, f"v{j}"} <= fast and (o in fast or not begun and room >= d + 2):
                    after.append((0, (fast - {s} | {o}, aside - {s}, changed - {s} | {o}, made, used | {s}), written))
        for cost, new, out in after:
            if seen.get((new, out), 10**9) > words + cost:
                seen[new, out] = words + cost
                tie += 1
                heapq.heappush(queue, (words + cost, tie, new, out))
    raise AssertionError("no schedule")


@pytest.mark.parametrize("N, d, M, words", [(1, 2, 7, 8), (2, 2, 7, 24), (2, 2, 8, 22), (2, 1, 5, 15), (2, 1, 6, 10),
                                            (2, 4, 11, 46)])
def test_the_fewest_words_are_those_of_a_plain_search(N, d, M, words):
    game = small(N, d, M)
    assert game.words(game.fewest()) == rules(game) == words


@pytest.mark.parametrize("N, d, M, words", [(2, 2, 11, 16), (3, 8, 35, 108), (4, 8, 52, 134), (4, 8, 56, 128)])
def test_fewest_words_of_small_games(N, d, M, words):
    game = Game(N, d, M)
    assert game.words(game.fewest()) == words
    assert game.play(game.fewest()).peak <= M


def test_more_memory_never_costs_words():
    found = [Game(3, 4, M) for M in range(19, 33, 2)]
    words = [game.words(game.fewest()) for game in found]
    assert words == sorted(words, reverse=True) and words[-1] == found[-1].floor


def test_a_game_too_large_to_search_says_so():
    from tutor.attention.pebble_search import fewest

    with pytest.raises(RuntimeError, match="more than 50 states to look at; ask for a smaller N or a larger M"):
        fewest(Game(3, 8, 35), limit=50)


def test_the_verdict_says_how_far():
    base, best = TWO.baseline(), TWO.fewest()
    assert str(TWO.play(base)) == ("24 words: as many as FlashAttention's 24; 8 more than the fewest possible, 16. "
                                   "Every vector once would be 16.")
    assert str(TWO.play(best)) == ("16 words: 8 fewer than FlashAttention's 24; no schedule moves fewer. "
                                   "Every vector once would be 16.")
    assert TWO.judge(best) is True and TWO.judge(base) == str(TWO.play(base))
    assert TWO.judge(best, below=16) == str(TWO.play(best)) and TWO.judge(best, below=17) is True
    assert TWO.judge(base[1:]).startswith("Step ")


def test_the_board_follows_the_play():
    played = ONE.play(ONE_STEPS)
    assert len(played.boards) == len(ONE_STEPS) + 1 and played.boards[-1][0] == 8
    look = lambda at: played.boards[at][1].tolist()
    assert look(0) == [[EMPTY, TO_COME, EMPTY], [TO_COME, TO_COME, TO_COME], [EMPTY, TO_COME, EMPTY]]
    assert look(2) == [[EMPTY, FAST, EMPTY], [FAST, FAST, TO_COME], [EMPTY, TO_COME, EMPTY]]
    assert look(5) == [[EMPTY, DONE, EMPTY], [DONE, DONE, FAST], [EMPTY, FAST, EMPTY]]
    assert look(6)[1] == [DONE, DONE, DONE]
    aside = ONE.play([*ONE_STEPS[:2], ("store", "s00"), ("free", "s00", "q0", "k0"), ("load", "v0", "s00"), *ONE_STEPS[4:]])
    assert aside.boards[4][1][1, 1] == ASIDE and aside.words == 10
    half = TWO.play(HALF)
    assert [board[1, 3].item() for _, board in half.boards[11:15]] == [TO_COME, FAST, FAST, ASIDE]   # o0
    assert played.board(0).tolist() == look(0) and played.board(5).tolist() == look(3) and played.board(10**6).tolist() == look(6)
