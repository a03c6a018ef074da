"""TokenSelect: all heads of a layer vote, token by token, on one set of keys.

Idea        A cache is loaded by tokens, and a token's row serves every head. So let the heads choose together: each
            spreads one vote over the tokens in proportion to its attention, and the tokens with most votes are read
            by all. Votes are shares, so a head with large logits cannot shout the others down.
Rule        n = keys so far; n_init + k_top + n_local >= n: read all. Else candidates C = [n_init, n - n_local),
            c_j = sum_h softmax_{j in C}(q_h . k_j / sqrt(D)), keep the first n_init, the k_top largest c_j (ties to
            the lower index) and the last n_local. A chunk of a prefill votes once, with the mean of its queries.
            Selection cache: while cos(q, q of the last vote) >= theta over all heads at once, its k_top are read again;
            first and last keys always move with n.
Cost        scored Hq * |C| for each vote, 0 for a reused one; loaded at most n_init + k_top + n_local per row.
Paper       Wu et al. 2024, TokenSelect, section 4 [wu2024tokenselect]: soft voting, against a sum of logits and one vote
            per head and token; the selection cache. Their sizes are `PAPER`.
Differs     keys keep their positions (`rope="post"`), and logits are scaled. The released code scores queries turned to
            n_local, n_local + 1, ... against keys without RoPE, so that a vote ignores distance: `rope="clamped"`; it does
            not scale: `scaled=False`; it renumbers the kept keys 0, 1, 2, ... before attending, so that no distance exceeds
            their number: `elect` and `renumbered`, beside `select`, which keeps positions as every selector here. Its
            selection cache is off by default. The logits of a vote are float64.
See also    oracle_topk (every head for itself: the upper bound), tests/museum/attention/token_select.py,
            tests/attention/test_token_select.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tutor.attention.dense import attend, check_qkv, positions, stack_groups
from tutor.attention.partial import Partial
from tutor.attention.selection import Selection, Selector, finish, need, top_k
from tutor.catalog import method
from tutor.cost import Cost
from tutor.model import rope as rotary
from tutor.trace import Recorder

ROWS = 128                                                                # votes whose logits are held at a time
PAPER = {"k_top": 2048, "n_init": 128, "n_local": 512}                    # with chunk=512 in a prefill, theta=0.9
VOTES, ROPES = ("soft", "hard", "logit"), ("post", "clamped")


class SelectionCache:
    """The last vote of each layer and text, reused while the query hardly turns.

    Attributes:
        theta: reuse while the cosine with the query of the last vote is at least this; above 1 never, -1 always.
        voted, reused: how often either happened.
    """

    def __init__(self, theta: float = 0.9):
        need(theta, -1.0, "theta", "a cosine is never below -1")
        self.theta = theta
        self.clear()

    def clear(self) -> None:
        """Forget everything: a new text begins."""
        self.voted = self.reused = 0
        self._last: dict[tuple[int, int], tuple[Tensor, int, Tensor | None]] = {}

    def serves(self, where: tuple[int, int], query: Tensor, keys: int) -> bool:
        """Whether the vote of `where` = (layer, text) may be reused for `query (Hq * D,)` over `keys` keys."""
        if where not in self._last:
            return False
        old, length, _ = self._last[where]
        return keys >= length and float(F.cosine_similarity(old, query, dim=0)) >= self.theta

    def begin(self, where: tuple[int, int], query: Tensor, keys: int) -> None:
        """A vote is being held for `query`; until `store` brings its outcome, `chosen` is that of the vote before."""
        self._last[where] = (query.clone(), keys, self.chosen(where))

    def store(self, where: tuple[int, int], chosen: Tensor) -> None:
        self._last[where] = (*self._last[where][:2], chosen.clone())

    def chosen(self, where: tuple[int, int]) -> Tensor | None:
        return self._last[where][2] if where in self._last else None


@method("token_select", "attention", "TokenSelect (heads vote on tokens)", paper="wu2024tokenselect",
        kernel="tutor.kernels.paged_decode.paged_decode", flags=("selector", "rowwise", "monotone"),
        grid=tuple({"k_top": k, "n_init": 4, "n_local": 60} for k in (16, 64, 192, 448, 960)))
@dataclass(frozen=True)
class TokenSelect(Selector):
    """The first `n_init` keys, the `k_top` that the heads elect, and the last `n_local`, the same for every head.

    Attributes:
        chunk: query rows that share one vote. 1 is decoding; a prefill in chunks of 512 is `chunk=512`, whose first
            row has only n_local - chunk + 1 local keys left (if that is positive), so keep n_local >= chunk.
        vote: "soft", "hard" (each head's k_top keys get one vote each) or "logit" (the sum of logits).
        rope, base: "post" scores keys where they stand; "clamped" takes RoPE of this base off again.
        scaled: divide logits by sqrt(D).
        pool: votes are replaced by the maximum over `pool` neighbours, an odd number; 1 is off.
    """

    k_top: int = 192
    n_init: int = 4
    n_local: int = 60
    chunk: int = 1
    vote: str = "soft"
    rope: str = "post"
    scaled: bool = True
    pool: int = 1
    base: float = 100_000.0

    def __post_init__(self):
        need(self.k_top, 1, "k_top", "at least one token is elected")
        need(self.n_init, 0, "n_init")
        need(self.n_local, 0, "n_local")
        need(self.chunk, 1, "chunk")
        if self.vote not in VOTES:
            raise ValueError(f"vote must be one of {VOTES}; got {self.vote!r}")
        if self.rope not in ROPES:
            raise ValueError(f"rope must be one of {ROPES}; got {self.rope!r}")
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"pool must be an odd number >= 1, so that it has a middle; got {self.pool}")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None,
               cache: SelectionCache | None = None, layer: int = 0) -> tuple[Selection, Cost]:
        """As every selector; rows are taken in order, and with a `cache` a row may reuse the vote of an earlier one."""
        check_qkv(q, k, v)
        pos, (b, hq, t, s) = positions(q, k, pos_q), (*q.shape[:3], k.shape[2])
        if self.chunk > 1 and bool((pos.diff() != 1).any()):
            raise ValueError(f"chunk={self.chunk} means over neighbouring queries: pos_q must count up by one")
        summary, ends = self.summaries(q, pos)                              # (B, Hq, C, D), (C,) keys at a chunk's end
        voting = ends > self.n_init + self.k_top + self.n_local             # the others read everything
        source = self._plan(summary, ends, voting, cache, layer)            # (B, C): which chunk's vote each one uses
        chosen = torch.zeros(b, len(ends), s, dtype=torch.bool)
        scored = 0
        for text in range(b):
            held = torch.unique(source[text][source[text] >= 0])            # chunks that hold a vote of their own
            for at in held.split(ROWS) if len(held) else ():
                seen = int(ends[at].max())                                  # nobody here may look further
                tally = self.votes(self.ballots(summary[text:text + 1, :, at], k[text:text + 1, :, :seen], ends[at]))[0]
                chosen[text, at, :seen] = top_k(tally, self.k_top)          # (c, seen)
                scored += hq * int((ends[at] - self.n_local - self.n_init).sum())
            if cache is not None:
                self._reuse(cache, (layer, text), source[text], voting, chosen[text])
        key = torch.arange(s)
        ours = (key < self.n_init) | (key >= (ends - self.n_local)[:, None])               # (C, S)
        kept = chosen | ours | ~voting[:, None]                                            # (B, C, S)
        kept = kept.repeat_interleave(self.chunk, 1)[:, None, :t]                          # (B, 1, T, S): one for all heads
        return finish(Selection.from_mask(kept, q, k, pos_q=pos_q), scored=scored, trace=trace)

    def full(self, keys: int) -> TokenSelect:
        return replace(self, k_top=keys)

    def elect(self, q: Tensor, k: Tensor, *, pos_q: Tensor | None = None) -> Tensor:
        """The keys `(K,)`, ascending, that neighbouring rows of one text read together, by one vote of their mean.

        What `select` marks with `chunk=T`, as a list instead of a `(T, S)` mask, and with what no row may see yet.
        """
        check_qkv(q, k)
        pos = positions(q, k, pos_q)
        if q.shape[0] != 1 or bool((pos.diff() != 1).any()):
            raise ValueError(f"one text votes at a time, with neighbouring queries: B must be 1 and pos_q count up by one; "
                             f"got B = {q.shape[0]}, pos_q from {int(pos.min())} to {int(pos.max())} for {len(pos)} rows")
        n = int(pos[-1]) + 1
        key = torch.arange(n)
        if self.n_init + self.k_top + self.n_local >= n:
            return key
        summary, ends = replace(self, chunk=len(pos)).summaries(q, pos)
        tally = self.votes(self.ballots(summary, k[:, :, :n], ends))[0]                    # (1, n)
        return ((key < self.n_init) | top_k(tally, self.k_top)[0] | (key >= n - self.n_local)).nonzero()[:, 0]

    # ------------------------------------------------------------------------------------------------ the vote

    def summaries(self, q: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """One query for each chunk of rows, its mean `(B, Hq, C, D)` float64, and how many keys stand at its end `(C,)`."""
        rows = q.double()
        if self.rope == "clamped":
            turn = self.n_local + torch.arange(q.shape[2]) % self.chunk - pos
            rows = rotary.rerotate(rows, turn, rotary.inv_freq(q.shape[3], self.base))
        parts = rows.split(self.chunk, 2)
        ends = torch.stack([some[-1] for some in pos.split(self.chunk)]) + 1
        return torch.stack([part.mean(2) for part in parts], 2), ends

    def ballots(self, summary: Tensor, k: Tensor, ends: Tensor) -> Tensor:
        """What each head says of each key `(B, Hq, C, S)`; `-inf` where a key is no candidate.

        Args:
            summary: `(B, Hq, C, D)`; k: `(B, Hkv, S, D)`; ends: `(C,)` keys at each summary's time.
        """
        keys, s = k.double(), k.shape[2]
        if self.rope == "clamped":
            keys = rotary.unrotate(keys, torch.arange(s), rotary.inv_freq(k.shape[3], self.base))
        logits = (stack_groups(summary.double(), k.shape[1]) @ keys.transpose(-1, -2)).reshape(*summary.shape[:3], s)
        if self.scaled:
            logits /= math.sqrt(k.shape[3])
        key = torch.arange(s)
        candidate = (key >= self.n_init) & (key < (ends - self.n_local)[:, None])           # (C, S)
        logits.masked_fill_(~candidate, float("-inf"))
        if self.vote == "soft":
            return torch.softmax(logits, -1).masked_fill(~candidate, float("-inf"))
        if self.vote == "hard":
            return top_k(logits, self.k_top).double().masked_fill(~candidate, float("-inf"))
        return logits

    def votes(self, ballots: Tensor) -> Tensor:
        """The sum over heads `(B, C, S)`, pooled if asked for; `-inf` where a key is no candidate."""
        tally = ballots.sum(1)
        if self.pool == 1:
            return tally
        wide = F.max_pool1d(tally, self.pool, stride=1, padding=self.pool // 2)
        return wide.masked_fill(tally == float("-inf"), float("-inf"))

    # ----------------------------------------------------------------------------------------- the selection cache

    def _plan(self, summary: Tensor, ends: Tensor, voting: Tensor, cache: SelectionCache | None, layer: int) -> Tensor:
        """For each text and chunk: the chunk whose vote it uses; -1 the vote left in the cache; -2 none is needed."""
        b, c = summary.shape[0], len(ends)
        source = torch.where(voting, torch.arange(c), -2).repeat(b, 1)
        if cache is None:
            return source
        for text in range(b):
            latest = -1
            for at in voting.nonzero()[:, 0].tolist():
                query = summary[text, :, at].flatten()                      # (Hq * D,): all heads turn together
                if cache.serves((layer, text), query, int(ends[at])):
                    cache.reused += 1
                else:
                    cache.begin((layer, text), query, int(ends[at]))
                    cache.voted += 1
                    latest = at
                source[text, at] = latest
        return source

    def _reuse(self, cache: SelectionCache, where: tuple[int, int], source: Tensor, voting: Tensor, chosen: Tensor) -> None:
        """Copy each vote to the chunks that use it, and leave the last one in the cache. `chosen (C, S)` is filled."""
        old = cache.chosen(where)
        for at in voting.nonzero()[:, 0].tolist():
            if source[at] >= 0:
                chosen[at] = chosen[source[at]]
            else:
                chosen[at, old] = True
        if bool((source >= 0).any()):
            cache.store(where, chosen[int(source[source >= 0][-1])].nonzero()[:, 0])


def renumbered(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, *, pos_q: Tensor | None = None, base: float = 100_000.0,
               dtype: torch.dtype = torch.float32) -> Partial:
    """Attention over `keys` alone as if nothing had stood between them: they get the positions 0, 1, 2, ...

    A query gets the position of its own key, or of the next one kept. So no distance exceeds the number of keys, however
    long the text is, and a model meets only distances it was trained on.

    Args:
        q: `(B, Hq, T, D)` turned to `pos_q (T,)`; k, v: `(B, Hkv, S, D)`, keys turned to where they stand.
        keys: int64 `(K,)`, ascending; a row reads those not after its own.
        base: of the model's RoPE.
        dtype: what everything is computed in.
    """
    check_qkv(q, k, v)
    pos = positions(q, k, pos_q)
    if keys.ndim != 1 or keys.is_floating_point() or bool((keys.diff() <= 0).any()):
        raise ValueError(f"keys must be one ascending list of whole numbers, none twice; got {keys.dtype} {tuple(keys.shape)}")
    speeds = rotary.inv_freq(q.shape[3], base)
    moved = torch.searchsorted(keys, pos) - pos                                           # (T,) never above 0
    rows = rotary.rerotate(q.to(dtype), moved, speeds)
    near = rotary.rerotate(k[:, :, keys].to(dtype), torch.arange(len(keys)) - keys, speeds)
    return attend(rows, near, v[:, :, keys], causal=False, mask=keys <= pos[:, None], dtype=dtype)
