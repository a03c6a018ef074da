"""Planted bugs of the I/O model and its machine."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MODEL = "tutor/attention/methods/io_model.py"
MACHINE = "tutor/attention/machine.py"
UNIT = "tests/attention/test_io_model.py"
PEBBLES, SEARCH = "tutor/attention/pebbles.py", "tutor/attention/pebble_search.py"
GAME = "tests/attention/test_io_pebbles.py"

MUTANTS = [
    Mutant("io model: a store is not counted", MACHINE,
           "self.stored += buffer.numel()", "self.stored += 0", UNIT + " -k 'machine_counts or by_hand'"),
    Mutant("io model: a loaded tile is slow memory itself", MACHINE,
           "self.fast[name] = tile.clone()", "self.fast[name] = tile", UNIT + " -k machine_counts"),
    Mutant("io model: freed words stay taken", MACHINE,
           "self.resident -= self._held(name).numel()", "self._held(name)", UNIT + " -k 'machine_counts or by_hand'"),
    Mutant("io model: the limit is never enforced", MACHINE,
           "if self.enforce and self.resident", "if not self.enforce and self.resident", UNIT + " -k machine_counts"),
    Mutant("io model: the tile forgets the statistics", MODEL,
           "br = min(N, (M - 2 * d) // (2 * d + 3))", "br = min(N, (M - 2 * d) // (2 * d + 1))",
           UNIT + " -k 'tiles_fit or known_counts'"),
    Mutant("io model: the first loop order forgets the reading of m and l", MODEL,
           "(3 * N * d + 4 * N)", "(3 * N * d + 2 * N)", UNIT + " -k 'any_run or too_small'"),
    Mutant("io model: the running maximum does not shrink the output", MODEL,
           "acc.mul_(shrink[:, None]).add_(s @ vb)", "acc.add_(s @ vb)", UNIT + " -k any_run"),
    Mutant("io model: the first loop order weighs the old output without its sum", MODEL,
           "acc.mul_(before[:, None]).add_(s @ vb)", "acc.mul_(torch.exp(m - top)[:, None]).add_(s @ vb)",
           UNIT + " -k any_run"),
    Mutant("io model: square tiles leave no room for statistics", MODEL,
           "(math.isqrt(1 + 3 * M) - 1) // 3", "math.isqrt(M // 3)", UNIT + " -k 'tiles_fit or smooth_form'"),
    Mutant("io model: the bound loses its square root", MODEL,
           "N * N * d / math.sqrt(M)", "N * N * d / M", UNIT + " -k bends"),
    Mutant("io model: a causal tile on the diagonal is cut at the last row", MODEL,
           "2 * d * sum(min(N, math.ceil(min(N, row + br) / bc) * bc)", "2 * d * sum(min(N, min(N, row + br))",
           UNIT + " -k causal_words_by_hand"),
    Mutant("io model: causal queries see the next key", MODEL,
           "torch.arange(keys.start, keys.start + len(kb)) > own[:, None]",
           "torch.arange(keys.start, keys.start + len(kb)) > own[:, None] + 1", UNIT + " -k causal_run"),
    Mutant("io model: causal key blocks meet all rows", MODEL,
           "if causal and rows.stop <= keys.start:                                     # no row sees any key",
           "if False:", UNIT + " -k 'causal_run or causal_words'"),
    Mutant("pebbles: a score may be thrown away", PEBBLES,
           "if name in self.changed:\n            what", "if name in self.changed - self.made:\n            what",
           GAME + " -k forbidden"),
    Mutant("pebbles: a score may be made twice", PEBBLES, "if score in self.made:", "if score in self.aside:",
           GAME + " -k forbidden"),
    Mutant("pebbles: an output that was put aside begins anew", PEBBLES, "            if self.met[out]:", "            if False:",
           GAME + " -k forbidden"),
    Mutant("pebbles: a used score keeps its word", PEBBLES, "        self.machine.free(score)\n", "",
           GAME + " -k 'by_hand or legal_schedule'"),
    Mutant("pebbles: an output is not shrunk when its maximum rises", PEBBLES,
           "o[:-2].mul_(shrink).add_(weight * v)", "o[:-2].add_(weight * v)", GAME + " -k 'legal_schedule or by_hand'"),
    Mutant("pebbles: an output is written with its statistics", PEBBLES,
           'name[0] == "o" and len(self.met[name]) == self.game.N:', 'name[0] == "o" and len(self.met[name]) > self.game.N:',
           GAME + " -k by_hand"),
    Mutant("pebbles: the search fetches a score where its output has no room", SEARCH,
           "room >= (1 if o[i] == FAST else d + 3)", "room >= 1", GAME + " -k plain_search"),
    Mutant("pebbles: the search looks too high", SEARCH,
           "return game.d * vectors + (game.d + 2) * o.count(ASIDE) + s.count(ASIDE)",
           "return game.d * vectors + (game.d + 2) * o.count(ASIDE) + 3 * s.count(ASIDE)",
           GAME + " -k 'plain_search or small_games'"),
    Mutant("pebbles: the search forgets that a score made late needs a word", SEARCH,
           "q[i] == FAST and k[j] == FAST and room >= 1):", "q[i] == FAST and k[j] == FAST):", GAME + " -k plain_search"),
    Mutant("pebbles: the baseline frees one key of a tile", PEBBLES,
           'for x in "kv" for j in keys)))', 'for x in "kv" for j in keys[:1])))',
           GAME + " -k baseline"),
    Mutant("pebbles: the board shows what was made, not what is held", PEBBLES,
           "else ASIDE if name in self.aside else TO_COME)", "else ASIDE if name in self.made else TO_COME)",
           GAME + " -k board"),
]
