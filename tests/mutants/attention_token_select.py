"""Planted bugs of TokenSelect and of decoding over chosen keys."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE, TEST = "tutor/attention/methods/token_select.py", "tests/attention/test_token_select.py"

MUTANTS = [
    Mutant("token select: a vote is not divided by sqrt(D)", FILE,
           "if self.scaled:", "if False:", TEST),
    Mutant("token select: logits are summed before the softmax", FILE,
           "return torch.softmax(logits, -1).masked_fill",
           "return torch.softmax(logits.sum(1, True).expand_as(logits), -1).masked_fill", TEST),
    Mutant("token select: the shares are taken over all keys, the ends too", FILE,
           "logits.masked_fill_(~candidate, float(\"-inf\"))",
           "logits.masked_fill_(key >= ends[:, None], float(\"-inf\"))", TEST),
    Mutant("token select: heads read KV heads in turn", FILE,
           "logits = (stack_groups(summary.double(), k.shape[1]) @ keys.transpose(-1, -2)).reshape(*summary.shape[:3], s)",
           "logits = summary.double() @ keys[:, torch.arange(summary.shape[1]) % k.shape[1]].transpose(-1, -2)", TEST),
    Mutant("token select: the chunk's first query speaks for it", FILE,
           "torch.stack([part.mean(2) for part in parts], 2)", "torch.stack([part[:, :, 0] for part in parts], 2)", TEST),
    Mutant("token select: one local key too few", FILE,
           "(key >= (ends - self.n_local)[:, None])               # (C, S)",
           "(key > (ends - self.n_local)[:, None])               # (C, S)", TEST),
    Mutant("token select: a short text votes all the same", FILE,
           "voting = ends > self.n_init + self.k_top + self.n_local", "voting = ends > self.n_init + self.n_local", TEST),
    Mutant("token select: a reused vote compares with the query before, not with the voter", FILE,
           "        old, length, _ = self._last[where]\n",
           "        old, length, kept = self._last[where]\n        self._last[where] = (query.clone(), length, kept)\n", TEST),
    Mutant("token select: layers share one selection cache", FILE,
           "if cache.serves((layer, text), query, int(ends[at])):",
           "layer = 0\n                if cache.serves((layer, text), query, int(ends[at])):", TEST),
    Mutant("token select: a vote outlives the rows it was held over", FILE,
           "return keys >= length and ", "return ", TEST),
    Mutant("token select: a reused vote is charged again", FILE,
           "held = torch.unique(source[text][source[text] >= 0])", "held = voting.nonzero()[:, 0]", TEST),
    Mutant("token select: clamped queries keep their distance", FILE,
           "turn = self.n_local + torch.arange(q.shape[2]) % self.chunk - pos", "turn = 0 * pos", TEST),
]
