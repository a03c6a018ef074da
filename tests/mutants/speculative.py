"""Planted bugs of speculative decoding: the mistakes that a careful reader still makes."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_LAW = "tests/speculative/test_exactness.py"
_ENGINE = "tests/speculative/test_engine.py"
_SMALL = "'greedy_text_is_that_of_plain or cache_is_what or counters or end_token_inside or one_token or full_context'"

MUTANTS = [
    Mutant("residual keeps the draft's tokens", "tutor/speculative/verify/base.py",
           "rest = (p - q).clamp(min=0)", "rest = (p - q).abs()", f"{_LAW} -k 'chain or pencil'"),
    Mutant("chain draws from p after a refusal", "tutor/speculative/verify/chain.py",
           "chooser.draw(rest if mass > 0 else here,", "chooser.draw(here,", f"{_LAW} -k 'chain or pencil'"),
    Mutant("chain tests the ratio upside down", "tutor/speculative/verify/chain.py",
           "float(here[x] / draft[x])", "float(draft[x] / here[x])", f"{_LAW} -k 'chain or pencil'"),
    Mutant("bonus token from the root's row", "tutor/speculative/verify/chain.py",
           "chooser.draw(law(p, last), start + last)", "chooser.draw(law(p, 0), start + last)", f"{_LAW} -k chain"),
    Mutant("recursive forgets to take a refused token out", "tutor/speculative/verify/recursive.py",
           "                    draft[y] = 0\n", "", f"{_LAW} -k recursive"),
    Mutant("recursive does not renormalise the draft", "tutor/speculative/verify/recursive.py",
           "draft = draft / draft.sum() if float(draft.sum()) > 0 else draft", "pass",
           f"{_LAW} -k recursive"),
    Mutant("recursive keeps the first target for all siblings", "tutor/speculative/verify/recursive.py",
           "target, mass = residual(target, draft)", "target, mass = residual(law(p, node), draft)",
           f"{_LAW} -k recursive"),
    Mutant("match redraws when no child fits", "tutor/speculative/verify/match.py",
           "return Verdict(path, token, max(missed, 0.0), tuple(tests))",
           "return Verdict(path, chooser.draw(here, start) if children else token, max(missed, 0.0), tuple(tests))",
           f"{_LAW} -k match"),
    Mutant("match keys its draw by the row, not the position", "tutor/speculative/verify/match.py",
           "start + len(path) - 1)", "start + path[-1])", f"{_ENGINE} -k 'coupled and plain and tree'"),
    Mutant("mask sees the parent only", "tutor/speculative/tree.py",
           "mask[i] |= mask[up]", "mask[i, up] = True", "tests/speculative/test_tree.py"),
    Mutant("siblings at different positions", "tutor/speculative/tree.py",
           "return length + self.depth()", "return length + torch.arange(len(self))", f"{_ENGINE} -k {_SMALL}"),
    Mutant("cache keeps rejected rows", "tutor/speculative/engine.py",
           "cache.gather(length, torch.tensor(verdict.path))", "cache.gather(length, torch.arange(len(verdict.path)))",
           f"{_ENGINE} -k {_SMALL}"),
    Mutant("tree forgets its mask", "tutor/speculative/engine.py",
           "tree_mask=None if tree.is_chain else tree.mask()", "tree_mask=None", f"{_ENGINE} -k {_SMALL}"),
    Mutant("draft keeps one row too many", "tutor/speculative/draft/model_chain.py",
           "self._held = min(self._cache.seen, self._base + len(verdict.path))",
           "self._held = min(self._cache.seen, self._base + len(verdict.path) + 1)",
           "tests/speculative/test_drafters.py -k chain_states"),
    Mutant("a path may run past max_new", "tutor/speculative/engine.py",
           "room = min(len(ids) + max_new - len(text) - 1, limit", "room = min(len(ids) + max_new - len(text), limit",
           f"{_ENGINE} -k 'never_exceeds or counters'"),
    Mutant("text goes on behind an end token", "tutor/speculative/engine.py",
           "path=verdict.path[:i], next_token=int(tree.tokens[node])", "path=verdict.path[:i + 1]",
           f"{_ENGINE} -k end_token_inside"),
    Mutant("top-p drops the crossing token", "tutor/speculative/warp.py",
           "value.cumsum(-1) - value < self.top_p", "value.cumsum(-1) < self.top_p",
           "tests/speculative/test_warp_and_chance.py -k order_is"),
    Mutant("draft forgets the warp", "tutor/speculative/draft/model_chain.py",
           "self._warp, self._chooser = self.warp or warp,", "self._warp, self._chooser = self.warp or PLAIN,",
           "tests/speculative/test_drafters.py -k states"),
    Mutant("lookup refuses the shortest continuation", "tutor/speculative/draft/prompt_lookup.py",
           "len(text) - starts >= self.shortest", "len(text) - starts > self.shortest",
           "tests/speculative/test_drafters.py -k lookup"),
]
