"""Planted bugs of the schedules of a decoding step."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

LEAN, SPLIT = "tutor/attention/methods/lean.py", "tutor/attention/methods/split_k.py"
TESTS = "tests/attention/test_lean.py"
SPLIT_KERNEL, LEAN_KERNEL = "tutor/kernels/split_decode.py", "tutor/kernels/lean_decode.py"
KERNELS = "tests/kernels/test_decode.py -m 'not slow' -k equals_float64"

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
    Mutant("lean trace: a host merges before the partials are there", LEAN,
           "done if second_pass else max(time for _, time in parts))", "done if second_pass else 0.0)",
           TESTS + " -k host_waits"),
    Mutant("lean trace: the second pass starts with the first idle worker", LEAN,
           "done = max(free, default=0.0)", "done = min(free, default=0.0)", TESTS + " -k 'second_pass or timeline'"),
    Mutant("lean trace: an arrow is forgotten", LEAN,
           "for at, _ in parts:\n            line.arrow", "for at, _ in parts[:1]:\n            line.arrow",
           TESTS + " -k timeline"),
    Mutant("decode kernel: the join forgets to rescale what it has", SPLIT_KERNEL,
           "return acc * old[:, None] + o * new[:, None]", "return acc + o * new[:, None]", KERNELS),
    Mutant("decode kernel: rows are dealt query row by query row", SPLIT_KERNEL,
           "return tl.load(q_ptr + (rows // T)[:, None] * stride_qh + (rows % T)[:, None] * stride_qt",
           "return tl.load(q_ptr + (rows % T)[:, None] * stride_qh + (rows // T)[:, None] * stride_qt", KERNELS),
    Mutant("decode kernel: padding is let in", SPLIT_KERNEL, "inside = keys < length\n", "inside = keys <= length\n", KERNELS),
    Mutant("decode kernel: query rows stand at the end of the longest request", SPLIT_KERNEL,
           "pos = length - T + rows % T", "pos = length - 1 + rows % T", KERNELS),
    Mutant("decode kernel: the last split is cut short", SPLIT_KERNEL,
           "size = (tiles + splits - 1) // splits", "size = tiles // splits", KERNELS),
    Mutant("lean kernel: a whole output takes a slot nobody reads", LEAN_KERNEL,
           "if (at == begin) & (last == stop):", "if (at == begin) & (last == stop) & (at != 0):", KERNELS),
    Mutant("lean kernel: both pieces of a worker go to one slot", LEAN_KERNEL,
           "slot = tl.where(at == begin, workers + worker, worker)", "slot = tl.where(at == begin, worker, worker)", KERNELS),
    Mutant("lean kernel: the fix-up stops before the finisher", LEAN_KERNEL,
           "ender - host + 1)", "ender - host)", KERNELS),
    Mutant("lean kernel: shares begin as if all were the longest", LEAN_KERNEL,
           "at = worker * most - tl.maximum(worker - full, 0) ", "at = worker * most ", KERNELS),
    Mutant("lean kernel: empty requests are left unwritten", LEAN_KERNEL,
           "parts = tl.where(begin == stop, 0, ender - host + 1)", "parts = ender - host + 1", KERNELS),
]
