"""Planted bugs of the fixed patterns and of the voted columns."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FOLDER = "tutor/attention/methods/"
TESTS = "tests/attention/test_baselines.py -k "

MUTANTS = [
    Mutant("vertical: every row votes", FOLDER + "vertical.py",
           "probs(q[:, :, -VOTERS:], k, pos_q=pos[-VOTERS:]).mean(2)", "probs(q, k, pos_q=pos).mean(2)", TESTS + "last_rows"),
    Mutant("vertical: the voting rows stand at the beginning", FOLDER + "vertical.py",
           "pos_q=pos[-VOTERS:])", "pos_q=pos[:VOTERS])", TESTS + "last_rows"),
    Mutant("vertical: the own key is forgotten", FOLDER + "vertical.py", "columns | own", "columns", TESTS + "own_key"),
    Mutant("vertical: votes are maxima, not means", FOLDER + "vertical.py",
           "pos_q=pos[-VOTERS:]).mean(2)", "pos_q=pos[-VOTERS:]).amax(2)", TESTS + "'last_rows or votes'"),
    Mutant("longformer: the band counts keys and not steps", FOLDER + "longformer.py",
           "(back < self.window * self.dilation)", "(back < self.window)", TESTS + "skips"),
    Mutant("longformer: holes fall on the own key", FOLDER + "longformer.py",
           "back % self.dilation == 0", "back % self.dilation == self.dilation - 1", TESTS + "skips"),
    Mutant("longformer: globals are read but do not read", FOLDER + "longformer.py",
           "band | read_by_all | read_all[:, None]", "band | read_by_all", TESTS + "global_row"),
    Mutant("longformer: globals are query rows, not positions", FOLDER + "longformer.py",
           "torch.isin(pos, chosen)", "torch.isin(torch.arange(len(pos)), chosen)", TESTS + "alone"),
    Mutant("bigbird: the window is a block too wide", FOLDER + "bigbird.py",
           "block > own - self.n_win", "block >= own - self.n_win", TESTS + "bigbird"),
    Mutant("bigbird: random blocks may fall on fixed ones", FOLDER + "bigbird.py",
           '.masked_fill(fixed, float("-inf"))', "", TESTS + "random_blocks"),
    Mutant("bigbird: every head draws alike", FOLDER + "bigbird.py",
           "torch.rand(b, hq, own + 1, generator=draw)", "torch.rand(b, 1, own + 1, generator=draw).expand(b, hq, -1)",
           TESTS + "draws"),
    Mutant("bigbird: blocks are counted from the first query", FOLDER + "bigbird.py",
           "kept[:, :, pos.div(self.block", "kept[:, :, (pos - pos.min()).div(self.block", TESTS + "alone"),
    Mutant("butterfly: block 0 is left out", FOLDER + "butterfly.py", " | j.eq(0)", "", TESTS + "butterfly"),
    Mutant("butterfly: two bits may differ", FOLDER + "butterfly.py",
           "(differs & (differs - 1)).eq(0)", "((differs & (differs - 1)) & (differs - 2)).eq(0)", TESTS + "butterfly"),
]
