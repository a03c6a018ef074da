"""Planted bugs of HyperAttention."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE = "tutor/attention/methods/hyper.py"
TESTS = "tests/attention/test_hyper.py"

MUTANTS = [
    Mutant("hyper: the rank of a bin is its own Gray code", FILE, "return gray_rank(bins)", "return bins ^ (bins >> 1)",
           TESTS + " -k wrong_order"),
    Mutant("hyper: the inverse Gray code stops after one shift", FILE,
           "rank, left = rank ^ left, left >> 1", "rank, left = rank ^ left, 0 * left", TESTS + " -k 'by_hand or neighbouring'"),
    Mutant("hyper: sampled keys of the own block are counted twice", FILE,
           "return from_logits(logits.masked_fill(own[:, :, None], float(\"-inf\")), _take", "return from_logits(logits, _take",
           TESTS + " -k 'by_hand or unbiased'"),
    Mutant("hyper: a sample stands for the keys outside its block only", FILE,
           "-torch.log(self.samples * chance.gather(2, drawn))",
           "torch.log(1 - self.block * chance.gather(2, drawn)) - torch.log(self.samples * chance.gather(2, drawn))",
           TESTS + " -k 'unbiased'"),
    Mutant("hyper: samples have no weight", FILE, " + stands_for[:, :, None, None]", "", TESTS + " -k 'by_hand or unbiased'"),
    Mutant("hyper: the rows stay in sorted order", FILE, "back = torch.argsort(order.q_order)", "back = order.q_order",
           TESTS + " -k 'matched_blocks or come_back'"),
    Mutant("hyper: padding of the last block is attended to", FILE,
           "from_logits(logits.masked_fill(~real, float(\"-inf\")), v)", "from_logits(logits, v)", TESTS + " -k matched_blocks"),
    Mutant("hyper: the second half does not see the first", FILE,
           "                yield Step(middle + t - s, row_end, a, middle, False, b - middle < self.min_len)\n", "",
           TESTS + " -k 'plan or odd_lengths'"),
    Mutant("hyper: keys before the queries are forgotten", FILE,
           "        yield Step(t - (s - start), t, first, start, False, s - start < self.min_len)\n", "", TESTS + " -k plan"),
    Mutant("hyper: a forced sink is hashed as well", FILE,
           "steps = [Step(0, t, kept, s, False, t < self.min_len)]", "steps = [Step(0, t, 0, s, False, t < self.min_len)]",
           TESTS + " -k 'plan or forced'"),
    Mutant("hyper: vnorm draws by the norm, weighs by the square", FILE,
           "chance.gather(2, drawn))", "chance.square().gather(2, drawn))", TESTS + " -k unbiased"),
    Mutant("hyper: the cost forgets the samples", FILE, "(near + rows * self.samples)", "near", TESTS + " -k cost"),
    Mutant("hyper: hashing is counted for every query head's keys", FILE,
           "self.planes * (hq * rows + hkv * keys)", "self.planes * hq * (rows + keys)", TESTS + " -k cost"),
]
