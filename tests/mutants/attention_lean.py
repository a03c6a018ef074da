"""Planted bugs of the schedules of a decoding step."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

LEAN, SPLIT = "tutor/attention/methods/lean.py", "tutor/attention/methods/split_k.py"
TESTS = "tests/attention/test_lean.py"

MUTANTS = [
    Mutant("lean: an even division leaves tiles out", LEAN,
           "full = sum(tiles) - (most - 1) * workers ", "full = sum(tiles) % workers ", TESTS),
    Mutant("lean: two empty outputs in a row get a piece", LEAN,
           "while done == tiles[output]: ", "if done == tiles[output]: ", TESTS + " -k every_tile"),
    Mutant("lean: every worker thinks it hosts", LEAN,
           "host=done == 0, finishing=last == tiles[output]))", "host=True, finishing=last == tiles[output]))",
           TESTS + " -k shares_by_hand"),
    Mutant("lean: a host takes the next slot for the whole", LEAN,
           "part, reached = merge(part, more), after", "part, reached = more, after", TESTS + " -k equals_dense"),
    Mutant("lean: a host stops after one slot", LEAN,
           "while not reached.finishing:", "if not reached.finishing:", TESTS + " -k by_hand"),
    Mutant("lean: rows of a short request stand where the longest ends", LEAN,
           "head:head + 1, :length], v[b", "head:head + 1], v[b", TESTS + " -k equals_dense"),
    Mutant("lean: rows are written to every other head", LEAN,
           "whole.o[b, head * group:(head + 1) * group] = part.o[0]", "whole.o[b, head::kv_heads] = part.o[0]",
           TESTS + " -k equals_dense"),
    Mutant("lean: the last worker to start is taken for the busiest", LEAN,
           "return max(loads.values(), default=0)", "return [*loads.values(), 0][-2] if loads else 0",
           TESTS + " -k cost_models"),
    Mutant("split_k: splits are rounded down and grow in number", SPLIT,
           "size = math.ceil(t / splits)", "size = t // splits", TESTS + " -k splits_by_hand"),
    Mutant("split_k: a split more that shortens nothing is chosen", SPLIT,
           "if s == 1 or math.ceil(tiles / s) < math.ceil(tiles / (s - 1))]", "if s]", TESTS + " -k how_many"),
    Mutant("split_k: blocks are dealt in turn, free or not", SPLIT,
           "heapq.heappush(free, (done + last - first, worker))", "heapq.heappush(free, (done + 1, worker))",
           TESTS),
]
