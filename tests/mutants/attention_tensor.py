"""Planted bugs of tensor attention."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE = "tutor/attention/methods/tensor.py"
TESTS = "tests/attention/test_tensor.py"

MUTANTS = [
    Mutant("tensor: logits are divided by the root of the width", FILE,
           "/ q.shape[-1]                          # (B, H, D, S1*S2)", "/ q.shape[-1] ** 0.5", TESTS + " -k 'loops or matrix'"),
    Mutant("tensor: pairs of keys and pairs of values are listed in different orders", FILE,
           "values, parts = kron_rows(v1, v2), []", "values, parts = kron_rows(v2, v1), []", TESTS + " -k 'by_hand or loops'"),
    Mutant("tensor: a monomial is counted once, however many orders it has", FILE,
           "ways = torch.exp(log_factorial[total] - log_factorial[a].sum(-1))", "ways = torch.ones_like(log_factorial[total])",
           TESTS + " -k features"),
    Mutant("tensor: powers of the width are missing", FILE, "[total] * ways / float(d) ** total", "[total] * ways / float(d)",
           TESTS + " -k features"),
    Mutant("tensor: Chebyshev points of [-1, 1] whatever the bound", FILE, "domain=[-bound, bound])", "domain=[-1, 1])",
           TESTS + " -k falls"),
    Mutant("tensor: the denominator sums the pairs j1 = j2 only", FILE,
           "(u2.sum(-2) * u3.sum(-2))[..., None]", "(u2 * u3[..., :u2.shape[-2], :]).sum(-2)[..., None]",
           TESTS + " -k 'falls or change_places'"),
    Mutant("tensor: a denominator below zero is let through", FILE, "if not bool((total > 0).all()):", "if False:",
           TESTS + " -k refused"),
    Mutant("tensor: multi-indices are listed twice", FILE, "max((i for i, e in enumerate(a) if e), default=0)", "0",
           TESTS + " -k 'rank or features'"),
    Mutant("tensor: Match3 adds the wrong angle", FILE, "([c, -c, -s, -s], [c, s, s, c], [c, s, c, s])",
           "([c, -c, -s, -s], [c, s, s, c], [c, c, s, s])", TESTS + " -k match3"),
    Mutant("tensor: the threshold of Match3 forgets the number of pairs", FILE,
           "(beta + 2 * math.log(n) + beta * near) / 2", "(beta + beta * near) / 2", TESTS + " -k near_misses"),
    Mutant("tensor: the cost of the polynomial forgets one of the keys", FILE, "(dv * (t + s1 + s2) + t)", "(dv * (t + s1) + t)",
           TESTS + " -k cost"),
]
