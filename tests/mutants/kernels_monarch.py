"""Planted bugs of the Monarch convolution kernel."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE = "tutor/kernels/monarch.py"
TESTS = "tests/kernels/test_monarch.py"

MUTANTS = [
    Mutant("monarch: the twiddle is forgotten", FILE,
           "x_re = (a_re * turn_re - a_im * turn_im).to(re.dtype)", "x_re = a_re.to(re.dtype)",
           TESTS + " -k 'float64_convolution and fp32'"),
    Mutant("monarch: the inverse twists the same way", FILE,
           "x_im = (a_im * turn_re - a_re * turn_im)", "x_im = (a_im * turn_re + a_re * turn_im)",
           TESTS + " -k 'float64_convolution and fp32'"),
    Mutant("monarch: the inverse is not conjugated", FILE,
           "a_re = _product(p_re, re, DOT_F32) + _product(p_im, im, DOT_F32)",
           "a_re = _product(p_re, re, DOT_F32) - _product(p_im, im, DOT_F32)",
           TESTS + " -k 'float64_convolution and fp32'"),
    Mutant("monarch: half of the rows are kept whatever the length", FILE,
           "rows = side if 2 * length > n else max(16, side // 2)                                  # tl",
           "rows = max(16, side // 2)                                  # tl", TESTS + " -k 'float64_convolution and fp32'"),
    Mutant("monarch: the spectrum is not scaled, half precision overflows", FILE,
           "(GRIDS[n], GRIDS[n])) / n", "(GRIDS[n], GRIDS[n]))", TESTS + " -k 'overflow or carries'"),
    Mutant("monarch: the last entry is masked away", FILE,
           "tl.where(batch < B, L, 0)", "tl.where(batch < B, L - 1, 0)", TESTS + " -k 'float64_convolution and fp32'"),
    Mutant("monarch: a program repeats its first sequence", FILE,
           "(tl.program_id(1) * BATCH + step)", "(tl.program_id(1) * BATCH + 0 * step)", TESTS + " -k several_sequences"),
    Mutant("monarch: the gates are interchanged", FILE,
           "pre is None else pre, u if post is None else post, y, spectrum",
           "pre is None else post, u if post is None else pre, y, spectrum", TESTS + " -k gates"),
    Mutant("monarch: the strides of the gates are those of the input", FILE,
           "for x in (u, u if pre is None else pre, u if post is None else post, y)",
           "for x in (u, u, u, y)", TESTS + " -k non_contiguous"),
    Mutant("monarch: the imaginary plane of the first channel serves all", FILE,
           "(H + channel) * SIDE * SIDE", "H * SIDE * SIDE", TESTS + " -k 'float64_convolution and fp32'"),
]
