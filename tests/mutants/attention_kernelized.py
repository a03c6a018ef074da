"""Planted bugs of kernelized attention with relative positions."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE = "tutor/attention/methods/kernelized.py"
TESTS = "tests/attention/test_kernelized.py"

MUTANTS = [
    Mutant("kernelized: the circulant has no room for the padding", FILE,
           "length = 1 << (2 * n - 2).bit_length() if length is None else length\n    if length < 2 * n - 1:",
           "length = 1 << (n - 1).bit_length() if length is None else length\n    if False:", TESTS + " -k toeplitz_times"),
    Mutant("kernelized: past and future change places in the circulant", FILE,
           "h[..., :n] = c[..., :n].flip(-1)", "h[..., :n] = c[..., n - 1:]", TESTS + " -k circulant_by_hand"),
    Mutant("kernelized: each key takes out its own largest exponent", FILE,
           "log_k.amax((-1, -2), keepdim=True)", "log_k.amax(-1, keepdim=True)", TESTS + " -k performer"),
    Mutant("kernelized: the features forget the norm", FILE,
           " - x.square().sum(-1, keepdim=True) / 2", "", TESTS + " -k unbiased"),
    Mutant("kernelized: the norm is not halved", FILE,
           "x.square().sum(-1, keepdim=True) / 2", "x.square().sum(-1, keepdim=True)", TESTS + " -k unbiased"),
    Mutant("kernelized: queries are divided by the root of D, keys too", FILE,
           "x / x.shape[-1] ** 0.25", "x / x.shape[-1] ** 0.5", TESTS + " -k plain_kernel"),
    Mutant("kernelized: a future distance is let through", FILE,
           "torch.arange(2 * s - 1, device=b.device) > s - 1", "torch.arange(2 * s - 1, device=b.device) > s",
           TESTS + " -k 'comes_later or by_hand'"),
    Mutant("kernelized: the largest bias is not put back into the total", FILE,
           "[..., 0] + top)", "[..., 0])", TESTS + " -k constant_added"),
    Mutant("kernelized: rows of a chunk are taken from the beginning", FILE,
           "y[:, :, -t:]", "y[:, :, :t]", TESTS + " -k fft_equals"),
    Mutant("kernelized: a drowned row is divided by its rounding", FILE,
           "if lost := int((total <= rounding).sum()):", "if lost := 0:", TESTS + " -k overflow"),
    Mutant("kernelized: orthogonal directions are all of length one", FILE,
           "torch.cat([q.T for q in turned])[:m] * lengths", "torch.cat([q.T for q in turned])[:m]",
           TESTS + " -k 'unbiased or as_long'"),
    Mutant("kernelized: the variance takes the distance for the sum", FILE,
           "torch.expm1((x + y).square()", "torch.expm1((x - y).square()", TESTS + " -k 'unbiased or opposite'"),
]
