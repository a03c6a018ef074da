"""Planted bugs of Lightning Attention."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE = "tutor/attention/methods/lightning.py"
TESTS = "tests/attention/test_lightning.py"

MUTANTS = [
    Mutant("lightning: the state is aligned one decay apart", FILE,
           "torch.exp(-s * col.flip(0)[:, None])", "torch.exp(-s * (col.flip(0)[:, None] + 1))",
           TESTS + " -k handed_to_decode"),
    Mutant("lightning: the first row of a block reads the old state undecayed", FILE,
           "torch.exp(-s * (row[:, None] + 1))", "torch.exp(-s * row[:, None])", TESTS + " -k two_pieces"),
    Mutant("lightning: a short last block fades the state by one token too few", FILE,
           "torch.exp(-s * len(col))", "torch.exp(-s * (len(col) - 1))", TESTS + " -k forms_agree"),
    Mutant("lightning: the decay is a quotient of powers", FILE,
           "torch.exp(-s * gap.clamp(min=0)) * (gap >= 0), torch.exp(-s * (row",
           "torch.exp(-s * row[:, None]) * torch.exp(s * col) * (gap >= 0), torch.exp(-s * (row",
           TESTS + " -k strong_decay"),
    Mutant("lightning: a key does not see its own query", FILE,
           "torch.exp(-s * gap.clamp(min=0)) * (gap >= 0), torch.exp(-s * (row",
           "torch.exp(-s * gap.clamp(min=0)) * (gap > 0), torch.exp(-s * (row", TESTS + " -k by_hand"),
    Mutant("lightning: stacked query heads are counted as one long block", FILE,
           "row = col.repeat(q.shape[1] // k.shape[1])", "row = torch.arange(len(col) * (q.shape[1] // k.shape[1]))",
           TESTS + " -k grouped_heads"),
    Mutant("lightning: the gradient of the state does not fade between blocks", FILE,
           "dstate = fade.whole * dstate + ", "dstate = dstate + ", TESTS + " -k autograd"),
    Mutant("lightning: dq forgets the state", FILE,
           "dq.append((da @ kb + fade.since * (drows @ state.transpose(-1, -2))).reshape(qb.shape))",
           "dq.append((da @ kb).reshape(qb.shape))", TESTS + " -k autograd"),
    Mutant("lightning: the gradient pass runs forward", FILE,
           "in reversed(list(enumerate(blocks)))", "in list(enumerate(blocks))", TESTS + " -k autograd"),
    Mutant("lightning: the state is kept in half precision", FILE,
           "torch.float64 if q.dtype == torch.float64 else torch.float32, (*k", "q.dtype, (*k",
           TESTS + " -k low_precision"),
    Mutant("lightning: the cost counts whole blocks", FILE,
           "[min(self.block, t - start) for", "[self.block for", TESTS + " -k cost"),
]
