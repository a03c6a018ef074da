"""HiP: find the heaviest keys by repeated halving, with one look per half.

Idea        Neighbouring keys score alike. So one key can speak for a stretch of them: hold n stretches, cut each in two,
            ask one representative of each half, keep the n best halves. After log T rounds a stretch is one block.
Rule        For a block of `bq` queries that may see T blocks of `bk` keys, with n = mask_k / bk slots:
            T <= n     read all.
            start      slot i covers blocks [floor(T i / n), floor(T (i + 1) / n))
            round      while a slot is longer than one block: cut [a, b) at a + floor((b - a) / 2); a half without
                       blocks is dead; a half's score is the largest q·k over the queries of the block and the keys of
                       its representative block; keep the n best halves (ties: the one that comes first).
            end        the n blocks that are left, sorted.
Cost        2 n bk bq products a round (less where halves are dead), ceil(log2(T / n)) rounds: T log T for a whole text.
Paper       Lee et al. 2024, HiP Attention, section 3 and algorithm 1; as in release 1.1 of its code, whose
            representative is the first block of a half. The paper's text takes the middle key and starts from 2 n
            chunks. Section numbers unverified.
Differs     all rows of a query block vote (the code takes every second one); each row votes for keys that it may see.
            `mask_k >= bq`, so that no row is left without a key where query blocks begin on a block of keys. No layer is
            dense, and nothing is kept unasked: sinks and a window came with release 1.2, which has three stages and is
            another method.
See also    squeezed, tutor.attention.methods.oracle_topk, tests/museum/attention/hip.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tutor.attention.dense import check_qkv, positions
from tutor.attention.selection import Selection, Selector, finish, need
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder, Trace

REPRESENTATIVES = ("first", "middle", "mean", "max_oracle")


@dataclass(frozen=True, eq=False)
class Round:
    """One round of one query block: 2n halves, of which n stay.

    Attributes:
        start, end: int64 `(H, 2n)`, half `h` covers key blocks `[start, end)`; they are equal for a dead half.
        score: `(H, 2n)`, `-inf` for a dead half.
        kept: bool `(H, 2n)`.
        dots: products computed, all heads together.
    """

    start: Tensor
    end: Tensor
    score: Tensor
    kept: Tensor
    dots: int


@method("hip", "attention", "HiP (hierarchically pruned)", paper="lee2024hip", flags=("selector",),
        grid=tuple({"mask_k": n} for n in (128, 256, 512)))
@dataclass(frozen=True)
class HiP(Selector):
    """`mask_k` keys for each block of `bq` queries, in blocks of `bk`.

    `representative`: whom a half sends. "first" and "middle": its first or middle block; "mean": the mean of its keys
    (one product a query, if sums of keys are kept at hand); "max_oracle": the best of all its keys, an upper bound.
    """

    mask_k: int = 512
    bq: int = 64
    bk: int = 2
    representative: str = "first"

    def __post_init__(self):
        need(self.bq, 1, "bq")
        need(self.bk, 1, "bk")
        need(self.mask_k, self.bk, "mask_k", "at least one block of keys must be read")
        if self.mask_k % self.bk:
            raise ValueError(f"mask_k must be a multiple of bk = {self.bk}; got {self.mask_k}")
        need(self.mask_k, self.bq, "mask_k", f"with fewer keys than the {self.bq} rows of a query block (bq), its first "
                                             "row may be left without any")
        if self.representative not in REPRESENTATIVES:
            raise ValueError(f"representative must be one of {REPRESENTATIVES}; got {self.representative!r}")

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        check_qkv(q, k, v)
        (b, hq, t), s, pos = q.shape[:3], k.shape[2], positions(q, k, pos_q)
        n_keys = math.ceil(s / self.bk)
        blocks, dots = torch.zeros(b * hq, math.ceil(t / self.bq), n_keys, dtype=torch.bool), 0
        for at, rows in enumerate(torch.arange(t).split(self.bq)):
            seen = min(int(pos[rows].max()) + 1, s)                        # keys that the last row of the block sees
            if seen <= self.mask_k:
                blocks[:, at, : math.ceil(max(seen, 0) / self.bk)] = True
                continue
            for step in self.descend(q[:, :, rows], k, pos[rows]):
                dots += step.dots
            blocks[:, at].scatter_(1, step.start[step.kept].reshape(b * hq, -1), True)
        sel = Selection.from_blocks(blocks.unflatten(0, (b, hq)), q, k, bq=self.bq, bk=self.bk, pos_q=pos_q)
        return finish(sel, scored=dots, trace=trace)

    def descend(self, q: Tensor, k: Tensor, pos: Tensor) -> Iterator[Round]:
        """The rounds of one query block `q (B, Hq, rows, D)` at positions `pos (rows,)`; H = B * Hq heads at once.

        After the last round the kept halves are single blocks.
        """
        ask, rows = self._asker(q, k, pos), int((pos >= 0).sum())
        n, seen = self.mask_k // self.bk, math.ceil(min(int(pos.max()) + 1, k.shape[2]) / self.bk)
        cut = torch.arange(n + 1) * seen // n
        start, end = (edge.expand(q.shape[0] * q.shape[1], n) for edge in (cut[:-1], cut[1:]))            # (H, n)
        while bool((going := (end - start > 1).any(1)).any()):             # (H,) heads that are not done
            middle = start + (end - start) // 2
            halves = torch.stack([start, middle], -1).flatten(1), torch.stack([middle, end], -1).flatten(1)   # (H, 2n)
            score = ask(*halves).masked_fill(halves[1] == halves[0], float("-inf"))
            dots = rows * int(self._looks(*halves)[going].sum())
            best = score.sort(dim=1, descending=True, stable=True).indices[:, :n].sort(dim=1).values      # (H, n)
            kept = torch.zeros_like(score, dtype=torch.bool).scatter(1, best, True)
            yield Round(*halves, score, kept, dots)
            start, end = (edge.gather(1, best) for edge in halves)

    def _looks(self, start: Tensor, end: Tensor) -> Tensor:
        """Products per query row that a half costs, `(H, m)`."""
        each = {"mean": 1, "max_oracle": (end - start) * self.bk}.get(self.representative, self.bk)
        return (end > start) * each

    def _asker(self, q: Tensor, k: Tensor, pos: Tensor):
        """The function `(start, end) -> score (H, m)` of this representative; what it says of a dead half is void."""
        group, s = q.shape[1] // k.shape[1], k.shape[2]
        queries, keys = q.flatten(0, 1), k.flatten(0, 1)                                 # (H, rows, D), (B * Hkv, S, D)
        of = (torch.arange(len(queries)) // group)[:, None]                              # (H, 1) line of keys of each head
        sees = lambda key: (key[:, None] <= pos[:, None]) & (key < s)[:, None]                       # (H, rows, m)
        inside = torch.arange(self.bk)

        def block(start: Tensor, end: Tensor):
            """The largest product with the keys of one block of each half."""
            at = start if self.representative == "first" else start + (end - start) // 2
            key = (at[..., None] * self.bk + inside).flatten(1)                                           # (H, m * bk)
            product = (queries @ keys[of, key.clamp(max=s - 1)].mT).masked_fill(~sees(key), float("-inf"))
            return product.amax(1).unflatten(1, (-1, self.bk)).amax(2)

        def mean(start: Tensor, end: Tensor):
            """The largest product with the mean of a half's keys, for rows that see its first one."""
            sums = torch.nn.functional.pad(keys.double().cumsum(1), (0, 0, 1, 0))                         # (·, S + 1, D)
            upto = lambda edge: sums[of, (edge * self.bk).clamp(max=s)]                                   # (H, m, D)
            size = ((end * self.bk).clamp(max=s) - (start * self.bk).clamp(max=s)).clamp(min=1)
            product = queries @ ((upto(end) - upto(start)) / size[..., None]).to(q.dtype).mT              # (H, rows, m)
            return product.masked_fill(~sees(start * self.bk), float("-inf")).amax(1)

        def best(start: Tensor, end: Tensor):
            """The largest product with any key of a half."""
            every = torch.arange(s).expand(len(queries), s)
            top = (queries @ keys[of[:, 0]].mT).masked_fill(~sees(every), float("-inf")).amax(1)                    # (H, S)
            pick = (every[:, None] >= (start * self.bk)[..., None]) & (every[:, None] < (end * self.bk)[..., None])
            return top[:, None].masked_fill(~pick, float("-inf")).amax(2)

        return {"mean": mean, "max_oracle": best}.get(self.representative, block)

    def full(self, keys: int) -> HiP:
        return replace(self, mask_k=max(self.mask_k, self.bq, math.ceil(keys / self.bk) * self.bk))


def descent_trace(q: Tensor, k: Tensor, method: HiP, *, tokens: list[str], pos_q: Tensor | None = None,
                  subject: dict | None = None) -> Trace:
    """The descent of one query block of one head, schema "attention.descent/1": a step is one round.

    `q (1, 1, rows, D)`, `k (1, 1, S, D)`; `tokens` names the S keys.
    """
    check_qkv(q, k)
    if q.shape[:2] != (1, 1) or q.shape[2] > method.bq:
        raise ValueError(f"q must be one block of one head, (1, 1, <= bq = {method.bq}, D); got {tuple(q.shape)}")
    pos, s = positions(q, k, pos_q), k.shape[2]
    recorder = Recorder("attention.descent/1", method="hip", params={"mask_k": method.mask_k, "bq": method.bq,
                        "bk": method.bk, "representative": method.representative},
                        subject={"tokens": list(tokens), **(subject or {})})
    for step in method.descend(q, k, pos):
        for kind, chosen in (("kept", step.kept[0]), ("dropped", ~step.kept[0] & (step.end > step.start)[0])):
            recorder.events(kind, start=(step.start[0][chosen] * method.bk).numpy(),
                            end=(step.end[0][chosen] * method.bk).clamp(max=s).numpy(),
                            score=step.score[0][chosen].numpy())
        recorder.next_step()
    product = (q[0, 0].float() @ k[0, 0].float().T).masked_fill(torch.arange(s) > pos[:, None], float("-inf"))
    return recorder.finish(score=product.amax(0).numpy().astype(np.float32))
