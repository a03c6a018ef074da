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
