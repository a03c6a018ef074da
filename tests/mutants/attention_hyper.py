"""Planted bugs of HyperAttention."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE = "tutor/attention/methods/hyper.py"
TESTS = "tests/attention/test_hyper.py"
KERNEL = "tutor/kernels/hyper.py"
FAST = "tests/kernels/test_hyper.py -k "

MUTANTS = [
    Mutant("hyper: the rank of a bin is its own Gray code", FILE, "return gray_rank(bins)", "return bins ^ (bins >> 1)",
           TESTS + " -k wrong_order"),
    Mutant("hyper: the inverse Gray code stops after one shift", FILE,
           "rank, left = rank ^ left, left >> 1", "rank, left = rank ^ left, 0 * left", TESTS + " -k 'by_hand or neighbouring'"),
    Mutant("hyper: sampled keys of the own block are counted twice", FILE,
           "return from_logits(logits.masked_fill(own[:, :, None], float(\"-inf\")), _take", "return from_logits(logits, _take",
           TESTS + " -k 'by_hand or unbiased'"),
    Mutant("hyper: a sample stands for the keys outside its block only", FILE,
           "-torch.log(self.samples * chance.gather(2, place))",
           "torch.log(1 - self.block * chance.gather(2, place)) - torch.log(self.samples * chance.gather(2, place))",
           TESTS + " -k 'unbiased'"),
    Mutant("hyper: samples have no weight", FILE, " + weight[:, :, None, None].to(q.dtype)", "",
           TESTS + " -k 'by_hand or unbiased'"),
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
           "chance.gather(2, place))", "chance.square().gather(2, place))", TESTS + " -k unbiased"),
    Mutant("hyper: the cost forgets the samples", FILE, "(near + rows * self.samples)", "near", TESTS + " -k cost"),
    Mutant("hyper: hashing is counted for every query head's keys", FILE,
           "self.planes * (hq * rows + hkv * keys)", "self.planes * hq * (rows + keys)", TESTS + " -k cost"),
    Mutant("hyper: the last row of a triangle does not see its own key", FILE, "seen = int(pos[rows][-1]) + 1 if",
           "seen = int(pos[rows][-1]) if", TESTS + " -k 'odd_lengths'"),
    Mutant("hyper: a chunk of a triangle is multiplied with all keys", FILE,
           "seen = int(pos[rows][-1]) + 1 if causal else k.shape[2]", "seen = k.shape[2]", TESTS + " -k multiplies"),
    Mutant("hyper kernel: sampled keys of the own block are counted twice", KERNEL,
           "there = (draw < M) & (place // BK != block)", "there = draw < M", FAST + "'by_hand or counts_nothing'"),
    Mutant("hyper kernel: samples have no weight", KERNEL, "weight = tl.load(weight_ptr + draw, mask=there, other=0.0)",
           "weight = tl.zeros([BLOCK_N], tl.float32)", FAST + "'by_hand or other_tiles'"),
    Mutant("hyper kernel: weights are powers of e where they are added to powers of 2", KERNEL,
           "(drawn.weight.float() * math.log2(math.e))", "drawn.weight.float()", FAST + "'by_hand or other_tiles'"),
    Mutant("hyper kernel: the rows stay in sorted order", KERNEL, "tl.store(o_ptr + rows[:, None] * stride_ot",
           "tl.store(o_ptr + at[:, None] * stride_ot", FAST + "'by_hand or other_tiles'"),
    Mutant("hyper kernel: the sample's places are taken for the keys' numbers", KERNEL,
           "keys = tl.load(k_order_ptr + place, mask=there, other=0)\n        weight", "keys = place\n        weight",
           FAST + "'by_hand or other_tiles'"),
    Mutant("hyper kernel: heads read KV heads in turn", KERNEL, "kv_head = head // G", "kv_head = head % (Hq // G)",
           FAST + "other_tiles"),
    Mutant("hyper kernel: only the first tile of the sample is read", KERNEL, "for start in range(0, M, BLOCK_N):",
           "for start in range(0, tl.minimum(M, BLOCK_N), BLOCK_N):", FAST + "other_tiles"),
    Mutant("hyper kernel: a tile reads on into the next block", KERNEL, "there = place < own_end", "there = place < S",
           FAST + "other_tiles"),
    Mutant("hyper kernel: the log-sum-exp stays in powers of two", KERNEL, "(m + tl.log2(l)) * 0.6931471805599453",
           "(m + tl.log2(l))", FAST + "by_hand"),
    Mutant("hyper kernel: the second half is computed without the first", KERNEL,
           "return hyper_step(q, k, v, order, method.draw(v, order, generator), scale=scale, **blocks)",
           "return hyper_step(q, k[:, :, :0], v[:, :, :0], method.sort(q, k[:, :, :0], planes), "
           "method.draw(v, order, generator), scale=scale, **blocks)", FAST + "recursion"),
]
