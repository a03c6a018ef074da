"""Engine: the one loop in which every drafter meets every verifier.

    pending token -> drafter proposes a tree -> one target forward over it -> verifier walks it -> cache keeps the path

The engine alone owns the edges: the pending token (part of the text, not yet in the cache) is the root of each tree;
text ends at the first end token, at `max_new`, or when the context is full; after each verification the cache keeps
the rows of the accepted path, which were rotated with the very positions that sequential decoding would have used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tutor.cost import Cost
from tutor.model.cache import Cache
from tutor.speculative.chooser import Chooser, CoupledChooser, RandomChooser
from tutor.speculative.draft.base import Drafter
from tutor.speculative.tree import TokenTree
from tutor.speculative.verify import choose, verifier
from tutor.speculative.verify.base import Verdict, Verifier
from tutor.speculative.warp import PLAIN, Warp, WarpedRows
from tutor.trace import Recorder, Trace


@dataclass
class Stats:
    """What a generation spent. `cost` is counted; the times (seconds) belong to this run on this machine only."""

    accept_lengths: list[int] = field(default_factory=list)     # tokens emitted by each step, the bonus token included
    rows_verified: int = 0
    rows_wasted: int = 0                                        # rows that are not on an accepted path
    draft_time: float = 0.0
    verify_time: float = 0.0
    host_time: float = 0.0
    prefill_time: float = 0.0
    fallbacks: int = 0                                          # empty residuals, by rounding
    stopped: str = "max_new"                                    # or "eos", "context"
    cost: Cost = field(default_factory=Cost)

    @property
    def steps(self) -> int:
        return len(self.accept_lengths)

    @property
    def new_tokens(self) -> int:
        return sum(self.accept_lengths)

    @property
    def tokens_per_step(self) -> float:
        """Block efficiency: mean tokens per target forward; 1 for autoregressive decoding."""
        return self.new_tokens / max(self.steps, 1)

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were accepted."""
        return self.cost["accepted"] / max(self.cost["drafted"], 1)

    @property
    def wall_time(self) -> float:
        """Seconds after the prefill."""
        return self.draft_time + self.verify_time + self.host_time


@dataclass
class Generation:
    """New tokens (an end token included), their text, what they cost and, if asked for, how they came about."""

    tokens: list[int]
    text: str
    stats: Stats
    prompt: list[int]
    trace: Trace | None = None


@torch.inference_mode()
def generate(target: Any, drafter: Drafter, prompt: str | Sequence[int], *, max_new: int,
             verify: str | Verifier = "auto", warp: Warp = PLAIN, seed: int = 0, eos: Sequence[int] | None = None,
             cache: Cache | None = None, trace: Recorder | bool | None = None,
             on_step: Callable[[TokenTree, Verdict, Cache], None] | None = None) -> Generation:
    """Write up to `max_new` tokens with the law of sampling from `warp(target logits)` one by one.

    Args:
        target: a decoder (`tutor.load()`); drafter: see `tutor.speculative.draft`.
        prompt: text or token ids, at least one token.
        verify: "auto" (the rule that fits each tree), "chain", "match", "recursive", or a verifier such as
            `Match(coupled=True)`, whose sampled text equals that of autoregressive sampling with the same seed.
        eos: token ids that end the text; None takes those of the model's configuration.
        cache: an empty cache to decode with; None keeps everything.
        trace: True or a `Recorder("speculative.run/1", …)` records the run; results stay the same.
        on_step: called as `on_step(tree, verdict, cache)` after each compaction.

    Raises:
        ValueError: empty prompt, a prompt beyond the model's positions, max_new < 1, a cache that cannot roll back,
            a draft model with another tokenizer.
    """
    ids = _prompt_ids(target, prompt)
    limit = target.config.max_positions
    eos = set(target.config.eos if eos is None else eos)
    cache = target.new_cache() if cache is None else cache
    _check(target, drafter, ids, max_new, limit, cache)
    rule = None if verify == "auto" else verifier(verify)
    chooser: Chooser = (CoupledChooser if rule is not None and rule.coupled else RandomChooser)(seed)
    recorder = trace if isinstance(trace, Recorder) else None
    recording = _Recording(drafter, rule, warp, seed, recorder) if trace else None
    stats, text = Stats(), list(ids)

    start = time.perf_counter()
    prefill = target.forward(torch.tensor([ids[:-1]]), cache=cache, logits="none") if len(ids) > 1 else None
    drafter.reset(ids, warp=warp, chooser=RandomChooser(seed, stream=1), prefill=prefill)
    stats.prefill_time = time.perf_counter() - start
    stats.cost += Cost(target_forwards=1, target_rows=len(ids) - 1) if prefill is not None else Cost()

    while True:
        length = len(text) - 1                                   # committed tokens; the last of the text is pending
        room = min(len(ids) + max_new - len(text) - 1, limit - length - 1)      # tokens a path may add to the next one
        t0 = time.perf_counter()
        tree = drafter.propose(text, text[-1], room).cut(room) if room > 0 else TokenTree.root(text[-1])
        t1 = time.perf_counter()
        out = target.forward(tree.tokens[None], positions=tree.positions(length),
                             tree_mask=None if tree.is_chain else tree.mask(), cache=cache)
        t2 = time.perf_counter()
        logits = out.logits[0]                                   # (M, V)
        rows = WarpedRows(logits, warp)
        judge = rule or choose(tree)
        verdict = _cut_at_end(tree, judge.verify(tree, rows, chooser, start=length + 1), eos)
        emitted = [*tree.tokens[verdict.path[1:]].tolist(), verdict.next_token]
        cache.gather(length, torch.tensor(verdict.path))
        text += emitted
        if recording is not None:
            recording.step(tree, rows, verdict, judge)
        hidden = getattr(out, "hidden", None)
        drafter.observe(tree, logits, verdict, hidden=None if hidden is None else hidden[0])
        if on_step is not None:
            on_step(tree, verdict, cache)
        stats.accept_lengths.append(len(emitted))
        stats.rows_verified += len(tree)
        stats.rows_wasted += len(tree) - len(verdict.path)
        stats.fallbacks += verdict.fallbacks
        stats.cost += Cost(target_forwards=1, target_rows=len(tree), drafted=len(tree) - 1, accepted=verdict.accepted,
                           emitted=len(emitted))
        stats.draft_time += t1 - t0
        stats.verify_time += t2 - t1
        stats.host_time += time.perf_counter() - t2
        if emitted[-1] in eos or len(text) == len(ids) + max_new or len(text) > limit:
            break

    stats.stopped = "eos" if text[-1] in eos else "max_new" if len(text) == len(ids) + max_new else "context"
    stats.cost += drafter.cost
    new = text[len(ids):]
    tokenizer = getattr(target, "tokenizer", None)
    written = tokenizer.decode(new, skip_special=True) if tokenizer is not None else ""
    done = None if recording is None else recording.finish(tokenizer, ids, written)
    return Generation(new, written, stats, ids, done)


def _cut_at_end(tree: TokenTree, verdict: Verdict, eos: set[int]) -> Verdict:
    """A path that runs past an end token stops there: the end token becomes the last one emitted, and has no row."""
    for i, node in enumerate(verdict.path[1:], start=1):
        if int(tree.tokens[node]) in eos:
            return replace(verdict, path=verdict.path[:i], next_token=int(tree.tokens[node]))
    return verdict


def _prompt_ids(target: Any, prompt: str | Sequence[int]) -> list[int]:
    if isinstance(prompt, str):
        return list(target.tokenizer.encode(prompt))
    ids = torch.as_tensor(prompt, dtype=torch.long)
    if ids.ndim == 2 and len(ids) > 1:
        raise ValueError(f"speculative decoding works on one sequence; got a batch of {len(ids)}. Call it for each")
    return ids.flatten().tolist()


def _check(target: Any, drafter: Drafter, ids: list[int], max_new: int, limit: int, cache: Cache) -> None:
    if not ids:
        raise ValueError("prompt must hold at least one token: the first one is the root of the first tree")
    if max_new < 1:
        raise ValueError(f"max_new must be >= 1 token; got {max_new}")
    if len(ids) > limit:
        raise ValueError(f"prompt has {len(ids)} tokens, the model's context {limit}; shorten the prompt")
    if not cache.can_rollback:
        raise ValueError(f"cache {type(cache).__name__} cannot roll back (can_rollback=False): rejected tokens could "
                         "not be taken out of it. Decode autoregressively, or use a cache that keeps everything")
    if cache.seen:
        raise ValueError(f"cache must be empty; it has seen {cache.seen} tokens. Pass a fresh one")
    own, draft = getattr(target, "tokenizer", None), getattr(drafter, "tokenizer", None)
    if own is not None and draft is not None and own is not draft and fingerprint(own) != fingerprint(draft):
        raise ValueError("draft and target have different tokenizers (their vocabularies differ, whatever the sizes); "
                         "use a draft model that was trained with the target's tokenizer")


def fingerprint(tokenizer: Any) -> int:
    """A hash of the whole vocabulary: equal sizes are no proof of equal tokens."""
    vocabulary = getattr(tokenizer, "backend", tokenizer).get_vocab()
    return hash(frozenset(vocabulary.items()))


class _Recording:
    """Collects what the token_tree figure draws; reads, never decides."""

    def __init__(self, drafter: Drafter, rule: Verifier | None, warp: Warp, seed: int, recorder: Recorder | None):
        name = "auto" if rule is None else type(rule).__name__.lower()
        self.recorder = recorder or Recorder("speculative.run/1", method=drafter.name)
        self.recorder.params |= {"verify": name, "seed": seed, **asdict(warp)}
        self.drafter, self.used = drafter.name, set()
        self.flat: dict[str, list] = {name: [] for name in ("token", "parent", "q", "p", "state", "draw")}
        self.start, self.next = [0], []

    def step(self, tree: TokenTree, rows: WarpedRows, verdict: Verdict, judge: Verifier) -> None:
        tokens, parent, n = tree.tokens.tolist(), tree.parent.tolist(), len(tree)
        state, draw = [3] * n, [float("nan")] * n
        for test in verdict.tests:
            state[test.node], draw[test.node] = 3 if test.accepted else 2, test.draw    # 3: beyond an end token
        for node in verdict.path:
            state[node] = 1
        state[0] = 0
        p = [float("nan")] + [float(rows[parent[i]][tokens[i]]) for i in range(1, n)]
        q = [float("nan")] * n if tree.qprob is None else tree.qprob.tolist()
        for name, values in {"token": tokens, "parent": parent, "q": q, "p": p, "state": state, "draw": draw}.items():
            self.flat[name] += values
        for i in range(1, n):
            self.recorder.event("drafted", node=i, token=tokens[i])
        for i in range(1, n):
            if state[i] in (1, 2):
                self.recorder.event(("accepted", "rejected")[state[i] - 1], node=i, token=tokens[i])
        self.recorder.event("emitted", node=-1, token=verdict.next_token)
        self.recorder.next_step()
        self.start.append(self.start[-1] + n)
        self.next.append(verdict.next_token)
        self.used.add(type(judge).__name__.lower())

    def finish(self, tokenizer: Any, prompt: list[int], output: str) -> Trace:
        decode = (lambda ids: tokenizer.decode(ids)) if tokenizer is not None else (lambda ids: " ".join(map(str, ids)))
        seen = sorted({*self.flat["token"], *self.next})
        self.recorder.subject |= {
            "pieces": {str(i): decode([i]) for i in seen}, "prompt": decode(prompt), "output": output,
            "drafter": self.drafter, "verifier": " and ".join(sorted(self.used)),
        }
        kinds = {"token": np.int32, "parent": np.int32, "state": np.int8}           # the others are probabilities
        arrays = {name: np.asarray(values, kinds.get(name, np.float32)) for name, values in self.flat.items()}
        arrays |= {"node_start": np.asarray(self.start, np.int32), "next_token": np.asarray(self.next, np.int32)}
        return self.recorder.finish(**arrays)
