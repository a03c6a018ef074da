"""The pebble game: schedule the words of a tiny attention by hand, and be told how near to the fewest you came.

Idea        A lower bound is a sentence about every schedule there is. On four queries and four keys one can play
            against it: say which vector enters the fast memory, when, and what leaves; a referee counts the words.
Rule        One head, N queries and keys, d wide, no mask, M words of fast memory. A schedule is a list of steps:
                ("load", "q0")          copies a query, key, value, or something put aside, into fast memory
                ("dot", "q0", "k1")     makes the score s01, one word, from a query and a key in fast memory
                ("add", "s01", "v1")    adds its share to output o0, begun on first use with d + 2 words (its sum, its
                                        largest logit, its weight), and uses the score up
                ("store", "s01")        puts aside a score (1 word) or an unfinished output (d + 2 words) in slow memory,
                                        or writes a finished output (d words): that is the answer
                ("free", "q0", "k1")    gives room back; what slow memory lacks and is needed later may not be freed
            Each score is made once. Loads and stores cost a word per number, the rest nothing; names may be listed.
Cost        `floor`: 4Nd, every vector once. `baseline`: FlashAttention with queries outside, its log-sum-exp not
            written. `fewest`: A* over all schedules; a minimum, not a guess, and only for games as small as this.
Paper       The red-blue pebble game of Hong and Kung 1981 (doi 10.1145/800076.802486, abstract), here without making
            anything twice. Saha and Ye 2024 prove their bound in another way; what they bound is what this game counts.
Differs     A pebble of the original is one number and M counts pebbles; here a vector is moved whole and weighs d.
See also    tutor.attention.machine (the referee's machine), tutor.attention.methods.io_model; tests/attention/test_io_pebbles.py
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutor.attention import pebble_search
from tutor.attention.dense import attend
from tutor.attention.machine import Machine
from tutor.attention.methods.io_model import flash_tiles
from tutor.attention.pebble_search import ASIDE, DONE, FAST, TO_COME

Step = tuple[str, ...]
BOARD = ("", "to come", "in fast memory", "put aside", "done")                # what the numbers of a board mean
EMPTY = 0                                                                     # the others are the search's: 1, 2, 3, 4


class IllegalStep(ValueError):
    """A step that the rules forbid; the message says which one and why."""


@dataclass(frozen=True)
class Play:
    """What the referee saw: words moved, the most words held, the output `(N, d)` and the board after every step."""

    game: Game
    o: Tensor
    loaded: int
    stored: int
    peak: int
    boards: tuple[tuple[int, Tensor], ...]                                    # words so far, int8 (N + 2, N + 2)

    @property
    def words(self) -> int:
        return self.loaded + self.stored

    def board(self, words: int) -> Tensor:
        """The board when the next word would be more than `words`: q left, k above, v below, o right, scores within."""
        return [board for moved, board in self.boards if moved <= words][-1]

    def __str__(self) -> str:
        least, base = self.game.words(self.game.fewest()), self.game.words(self.game.baseline())
        beside = (f"as many as FlashAttention's {base}" if self.words == base
                  else f"{abs(base - self.words)} {'fewer' if self.words < base else 'more'} than FlashAttention's {base}")
        more = self.words - least
        above = f"{more} more than the fewest possible, {least}" if more else "no schedule moves fewer"
        return f"{self.words} words: {beside}; {above}. Every vector once would be {self.game.floor}."


@dataclass(frozen=True)
class Game:
    """Attention of N queries and keys, d wide, with M words of fast memory."""

    N: int = 4
    d: int = 8
    M: int = 50

    def __post_init__(self):
        if not 1 <= self.N <= 9:
            raise ValueError(f"N must be in [1, 9], since names end in one digit; got {self.N}")
        if self.d < 1:
            raise ValueError(f"d must be >= 1 (numbers in a vector); got {self.d}")
        if self.M < 4 * self.d + 3:
            raise ValueError(f"M must be >= {4 * self.d + 3} = 4d + 3, the least that FlashAttention runs in; got {self.M}: "
                             "give the machine more words")

    @property
    def floor(self) -> int:
        """Words of reading every input once and writing every output once: no schedule moves fewer."""
        return 4 * self.N * self.d

    def baseline(self) -> list[Step]:
        """FlashAttention, queries outside, with the best tiles that fit: the schedule to beat."""
        br, bc = flash_tiles("flash2", self.N, self.d, self.M)
        steps: list[Step] = []
        for first in range(0, self.N, br):
            rows = range(first, min(first + br, self.N))
            steps += [("load", f"q{i}") for i in rows]
            for start in range(0, self.N, bc):
                keys = range(start, min(start + bc, self.N))
                steps += [("load", f"{x}{j}") for x in "kv" for j in keys]
                for i in rows:
                    steps += [("dot", f"q{i}", f"k{j}") for j in keys] + [("add", f"s{i}{j}", f"v{j}") for j in keys]
                steps.append(("free", *(f"{x}{j}" for x in "kv" for j in keys)))
            steps += [("store", f"o{i}") for i in rows] + [("free", f"q{i}", f"o{i}") for i in rows]
        return steps

    def fewest(self) -> list[Step]:
        """A schedule that moves as few words as any does; about two seconds for the default game, then remembered."""
        return list(pebble_search.fewest(self))

    def play(self, schedule: Sequence[Step], *, seed: int = 0) -> Play:
        """Run a schedule on the machine, on numbers drawn with `seed`.

        Raises:
            IllegalStep: a step is forbidden, or outputs are missing in the end; the message names it and says why.
        """
        g = torch.Generator().manual_seed(seed)
        referee = _Referee(self, *torch.randn(3, self.N, self.d, generator=g, dtype=torch.float64))
        for at, step in enumerate(schedule, 1):
            try:
                referee.take(step)
            except (IllegalStep, RuntimeError) as error:                      # RuntimeError: the machine has no room
                raise IllegalStep(f"Step {at} of {len(schedule)}, {step!r}, is illegal: {error}.") from None
        return referee.finish()

    def words(self, schedule: Sequence[Step]) -> int:
        """Words that a legal schedule moves."""
        return self.play(schedule).words

    def judge(self, schedule: Sequence[Step], below: int | None = None) -> bool | str:
        """Whether a schedule is legal and moves fewer words than `below` (the baseline's); else a sentence that says why not."""
        below = self.words(self.baseline()) if below is None else below
        try:
            played = self.play(schedule)
        except IllegalStep as error:
            return str(error)
        return played.words < below or str(played)


# -------------------------------------------------------------------------------------------------------------- the referee

class _Referee:
    """Knows what lies where; every word goes through a `Machine`."""

    def __init__(self, game: Game, q: Tensor, k: Tensor, v: Tensor):
        self.game, self.machine = game, Machine(game.M)
        self.inputs = {f"{x}{i}": rows[i] for x, rows in zip("qkv", (q, k, v)) for i in range(game.N)}
        self.aside: dict[str, Tensor] = {}                                    # scores and unfinished outputs in slow memory
        self.changed: set[str] = set()                                        # in fast memory, and slow memory lacks it
        self.made: set[str] = set()                                           # scores, ever
        self.met: dict[str, set[int]] = {f"o{i}": set() for i in range(game.N)}      # keys that an output has seen
        self.out = torch.full((game.N, game.d), math.nan, dtype=torch.float64)
        self.done: set[str] = set()                                           # outputs in slow memory
        self.truth = attend(*(x[None, None] for x in (q, k, v)), causal=False).o[0, 0]
        self.boards = [(0, self.board())]

    def take(self, step: Step) -> None:
        if not isinstance(step, (tuple, list)) or not step or not all(isinstance(word, str) for word in step):
            raise IllegalStep('a step is a tuple of words such as ("load", "q0")')
        verb, *names = step
        if verb not in ("load", "dot", "add", "store", "free"):
            raise IllegalStep(f"there is no {verb!r}; the verbs are load, dot, add, store, free")
        for name in names:
            if not re.fullmatch(r"[qkvo]\d|s\d\d", name) or any(int(x) >= self.game.N for x in name[1:]):
                raise IllegalStep(f"there is no {name!r}; names are q0, k0, v0, o0 and s00, counted to {self.game.N - 1}")
        if verb in ("dot", "add"):
            kinds, told = ("qk", "a query and a key") if verb == "dot" else ("sv", "a score and a value")
            if "".join(name[0] for name in names) != kinds:
                raise IllegalStep(f"{verb} takes {told}, in this order")
            getattr(self, "_" + verb)(*names)
        elif not names:
            raise IllegalStep(f"{verb} needs a name")
        else:
            for name in names:
                getattr(self, "_" + verb)(name)
        self.boards.append((self.machine.words, self.board()))

    def _load(self, name: str) -> None:
        if name in self.machine.fast:
            raise IllegalStep(f"{name} is in fast memory already")
        if name in self.done:
            raise IllegalStep(f"{name} is finished and written: nothing is left to do with it")
        if name not in self.inputs and name not in self.aside:
            why = "is used up" if name in self.made else "is not in slow memory: it was never put aside"
            raise IllegalStep(f"{name} {why}")
        self.machine.load(name, self.inputs[name] if name in self.inputs else self.aside[name])

    def _dot(self, query: str, key: str) -> None:
        score = f"s{query[1]}{key[1]}"
        if score in self.made:
            raise IllegalStep(f"{score} was made before, and each score is made once")
        s = self._held(query) @ self._held(key) / math.sqrt(self.game.d)
        self.machine.make(score, s.reshape(1))
        self.made.add(score)
        self.changed.add(score)

    def _add(self, score: str, value: str) -> None:
        s, v, out = self._held(score), self._held(value), f"o{score[1]}"
        if score[2] != value[1]:
            raise IllegalStep(f"{score} weighs v{score[2]}, not {value}")
        if out not in self.machine.fast:
            if self.met[out]:
                raise IllegalStep(f"{out} was put aside: load it before you add to it")
            self.machine.make(out, torch.tensor([0.0] * self.game.d + [-math.inf, 0.0], dtype=torch.float64))
        o = self.machine.fast[out]                                            # (d + 2,): sum, largest logit, weight
        top = torch.maximum(o[-2], s[0])
        shrink, weight = torch.exp(o[-2] - top), torch.exp(s[0] - top)
        o[:-2].mul_(shrink).add_(weight * v)
        o[-1].mul_(shrink).add_(weight)
        o[-2] = top
        self.machine.free(score)
        self.aside.pop(score, None)
        self.changed.discard(score)
        self.changed.add(out)
        self.met[out].add(int(score[2]))

    def _store(self, name: str) -> None:
        if name in self.inputs:
            raise IllegalStep(f"{name} never changes: slow memory has it")
        held = self._held(name)
        if name not in self.changed:
            raise IllegalStep(f"slow memory has this {name} already")
        if name[0] == "o" and len(self.met[name]) == self.game.N:
            finished = held[:-2] / held[-1]                                   # divided where it stands: d words cross
            self.machine.free(name)
            self.machine.make(name, finished)
            self.machine.store(name, self.out[int(name[1])])
            self.done.add(name)
        else:
            self.aside[name] = torch.zeros_like(held)
            self.machine.store(name, self.aside[name])
        self.changed.discard(name)

    def _free(self, name: str) -> None:
        self._held(name)
        if name in self.changed:
            what = "a score is made only once" if name[0] == "s" else "its sums would be lost"
            raise IllegalStep(f"slow memory lacks {name}, and {what}: store it first, or use it up")
        self.machine.free(name)

    def _held(self, name: str) -> Tensor:
        if name not in self.machine.fast:
            raise IllegalStep(f"{name} is not in fast memory")
        return self.machine.fast[name]

    def finish(self) -> Play:
        for name, met in self.met.items():
            if name not in self.done:
                have = f"it has met {len(met)} of {self.game.N} keys" + (" and was not stored" if len(met) == self.game.N else "")
                raise IllegalStep(f"The schedule ends without output {name}: {have}.")
        torch.testing.assert_close(self.out, self.truth, rtol=0, atol=1e-12)          # the rules leave no other way
        return Play(self.game, self.out, self.machine.loaded, self.machine.stored, self.machine.peak, tuple(self.boards))

    def board(self) -> Tensor:
        n, fast = self.game.N, self.machine.fast
        board = torch.zeros(n + 2, n + 2, dtype=torch.int8)
        for i in range(n):
            seen = {j for j in range(n) if f"s{i}{j}" in self.made}
            asked = {j for j in range(n) if f"s{j}{i}" in self.made}
            added = {j for j in range(n) if i in self.met[f"o{j}"]}
            for place, name, over in (((i + 1, 0), f"q{i}", len(seen) == n), ((0, i + 1), f"k{i}", len(asked) == n),
                                      ((n + 1, i + 1), f"v{i}", len(added) == n), ((i + 1, n + 1), f"o{i}", f"o{i}" in self.done),
                                      *(((i + 1, j + 1), f"s{i}{j}", j in self.met[f"o{i}"]) for j in range(n))):
                board[place] = (DONE if name in self.done else FAST if name in fast else DONE if over
                                else ASIDE if name in self.aside else TO_COME)
        return board
