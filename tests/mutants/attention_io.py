"""Planted bugs of the I/O model and its machine."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MODEL = "tutor/attention/methods/io_model.py"
MACHINE = "tutor/attention/machine.py"
UNIT = "tests/attention/test_io_model.py"

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
]
