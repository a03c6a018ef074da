"""The search of the pebble game: a schedule that moves as few words as any does, found by A* over all of them.

Idea        A state tells, for q, k, v and o of each index and for each score, where it is: TO_COME (an input: in slow
            memory alone), FAST, ASIDE or DONE. Words moved so far plus words that must still move order the queue.
Rule        Choices that can be put off, or taken at once without loss, are not choices (`_settle`); states that differ by
            the numbering of queries or keys are one (`_canonical`).
See also    tutor.attention.pebbles (the game and its referee)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutor.attention.pebbles import Game, Step

TO_COME, FAST, ASIDE, DONE = range(1, 5)                                      # as on a board, where 0 is an empty place
State = tuple[tuple[int, ...], ...]                                           # q, k, v, o (N,) each, s (N * N,)


@cache
def fewest(game: Game, limit: int = 200_000) -> tuple[Step, ...]:
    """A* on words moved; states that differ by the numbering of queries or keys are one."""
    start: State = (*(((TO_COME,) * game.N,) * 4), (TO_COME,) * game.N**2)
    best = {_canonical(start, game.N): (0, start, None, ())}                  # words, state, where from, steps taken
    queue: dict[int, list] = {_remaining(start, game): [(0, start)]}
    while queue:
        total = min(queue)
        words, state = queue[total].pop()
        if not queue[total]:
            del queue[total]
        key = _canonical(state, game.N)
        if best[key][0] < words:
            continue
        if all(x == DONE for x in state[3]):
            steps: tuple[Step, ...] = ()
            while key is not None:
                _, _, key, taken = best[key]
                steps = taken + steps
            return steps
        for cost, after, taken in _choices(state, game):
            new, name = words + cost, _canonical(after, game.N)
            if name not in best or new < best[name][0]:
                best[name] = (new, after, key, taken)
                queue.setdefault(new + _remaining(after, game), []).append((new, after))
        if len(best) > limit:
            raise RuntimeError(f"the game N = {game.N}, d = {game.d}, M = {game.M} has more than {limit} states to look at; "
                               "ask for a smaller N or a larger M")
    raise AssertionError("every game with M >= 4d + 3 has a schedule")


def _choices(state: State, game: Game) -> Iterator[tuple[int, State, tuple[Step, ...]]]:
    """Words, state and steps of every choice worth taking; room is made only where something might lack it."""
    N, d = game.N, game.d
    q, k, v, o, s = state
    room = game.M - _used(state, d)
    pending = [x == TO_COME and q[p // N] == FAST and k[p % N] == FAST for p, x in enumerate(s)]     # could be made now

    def then(cost: int, steps: list[Step], *changes: tuple[int, int, int]):
        lists = [list(x) for x in state]
        for part, at, value in changes:
            lists[part][at] = value
        return _settle(lists, game, cost, steps)

    for part, name in enumerate("qkv"):
        for i in range(N):
            if state[part][i] == TO_COME and room >= d:
                yield then(d, [("load", f"{name}{i}")], (part, i, FAST))
    for i in range(N):
        if o[i] == ASIDE and room >= d + 2:
            yield then(d + 2, [("load", f"o{i}")], (3, i, FAST))
        here = [N * i + j for j in range(N) if v[j] == FAST]
        if o[i] == TO_COME and any(s[p] == FAST and room >= d + 2 or pending[p] and room >= d + 3 for p in here):
            yield then(0, [], (3, i, FAST))
        for j in range(N):
            if s[N * i + j] == ASIDE and v[j] == FAST and room >= (1 if o[i] == FAST else d + 3) and o[i] in (FAST, TO_COME):
                yield then(1, [("load", f"s{i}{j}")], (4, N * i + j, FAST), (3, i, FAST))
    if room >= d + 3:
        return
    for p, x in enumerate(s):
        if x == FAST or pending[p] and room >= 1:
            i, j = divmod(p, N)
            first = [] if x == FAST else [("dot", f"q{i}", f"k{j}")]
            yield then(1, [*first, ("store", f"s{i}{j}"), ("free", f"s{i}{j}")], (4, p, ASIDE))
    for i in range(N):
        if o[i] == FAST:
            yield then(d + 2, [("store", f"o{i}"), ("free", f"o{i}")], (3, i, ASIDE))
        if v[i] == FAST:
            yield then(0, [("free", f"v{i}")], (2, i, TO_COME))
        for part, name, mine in ((0, "q", range(N * i, N * i + N)), (1, "k", range(i, N * N, N))):
            if state[part][i] == FAST:
                able = [p for p in mine if pending[p]]
                for size in range(min(len(able), room) + 1):
                    for chosen in combinations(able, size):
                        yield then(0, [*(("dot", f"q{p // N}", f"k{p % N}") for p in chosen), ("free", f"{name}{i}")],
                                   (part, i, TO_COME), *((4, p, FAST) for p in chosen))


def _settle(lists: list[list[int]], game: Game, cost: int, steps: list[Step]) -> tuple[int, State, tuple[Step, ...]]:
    """Take at once what never hurts: add what can be added, write what is finished, free what is no longer needed."""
    N, d = game.N, game.d
    q, k, v, o, s = lists
    room, moving = game.M - _used(lists, d), True
    while moving:
        moving = False
        for i in range(N):
            if o[i] != FAST:
                continue
            for j in range(N):
                p = N * i + j
                made = s[p] == FAST
                if v[j] == FAST and (made or s[p] == TO_COME and q[i] == FAST and k[j] == FAST and room >= 1):
                    steps += [*([] if made else [("dot", f"q{i}", f"k{j}")]), ("add", f"s{i}{j}", f"v{j}")]
                    s[p], room, moving = DONE, room + made, True
            if all(x == DONE for x in s[N * i:N * i + N]):
                steps += [("store", f"o{i}"), ("free", f"o{i}")]
                o[i], cost, room, moving = DONE, cost + d, room + d + 2, True
        for i in range(N):
            for part, name, needed in ((q, "q", TO_COME in s[N * i:N * i + N]), (k, "k", TO_COME in s[i::N]),
                                       (v, "v", any(x != DONE for x in s[i::N]))):
                if not needed and part[i] != DONE:
                    if part[i] == FAST:
                        steps.append(("free", f"{name}{i}"))
                        room, moving = room + d, True
                    part[i] = DONE
    return cost, tuple(map(tuple, lists)), tuple(steps)


def _used(state: Sequence[Sequence[int]], d: int) -> int:
    q, k, v, o, s = state
    return d * (q.count(FAST) + k.count(FAST) + v.count(FAST)) + (d + 2) * o.count(FAST) + s.count(FAST)


def _remaining(state: State, game: Game) -> int:
    """Words that must still move, whatever is chosen."""
    q, k, v, o, s = state
    vectors = q.count(TO_COME) + k.count(TO_COME) + v.count(TO_COME) + game.N - o.count(DONE)
    return game.d * vectors + (game.d + 2) * o.count(ASIDE) + s.count(ASIDE)


def _canonical(state: State, N: int) -> State:
    """The same for most states that differ by numbering: queries, keys, and queries again, sorted by what is known of them."""
    q, k, v, o, s = state
    rows = sorted(range(N), key=lambda i: (q[i], o[i], sorted(s[N * i:N * i + N])))
    keys = sorted(range(N), key=lambda j: (k[j], v[j], [s[N * i + j] for i in rows]))
    rows = sorted(rows, key=lambda i: (q[i], o[i], [s[N * i + j] for j in keys]))
    return (tuple([q[i] for i in rows]), tuple([k[j] for j in keys]), tuple([v[j] for j in keys]),
            tuple([o[i] for i in rows]), tuple([s[N * i + j] for i in rows for j in keys]))
