"""Planted bugs of NTK-Attention."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE = "tutor/attention/methods/ntk.py"
TESTS = "tests/attention/test_ntk.py"

MUTANTS = [
    Mutant("ntk: the log-sum-exp of the prefix forgets the shift of the summary", FILE,
           "torch.log(weight) + peak + summary.shift[..., None, None]", "torch.log(weight) + peak",
           TESTS + " -k 'by_hand or formula'"),
    Mutant("ntk: features are raised to e without a shift", FILE,
           "peak = logs.amax(-1, keepdim=True)", "peak = torch.zeros_like(logs[..., :1])", TESTS + " -k thousand"),
    Mutant("ntk: summaries with different shifts are added as they are", FILE,
           "mine, theirs = (torch.exp(x.shift - shift)[..., None] for x in (self, other))",
           "mine, theirs = (torch.ones_like(x.shift)[..., None] for x in (self, other))", TESTS + " -k prefixes"),
    Mutant("ntk: the features are divided by the root of the width, not its fourth root", FILE,
           "return math.sqrt(scale)", "return scale", TESTS + " -k 'by_hand or formula'"),
    Mutant("ntk: elu + 1 of a negative number is 1 + x", FILE,
           "torch.log1p(x.clamp(min=0)), x)", "torch.log1p(x.clamp(min=0)), torch.log1p(x.clamp(min=-0.999)))",
           TESTS + " -k 'by_hand or half'"),
    Mutant("ntk: rows of the prefix read the summary of what comes after them", FILE,
           "if causal and bool(early.any()):", "if False:", TESTS + " -k rows_of_the_prefix"),
    Mutant("ntk: an empty prefix gives NaN", FILE, "    o = torch.where(weight > 0, o, 0.0)\n",
           "    o = features @ summary.z / weight\n", TESTS + " -k no_prefix"),
    Mutant("ntk: negative weights are let in", FILE, "if bool((self.k < 0).any()):", "if bool((self.k < -1e9).any()):",
           TESTS + " -k refused"),
    Mutant("ntk: the fit forgets to weigh rows by their whole attention", FILE,
           "a = torch.exp(logs - lse + shift[..., None, None])", "a = torch.exp(logs + shift[..., None, None])",
           TESTS + " -k fit"),
    Mutant("ntk: own keys are placed as if there were no prefix", FILE, "pos_q=pos - m)", "pos_q=pos)",
           TESTS + " -k 'rows_of_the_prefix or no_prefix'"),
    Mutant("ntk: the cost counts rows of the prefix for late queries", FILE, "(pairs - unread)", "pairs", TESTS + " -k cost"),
]

KERNEL = "tutor/kernels/prefix.py"
KERNEL_TESTS = "tests/kernels/test_prefix.py"
FP32 = " -k 'reference and fp32 or by_hand'"

MUTANTS += [
    Mutant("prefix kernel: the shift of the summary is forgotten", KERNEL, "peak + shift + tl.log2(safe)", "peak + tl.log2(safe)",
           KERNEL_TESTS + FP32),
    Mutant("prefix kernel: the prefix replaces the own tokens", KERNEL, "return acc * shrink[:, None] + top", "return top",
           KERNEL_TESTS + FP32),
    Mutant("prefix kernel: the log-sum-exp leaves the prefix out", KERNEL, "m_new, l * shrink + share", "m_new, l * shrink",
           KERNEL_TESTS + FP32),
    Mutant("prefix kernel: the product with Z takes the features of unscaled queries", KERNEL,
           "_log2_features(x.to(tl.float32) * root, some < D)", "_log2_features(x.to(tl.float32), some < D)",
           KERNEL_TESTS + FP32),
    Mutant("prefix kernel: every slice multiplies the first rows of Z", KERNEL, "z_ptr + some[:, None] * DV",
           "z_ptr + (some - start)[:, None] * DV", KERNEL_TESTS + FP32),
    Mutant("prefix kernel: features above zero are e^x as well", KERNEL, "tl.log2(1.0 + tl.maximum(x, 0.0))",
           "x * 1.4426950408889634", KERNEL_TESTS + FP32),
    Mutant("prefix kernel: all heads read the first summary", KERNEL, "+ head // GS  ", "+ 0 * head  ", KERNEL_TESTS + FP32),
    Mutant("prefix kernel: the keys' groups choose the summary", KERNEL, "+ head // GS  ", "+ head // G  ", KERNEL_TESTS + FP32),
    Mutant("prefix kernel: an empty prefix makes rows without keys NaN", KERNEL, "safe = tl.where(some_weight, weight, 1.0)",
           "safe = weight", KERNEL_TESTS + " -k no_prefix"),
    Mutant("prefix kernel: the merge shifts by the features' peak, not by their weight", KERNEL,
           "m_new = tl.maximum(m, m_prefix)", "m_new = tl.maximum(m, peak + shift)", KERNEL_TESTS + " -k 'hide or no_prefix'"),
    Mutant("prefix kernel: long sums are cast to float16 as they are", KERNEL, "float().amax(-1))[1]", "float().amax(-1))[1] * 0",
           KERNEL_TESTS + " -k largest_float16"),
    Mutant("prefix kernel: the power of two of the sums is not given back", KERNEL, "* math.log2(math.e) + power",
           "* math.log2(math.e)", KERNEL_TESTS + FP32),
    Mutant("prefix kernel: gradients are lost silently", KERNEL, "if torch.is_grad_enabled() and any(", "if False and any(",
           KERNEL_TESTS + " -k refused"),
]
