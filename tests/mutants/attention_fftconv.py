"""Planted bugs of FlashFFTConv."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE = "tutor/attention/methods/fftconv.py"
TESTS = "tests/attention/test_fftconv.py"
COST, TEST_COST = "tutor/attention/fft_cost.py", "tests/attention/test_fft_cost.py"

MUTANTS = [
    Mutant("fftconv: no twiddle on the way out", FILE,
           "a = a * twiddle(n1, n2)[k1].to(x)", "a = a.clone()", TESTS + " -k by_hand"),
    Mutant("fftconv: the inverse twists the same way", FILE,
           "twiddle(n1, n2)[k1].conj().to(spectrum)", "twiddle(n1, n2)[k1].to(spectrum)", TESTS + " -k any_factors"),
    Mutant("fftconv: slots are numbered row by row", FILE,
           "f = (torch.arange(n)[:, None] + n * f).flatten()", "f = (torch.arange(n)[:, None] * len(f) + f).flatten()",
           TESTS + " -k by_hand"),
    Mutant("fftconv: the circle is one too short", FILE,
           "1 << (length + taps - 2).bit_length()", "1 << (length + taps - 3).bit_length()",
           TESTS + " -k 'sum_over_taps or powers_of_two'"),
    Mutant("fftconv: a causal convolution is not padded", FILE,
           "if self.causal else length\n        if self.order", "if False else length\n        if self.order",
           TESTS + " -k what_follows"),
    Mutant("fftconv: the input is not gated before", FILE,
           "u.to(dtype) if pre is None else u.to(dtype) * pre.to(dtype)", "u.to(dtype)", TESTS + " -k sum_over_taps"),
    Mutant("fftconv: the real trick adds the odd half", FILE,
           "(z + mirror) / 2 - 0.5j", "(z + mirror) / 2 + 0.5j", TESTS + " -k up_to_the_chip"),
    Mutant("fftconv: the last row that holds input is not multiplied", FILE,
           "rows = -(-x.shape[-1] // n2) ", "rows = max(1, x.shape[-1] // n2) ", TESTS + " -k any_factors"),
    Mutant("fftconv: kept frequencies are the first ones only", FILE,
           "torch.cat([torch.arange(-(-count // 2)), torch.arange(n - count // 2, n)])", "torch.arange(count)",
           TESTS + " -k 'around_zero or low_frequencies'"),
    Mutant("fftconv: later stages are counted for rows that were dropped", COST,
           "        blocks *= held", "        blocks *= n", TEST_COST + " -k counted"),
    Mutant("fftconv: padding is counted as work", COST,
           "(rows if i == 0 else n) * left", "n * left", TEST_COST + " -k 'counted or operations_by_hand'"),
    Mutant("fftconv: matrix units take small factors, too", COST,
           "machine.matrix if factor >= 16", "machine.matrix if factor >= 2", TEST_COST + " -k cost_model"),
    Mutant("fftconv: every stage is on the chip", COST,
           "<= machine.chip", "<= 1e9 * machine.chip", TEST_COST + " -k model_by_hand"),
]
