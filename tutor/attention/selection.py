"""Selections: which keys each query reads, what choosing and reading them costs, and how good the choice was.

Idea        Every sparse attention is two steps: choose some keys for each query, then attend to those exactly. The
            second step is the same for all methods, so it is written once, here; a method is only its choice.
Rule        select(q, k, ...) -> (Selection, Cost);  attend_selected(q, k, v, selection) -> Partial.
            A selection never holds a key twice, never one that the causal mask forbids, and lists keys ascending.
Error       With kept mass rho = sum of A_ij over the kept keys, output o^ over the kept and o~ over the dropped ones:
            o - o^ = (1 - rho)(o~ - o^), exactly. Hence |o - o^| <= 2 (1 - rho) max |v_j|: kept mass bounds the error,
            but if the dropped values average to the same output, dropping them is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutor.attention.dense import attend, causal_mask, causal_pairs, check_qkv, positions, probs
from tutor.attention.partial import Partial
from tutor.cost import Cost
from tutor.trace import Recorder

GATHER = 1 << 22     # (k, v) rows gathered at a time by `attend_selected`, divided by the head width


@dataclass(frozen=True, eq=False)
class Selection:
    """The keys that each query row reads.

    Attributes:
        kind: "token" (a list of keys per row) or "block" (a bool per pair of query block and key block).
        shape: `(B, Hq, T, S)`.
        pos: int64 `(T,)`, position of each query row; no row reads a key beyond it (unless `causal` is False).
        indptr, indices: token kind: row `r = (b * Hq + h) * T + t` reads `indices[indptr[r]:indptr[r + 1]]`.
        blocks, bq, bk: block kind: bool `(B, Hq, ceil(T / bq), ceil(S / bk))`, and the sides of a block.
        causal: whether keys beyond a row's position are cut.

    Build one with `from_mask`, `from_rows` or `from_blocks`; all of them validate, and cut by the causal mask.
    """

    kind: str
    shape: tuple[int, int, int, int]
    pos: Tensor
    indptr: Tensor | None = None
    indices: Tensor | None = None
    blocks: Tensor | None = None
    bq: int = 0
    bk: int = 0
    causal: bool = True

    def __post_init__(self):
        b, hq, t, s = self.shape
        if self.pos.shape != (t,):
            raise ValueError(f"pos must have one position per query row, shape ({t},); got {tuple(self.pos.shape)}")
        if self.kind == "token":
            self._check_tokens(b * hq * t, s)
        elif self.kind == "block":
            if self.bq < 1 or self.bk < 1:
                raise ValueError(f"block sides must be >= 1; got bq={self.bq}, bk={self.bk}")
            want = (b, hq, math.ceil(t / self.bq), math.ceil(s / self.bk))
            if self.blocks is None or self.blocks.dtype != torch.bool or tuple(self.blocks.shape) != want:
                got = None if self.blocks is None else f"{self.blocks.dtype} {tuple(self.blocks.shape)}"
                raise ValueError(f"blocks must be bool of shape (B, Hq, ceil(T/bq), ceil(S/bk)) = {want}; got {got}")
        else:
            raise ValueError(f"kind must be 'token' or 'block'; got {self.kind!r}")

    def _check_tokens(self, rows: int, s: int) -> None:
        if self.indptr is None or self.indices is None or self.indptr.shape != (rows + 1,):
            raise ValueError(f"a token selection needs indices, and indptr of shape ({rows + 1},): {rows} rows")
        ends = int(self.indptr[0]), int(self.indptr[-1])
        if ends != (0, len(self.indices)) or bool((self.indptr.diff() < 0).any()):
            raise ValueError("indptr must start at 0, never fall, and end at len(indices)")
        if not len(self.indices):
            return
        if int(self.indices.min()) < 0 or int(self.indices.max()) >= s:
            raise ValueError(f"indices must be in [0, {s}); got {int(self.indices.min())} to {int(self.indices.max())}")
        row = self.row_of()
        step, same_row = self.indices.diff(), row.diff() == 0
        if bool((same_row & (step == 0)).any()):
            where = int(row[1:][same_row & (step == 0)][0])
            raise ValueError(f"row {where} holds a key twice; a key may be read once, remove the duplicate")
        if bool((same_row & (step < 0)).any()):
            raise ValueError("indices must ascend within each row; sort them")
        if self.causal and bool((self.indices > self.pos[row % self.shape[2]]).any()):
            raise ValueError("a row holds a key beyond its own position; cut the selection by the causal mask")

    # ------------------------------------------------------------------------------------------------ constructors

    @classmethod
    def from_mask(cls, mask: Tensor, q: Tensor, k: Tensor, *, pos_q: Tensor | None = None,
                  causal: bool = True) -> Selection:
        """Token selection of the True entries of a bool mask broadcastable to `(B, Hq, T, S)`."""
        shape, pos = (*q.shape[:3], k.shape[2]), positions(q, k, pos_q)
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, True where a key is read; got {mask.dtype}")
        return _of_mask((mask & causal_mask(pos, shape[3]) if causal else mask).expand(shape), pos, causal)

    @classmethod
    def from_rows(cls, rows: list[list[int]], q: Tensor, k: Tensor, *, pos_q: Tensor | None = None,
                  causal: bool = True) -> Selection:
        """Token selection from one list of keys per row, `B * Hq * T` lists, row `(b * Hq + h) * T + t`.

        Lists need not be sorted; keys beyond the row's position are cut; a key that occurs twice is an error.
        """
        shape, pos = (*q.shape[:3], k.shape[2]), positions(q, k, pos_q)
        if len(rows) != math.prod(shape[:3]):
            raise ValueError(f"rows must hold B*Hq*T = {math.prod(shape[:3])} lists; got {len(rows)}")
        ends = pos.tolist()
        cut = [sorted(int(j) for j in row if not causal or j <= ends[r % shape[2]]) for r, row in enumerate(rows)]
        indices = torch.tensor([j for row in cut for j in row], dtype=torch.long)
        return cls("token", shape, pos, _indptr(torch.tensor([len(row) for row in cut])), indices, causal=causal)

    @classmethod
    def from_blocks(cls, blocks: Tensor, q: Tensor, k: Tensor, *, bq: int, bk: int, pos_q: Tensor | None = None,
                    causal: bool = True) -> Selection:
        """Block selection from a bool `(B, Hq, ceil(T/bq), ceil(S/bk))`; blocks wholly beyond the diagonal are cut."""
        shape, pos = (*q.shape[:3], k.shape[2]), positions(q, k, pos_q)
        if causal and blocks.ndim == 4 and bq >= 1 and bk >= 1:
            last = torch.stack([rows.max() for rows in pos.split(bq)])               # (nQb,) latest position
            blocks = blocks & (torch.arange(blocks.shape[3]) * bk <= last[:, None])
        return cls("block", shape, pos, blocks=blocks, bq=bq, bk=bk, causal=causal)

    # ------------------------------------------------------------------------------------------------------ views

    @property
    def nnz(self) -> int:
        """How many (row, key) pairs are read."""
        return len(self.indices) if self.kind == "token" else int(self.mask().sum())

    def counts(self) -> Tensor:
        """Keys read by each row, int64 `(B, Hq, T)`."""
        counts = self.indptr.diff() if self.kind == "token" else self.mask().sum(-1)
        return counts.reshape(self.shape[:3])

    def row_of(self) -> Tensor:
        """Row number of every entry of `indices`, `(nnz,)`."""
        return torch.repeat_interleave(torch.arange(len(self.indptr) - 1), self.indptr.diff())

    def mask(self) -> Tensor:
        """The same selection as a bool `(B, Hq, T, S)`."""
        b, hq, t, s = self.shape
        if self.kind == "token":
            out = torch.zeros(b * hq * t, s, dtype=torch.bool)
            out[self.row_of(), self.indices] = True
            return out.reshape(self.shape)
        wide = self.blocks.repeat_interleave(self.bq, 2)[:, :, :t].repeat_interleave(self.bk, 3)[..., :s]
        return wide & causal_mask(self.pos, s) if self.causal else wide

    def to_token(self) -> Selection:
        """The same keys as a token selection."""
        return self if self.kind == "token" else _of_mask(self.mask(), self.pos, self.causal)

    def take(self, rows: Tensor) -> Selection:
        """Only the query rows `rows (T',)`: how a method that must see every query is judged on a few of them."""
        b, hq, t, s = self.shape
        rows = torch.arange(t)[torch.as_tensor(rows)]                      # a mask and negative numbers name rows, too
        shape, pos = (b, hq, len(rows), s), self.pos[rows]
        if self.kind == "block":
            wide = self.blocks[:, :, rows // self.bq].repeat_interleave(self.bk, 3)[..., :s]         # (B, Hq, T', S)
            return _of_mask(wide & causal_mask(pos, s) if self.causal else wide, pos, self.causal)
        row = (torch.arange(b * hq)[:, None] * t + rows).flatten()         # (B*Hq*T',) numbers of the rows taken
        counts = self.indptr.diff()[row]
        indptr = _indptr(counts)
        at = torch.arange(int(indptr[-1])) + torch.repeat_interleave(self.indptr[row] - indptr[:-1], counts)
        return Selection("token", shape, pos, indptr, self.indices[at], causal=self.causal)


def _of_mask(mask: Tensor, pos: Tensor, causal: bool) -> Selection:
    """Token selection of the True entries `(B, Hq, T, S)`, cut already."""
    flat = mask.flatten().nonzero()[:, 0]                                  # (nnz,) ascending: row by row, key by key
    return Selection("token", tuple(mask.shape), pos, _indptr(mask.sum(-1).flatten()), flat % mask.shape[3], causal=causal)


def _indptr(counts: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.long), counts.long().cumsum(0)])


# ---------------------------------------------------------------------------------------------- attending to the choice

def attend_selected(q: Tensor, k: Tensor, v: Tensor, sel: Selection, *, causal: bool = True, scale: float | None = None,
                    dtype: torch.dtype = torch.float64, pos_q: Tensor | None = None) -> Partial:
    """Exact attention over the selected keys; reads those `(k, v)` rows and no other.

    Args:
        q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`.
        causal: also cut keys beyond `pos_q` (no effect on a selection that was built causal).
        dtype: what everything is computed in; the truth is float64.
        pos_q: positions of the query rows; those of the selection unless given.
    """
    check_qkv(q, k, v)
    if sel.shape != (*q.shape[:3], k.shape[2]):
        raise ValueError(f"the selection was made for (B, Hq, T, S) = {sel.shape}; "
                         f"q and k give {(*q.shape[:3], k.shape[2])}")
    b, hq, t, s = sel.shape
    pos, sel = sel.pos if pos_q is None else positions(q, k, pos_q), sel.to_token()
    keys_of = k.to(dtype).reshape(-1, k.shape[3])                          # (B*Hkv*S, D)
    values_of = v.to(dtype).reshape(-1, v.shape[3])
    queries = q.to(dtype).reshape(-1, q.shape[3])                          # (B*Hq*T, D)
    head = torch.arange(b * hq).repeat_interleave(t)                       # (B*Hq*T,) b * Hq + h
    first_key = ((head // hq) * k.shape[1] + (head % hq) // (hq // k.shape[1])) * s    # where the row's KV head begins
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale

    o = queries.new_zeros(b * hq * t, v.shape[3])
    lse = queries.new_full((b * hq * t,), float("-inf"))
    limit = max(1, GATHER // q.shape[3])
    for rows in _batches(sel.indptr, limit):
        mine = slice(int(sel.indptr[rows[0]]), int(sel.indptr[rows[-1] + 1]))
        row = torch.repeat_interleave(torch.arange(len(rows)), sel.indptr[rows + 1] - sel.indptr[rows])   # (n,)
        key = sel.indices[mine]
        where = first_key[rows][row] + key                                 # (n,) line in the flat keys
        logit = (queries[rows][row] * keys_of[where]).sum(-1) * scale
        if causal:
            logit = logit.masked_fill(key > pos[rows % t][row], float("-inf"))
        m = logit.new_full((len(rows),), float("-inf")).scatter_reduce(0, row, logit, "amax")
        m = torch.where(m == float("-inf"), 0.0, m)
        weight = torch.exp(logit - m[row])
        total = logit.new_zeros(len(rows)).index_add(0, row, weight)
        mixed = logit.new_zeros(len(rows), v.shape[3]).index_add(0, row, weight[:, None] * values_of[where])
        o[rows] = mixed / torch.where(total > 0, total, 1.0)[:, None]
        lse[rows] = m + torch.log(total)
    return Partial(o.reshape(b, hq, t, -1), lse.reshape(b, hq, t))


def _batches(indptr: Tensor, limit: int) -> list[Tensor]:
    """Consecutive row numbers, cut so that each batch reads at most `limit` keys (one row may exceed it alone)."""
    ends, batches, start = indptr.tolist(), [], 0
    for row in range(1, len(ends)):
        if row == len(ends) - 1 or ends[row + 1] - ends[start] > limit:
            batches.append(torch.arange(start, row))
            start = row
    return batches


# ------------------------------------------------------------------------------------------ what selectors share

class Selector:
    """Base of the methods that choose keys. A method is a frozen dataclass of parameters with `select`.

    `pos_q (T,)` gives the positions of the query rows when they are not the last T; a *rowwise* method answers each
    row from that row alone, so a caller may ask for a few rows only. `full(S)` is the same method with parameters
    that leave out nothing of S keys: the contract test compares it with dense attention.
    """

    def select(self, q: Tensor, k: Tensor, *, v: Tensor | None = None, pos_q: Tensor | None = None,
               generator: torch.Generator | None = None, trace: Recorder | None = None) -> tuple[Selection, Cost]:
        raise NotImplementedError(f"{type(self).__name__} must define select(q, k, ...)")

    def full(self, keys: int) -> Selector:
        raise NotImplementedError(f"{type(self).__name__} must define full(keys)")


def finish(sel: Selection, *, scored: int = 0, trace: Recorder | None = None,
           **counters: int) -> tuple[Selection, Cost]:
    """What every `select` returns: the selection, its cost, and its story if one is asked for.

    The story is one step per query row (schema "attention.grid/1"): an event "selected" with head, row and count.
    """
    b, hq, t, s = sel.shape
    if trace is not None:
        counts = sel.counts()
        for row in range(t):
            trace.events("selected", head=range(b * hq), row=[row] * (b * hq),
                         count=counts[:, :, row].flatten().numpy())
            trace.next_step()
    pairs = b * hq * (causal_pairs(sel.pos, s) if sel.causal else t * s)
    return sel, Cost(scored=scored, loaded=sel.nnz, pairs=pairs, **counters)


def need(value: float, low: float, name: str, remedy: str = "") -> None:
    """Raise `ValueError` unless `value >= low`: how methods check their budgets when they are made."""
    if not value >= low:
        raise ValueError(f"{name} must be >= {low}; got {value}" + (f". {remedy}" if remedy else ""))


def top_k(scores: Tensor, k: int) -> Tensor:
    """bool mask of the k largest entries of each row `(..., S)`; ties go to the lower index, `-inf` is never taken."""
    n = scores.shape[-1]
    allowed = scores > float("-inf")
    if k >= n:
        return allowed
    bar = scores.topk(k, dim=-1).values[..., -1:]                          # the k-th largest value of each row
    above, level = scores > bar, (scores == bar) & allowed
    room = k - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


# ------------------------------------------------------------------------------------------------------- metrics

def mass_recall(q: Tensor, k: Tensor, sel: Selection, *, scale: float | None = None) -> Tensor:
    """Kept mass rho of each row `(B, Hq, T)`: the share of the dense attention weight that lies on selected keys."""
    a = probs(q, k, causal=sel.causal, scale=scale, pos_q=sel.pos)         # (B, Hq, T, S)
    return torch.where(sel.mask(), a, 0.0).sum(-1)


def topk_recall(q: Tensor, k: Tensor, sel: Selection, kk: int, *, scale: float | None = None) -> Tensor:
    """Share of each row's `kk` heaviest keys that were selected `(B, Hq, T)`; of all its keys when it has fewer."""
    need(kk, 1, "kk")
    a = probs(q, k, causal=sel.causal, scale=scale, pos_q=sel.pos)
    allowed = causal_mask(sel.pos, a.shape[-1]) if sel.causal else torch.ones(a.shape[-2:], dtype=torch.bool)
    best = top_k(torch.where(allowed, a, float("-inf")), kk)
    return (best & sel.mask()).sum(-1) / best.sum(-1).clamp(min=1)


def output_error(approximate: Tensor, exact: Tensor) -> Tensor:
    """Relative error `|o - o^| / |o|` of each row `(B, Hq, T)`; 0 where both are zero."""
    exact = exact.double()
    gap = (exact - approximate.double()).norm(dim=-1)
    return torch.where(gap > 0, gap / exact.norm(dim=-1), 0.0)


@dataclass(frozen=True)
class Split:
    """Dense attention cut in two by a selection: `whole == merge(kept, dropped)`.

    Attributes:
        rho: kept mass `(B, Hq, T)`.
        whole, kept, dropped: attention over all keys, over the selected ones and over the others.
    """

    rho: Tensor
    whole: Partial
    kept: Partial
    dropped: Partial

    def error(self) -> Tensor:
        """`o - o^` as the identity predicts it, `(1 - rho)(o~ - o^)`, of shape `(B, Hq, T, Dv)`."""
        return (1 - self.rho)[..., None] * (self.dropped.o - self.kept.o)


def split(q: Tensor, k: Tensor, v: Tensor, sel: Selection, *, scale: float | None = None) -> Split:
    """Attend to the selected keys, to the rest and to all, in float64: the error identity as three tensors."""
    mask, options = sel.mask(), {"causal": sel.causal, "scale": scale, "pos_q": sel.pos}
    whole = attend(q, k, v, **options)
    kept, dropped = attend(q, k, v, mask=mask, **options), attend(q, k, v, mask=~mask, **options)
    rho = torch.where(whole.lse > float("-inf"), torch.exp(kept.lse - whole.lse), 1.0)
    return Split(rho, whole, kept, dropped)
