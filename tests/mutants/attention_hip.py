"""Bugs planted in HiP."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE, UNIT = "tutor/attention/methods/hip.py", "tests/attention/test_hip.py"

MUTANTS = [
    Mutant("hip: a dead half scores like a live one", FILE, '.masked_fill(halves[1] == halves[0], float("-inf"))', "",
           UNIT + " -k 'dead or disjoint'"),
    Mutant("hip: the last key block is out of reach", FILE, "cut = torch.arange(n + 1) * seen // n",
           "cut = torch.arange(n + 1) * (seen // n)", UNIT + " -k disjoint"),
    Mutant("hip: a row votes for keys it does not see", FILE, "(key[:, None] <= pos[:, None]) & (key < s)[:, None]",
           "(key < s)[:, None].expand(-1, len(pos), -1)", UNIT + " -k 'votes or loops'"),
    Mutant("hip: the last half speaks first", FILE, "halves = torch.stack([start, middle], -1).flatten(1), ",
           "halves = torch.stack([middle, middle], -1).flatten(1), ", UNIT + " -k by_hand"),
    Mutant("hip: the middle speaks under the name of the first", FILE, 'at = start if self.representative == "first"',
           'at = start if self.representative == "middle"', UNIT + " -k who_speaks"),
    Mutant("hip: equal halves go to the later one", FILE, "score.sort(dim=1, descending=True, stable=True).indices[:, :n]",
           "score.flip(1).sort(dim=1, descending=True, stable=True).indices[:, :n].mul(-1).add(score.shape[1] - 1)",
           UNIT + " -k ties"),
    Mutant("hip: a block's first key speaks for the block", FILE, "return product.amax(1).unflatten(1, (-1, self.bk)).amax(2)",
           "return product.amax(1).unflatten(1, (-1, self.bk))[..., 0]", UNIT + " -k loops"),
    Mutant("hip: one round too few", FILE, "going := (end - start > 1).any(1)", "going := (end - start > 2).any(1)",
           UNIT + " -k by_hand"),
    Mutant("hip: heads that are done are charged", FILE, "int(self._looks(*halves)[going].sum())",
           "int(self._looks(*halves).sum())", UNIT + " -k done"),
    Mutant("hip: dead halves are charged", FILE, "return (end > start) * each", "return torch.ones_like(start) * each",
           UNIT + " -k loops"),
]
