"""Planted bugs of the frame of the kernel benchmarks."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE, TESTS = "benchmarks/_gpu.py", "tests/kernels/test_benchmarks.py -m 'not slow' -k "

MUTANTS = [
    Mutant("benchmarks: only the first of our kernels is checked", FILE,
           "for name, make in self.ours.items():\n                    found", "for name, make in [*self.ours.items()][:1]:\n"
           "                    found", TESTS + "wrong_kernel"),
    Mutant("benchmarks: the slowest of ours is compared", FILE,
           'row["ours_ms"] = min(row.values())', 'row["ours_ms"] = max(row.values())', TESTS + "fastest"),
    Mutant("benchmarks: a peer that cannot run is left out in silence", FILE,
           "                failed[name] = f", "                _ = f", TESTS + "'fastest or with_a_gpu'"),
    Mutant("benchmarks: one card overwrites the results of another", FILE,
           """{name}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json""", "{name}.json", TESTS + "each_device"),
    Mutant("benchmarks: a card without a data sheet gets the floor of another", FILE,
           "if card else {}", "if True else {}", TESTS + "'by_hand or with_a_gpu'"),
]
