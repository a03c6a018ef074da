"""HyperAttention: hash queries and keys so that heavy pairs meet in blocks, estimate the rest from a sample of keys.

Idea        Random planes cut space into bins; a query and a key that point the same way tend to share one. Sort both by
            bin, cut both lists into blocks, and attend exactly inside matched blocks: the heavy pairs, it is hoped. For
            everything outside, draw a few keys at random and let each stand for many.
Rule        Bins: bit i of a row x is [x·w_i > 0]. Rows are sorted (stably) by the rank of their bin in the Gray code, so
            that neighbouring bins differ in one plane only. Block I of the queries meets block I of the keys: partial 1.
            Draw m keys with replacement; drop those of the row's own block; add log(S/m) to the logits: partial 2. Merge.
            Causal, n rows: both halves causally by themselves, the second half's queries with the first half's keys as
            above, merge; n <= min_len is exact.
            Numerator and denominator are each unbiased; their quotient is not.
Cost        scored counts the (T + S)·planes products of hashing, loaded the block + samples rows that each query reads
            in every rectangle of the recursion, and all rows of its exact triangles: near-linear in the length.
Paper       Han et al. 2024, section 2 (algorithms 1 to 3) and section 3 (causal recursion); section numbers unverified.
Differs     The published code gives a bin its own Gray code as rank; the property needs the inverse (see the museum).
            Its CUDA path counts sampled keys of the own block twice. Lengths that blocks do not divide end in short
            blocks and uneven halves instead of padding. Grouped heads, and fewer queries than keys (the earlier keys are
            one more rectangle) are ours, as is `sinks`: the first keys read exactly by every row, never hashed. The
            paper estimates numerator and denominator from two samples; its code, and this file, use one for both.
See also    lightning (linear for another reason), oracle_topk (what the best block could hold), tutor/kernels/hyper.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tutor.attention import dense
from tutor.attention.dense import causal_pairs, check_qkv, positions
from tutor.attention.partial import Partial, from_logits, merge
from tutor.attention.selection import need
from tutor.catalog import method
from tutor.cost import Cost

ROWS = 512      # query rows whose exact logits are held at a time


class Step(NamedTuple):
    """One piece of the attention matrix: rows `[row, row_end)` against keys `[key, key_end)`.

    Attributes:
        causal: a triangle on the diagonal; otherwise every row sees every key of the piece.
        exact: computed as it stands; otherwise hashed and sampled.
    """

    row: int
    row_end: int
    key: int
    key_end: int
    causal: bool
    exact: bool


class Sorted(NamedTuple):
    """Where sorting puts each row: `q_order (B, Hq, T)`, `k_order (B, Hkv, S)` index the rows; ranks are those of the bins.

    Row i of the sorted queries lies in block `i // bq`, row j of the sorted keys in block `j // bk`.
    """

    q_order: Tensor
    k_order: Tensor
    q_rank: Tensor
    k_rank: Tensor
    bq: int
    bk: int

    def together(self) -> Tensor:
        """bool `(B, Hq, T, S)`, in the order of the text: True where query and key lie in matched blocks."""
        groups = self.q_order.shape[1] // self.k_order.shape[1]
        q_block = torch.argsort(self.q_order) // self.bq                                   # (B, Hq, T)
        k_block = (torch.argsort(self.k_order) // self.bk).repeat_interleave(groups, 1)    # (B, Hq, S)
        return q_block[..., :, None] == k_block[..., None, :]


class Drawn(NamedTuple):
    """A sample of keys: `place (B, Hkv, m)` in the sorted list, `weight (B, Hkv, m)` added to a logit, log 1 / (m p)."""

    place: Tensor
    weight: Tensor


def hash_bins(x: Tensor, planes: Tensor) -> Tensor:
    """Bin of each row, int64 `(...)`: bit i tells on which side of plane i it lies. `x (..., D)`, `planes (D, r)`."""
    bits = (x.double() @ planes.double() > 0).long()                                       # (..., r)
    return (bits << torch.arange(planes.shape[1], device=x.device)).sum(-1)


def gray_rank(bins: Tensor) -> Tensor:
    """Place of each bin in the Gray code, which lists all bins so that neighbours differ in one bit.

    The code's entry number i is `i ^ (i >> 1)`; this is its inverse: XOR of all right shifts of the bin.
    """
    rank, left = bins.clone(), bins >> 1
    while bool((left > 0).any()):
        rank, left = rank ^ left, left >> 1
    return rank


@method("hyper", "attention", "HyperAttention", paper="han2024hyperattention",
        kernel="tutor.kernels.hyper.hyper_attention", flags=("attends", "estimator", "lossy"),
        grid=({"block": 16, "samples": 16, "min_len": 64}, {"block": 64, "samples": 64, "min_len": 64},
              {"block": 256, "samples": 256, "min_len": 512}))
@dataclass(frozen=True)
class Hyper:
    """Sorted hashing and sampling.

    Attributes:
        planes: r, planes that cut space; 2^r bins, 1 to 16.
        block: keys of a block.
        samples: m, keys drawn for the rest; 0 leaves the rest out.
        min_len: rectangles with fewer query rows, and triangles with no more, are computed exactly.
        sampling: "uniform", or "vnorm": a key is drawn with probability ~ |v|^2.
        sinks: first keys that every row reads exactly; they are neither hashed nor drawn.
        seed: of planes and samples, where no generator is given.
    """

    planes: int = 7
    block: int = 256
    samples: int = 256
    min_len: int = 4096
    sampling: str = "uniform"
    sinks: int = 0
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.planes <= 16:
            raise ValueError(f"planes must be 1 to 16; got {self.planes}. 2^planes bins should not outnumber the keys")
        need(self.block, 1, "block")
        need(self.samples, 0, "samples")
        need(self.min_len, 1, "min_len", "It ends the recursion")
        need(self.sinks, 0, "sinks")
        if self.sampling not in ("uniform", "vnorm"):
            raise ValueError(f"sampling must be 'uniform' or 'vnorm'; got {self.sampling!r}")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None,
               pos_q: Tensor | None = None, generator: torch.Generator | None = None) -> Partial:
        """Estimated attention; its `lse` estimates the log of the denominator.

        Args:
            q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; half precision is computed in float32.
            pos_q: `(T,)` consecutive positions of the query rows; the last T unless given.
            generator: of planes and samples; made from `seed` unless given.
        """
        check_qkv(q, k, v)
        dtype = q.dtype
        end = _end(positions(q, k, pos_q), k.shape[2]) if causal else k.shape[2]
        q, k, v = (x.to(torch.float64 if dtype == torch.float64 else torch.float32) for x in (q, k, v))
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        planes, generator = self.start(q, generator)
        part = over_plan(self.plan(q.shape[2], end, causal=causal), q, k, v,
                         lambda q, k, v, causal: _exact(q, k, v, causal=causal, scale=scale),
                         lambda q, k, v: self.estimate(q, k, v, planes, scale=scale, generator=generator))
        return Partial(part.o.to(dtype), part.lse)

    def start(self, q: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, torch.Generator]:
        """The planes `(D, r)` of a whole text, and the generator that draws its samples next."""
        generator = torch.Generator().manual_seed(self.seed) if generator is None else generator
        planes = torch.randn(q.shape[-1], self.planes, generator=generator, device=generator.device)
        return planes.to(q.device, torch.promote_types(q.dtype, torch.float32)), generator

    def plan(self, t: int, s: int, *, causal: bool = True) -> list[Step]:
        """The pieces that T query rows, the last of S keys, are computed from: disjoint, and together all they may see."""
        kept = min(self.sinks, s)
        if not causal:
            steps = [Step(0, t, kept, s, False, t < self.min_len)]
            forced = [Step(0, t, 0, kept, False, True)]
        else:
            steps = list(self._causal(t, s, kept))
            late = max(0, min(t, t - s + kept))                             # rows before it stand among the sinks
            early = max(0, t - s)                                           # rows before it see nothing
            forced = [Step(early, late, s - t + early, kept, True, True),
                      Step(early, late, 0, s - t + early, False, True), Step(late, t, 0, kept, False, True)]
        return [step for step in [*forced, *steps] if step.row < step.row_end and step.key < step.key_end]

    def _causal(self, t: int, s: int, first: int) -> list[Step]:
        """Keys `[first, s)`: what stands before the queries as a rectangle, the rest as a triangle cut again and again."""
        start = max(first, s - t)                                           # the first key that is also a query row
        yield Step(t - (s - start), t, first, start, False, s - start < self.min_len)
        triangles = [(start, s)]
        while triangles:
            a, b = triangles.pop()
            row, row_end, middle = a + t - s, b + t - s, (a + b + 1) // 2
            if b - a <= self.min_len:
                yield Step(row, row_end, a, b, True, True)
            else:
                yield Step(middle + t - s, row_end, a, middle, False, b - middle < self.min_len)
                triangles += [(middle, b), (a, middle)]

    def rank(self, bins: Tensor) -> Tensor:
        """The number that bins are sorted by."""
        return gray_rank(bins)

    def sort(self, q: Tensor, k: Tensor, planes: Tensor) -> Sorted:
        """Hash, rank and sort the rows of a rectangle; cut keys into blocks, and queries into as many."""
        q_rank, k_rank = (self.rank(hash_bins(x, planes)) for x in (q, k))
        blocks = max(1, math.ceil(k.shape[2] / self.block))
        return Sorted(q_rank.argsort(dim=-1, stable=True), k_rank.argsort(dim=-1, stable=True), q_rank, k_rank,
                      math.ceil(q.shape[2] / blocks), self.block)

    def estimate(self, q: Tensor, k: Tensor, v: Tensor, planes: Tensor, *, scale: float,
                 generator: torch.Generator) -> Partial:
        """One rectangle, in which every query sees every key: matched blocks and samples, merged."""
        order = self.sort(q, k, planes)
        return self.step(q, k, v, order, self.draw(v, order, generator), scale=scale)

    def draw(self, v: Tensor, order: Sorted, generator: torch.Generator) -> Drawn | None:
        """Samples for one rectangle, with replacement, alike for all queries of a KV head; None if there are none."""
        if not self.samples:
            return None
        chance = self.chances(v).gather(2, order.k_order)                                  # (B, Hkv, S), sorted
        place = torch.multinomial(chance.flatten(0, 1).to(generator.device), self.samples, replacement=True,
                                  generator=generator).to(v.device).reshape(*chance.shape[:2], self.samples)
        return Drawn(place, -torch.log(self.samples * chance.gather(2, place)))

    def step(self, q: Tensor, k: Tensor, v: Tensor, order: Sorted, drawn: Drawn | None, *, scale: float) -> Partial:
        """One rectangle, given where sorting puts each row and which keys are drawn."""
        groups = q.shape[1] // k.shape[1]
        qs, ks, vs = _take(q, order.q_order), _take(k, order.k_order), _take(v, order.k_order)
        qs = qs.unflatten(1, (-1, groups))                                  # (B, Hkv, G, T, D)
        near = self._blocks(qs, ks, vs, order.bq, scale)
        part = near if drawn is None else merge(near, self._sampled(qs, ks, vs, order.bq, scale, drawn))
        back = torch.argsort(order.q_order)
        return Partial(_take(part.o.flatten(1, 2), back), part.lse.flatten(1, 2).gather(2, back))

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor, bq: int, scale: float) -> Partial:
        """Exact attention of each block of sorted queries `(B, Hkv, G, T, D)` to its block of sorted keys."""
        t, s, blocks = q.shape[3], k.shape[2], math.ceil(k.shape[2] / self.block)
        q = _pad(q, blocks * bq).unflatten(3, (blocks, bq))                                # (B, Hkv, G, n, bq, D)
        k, v = (_pad(x, blocks * self.block).unflatten(2, (blocks, self.block))[:, :, None] for x in (k, v))
        logits = scale * (q @ k.transpose(-1, -2))                                         # (B, Hkv, G, n, bq, block)
        real = (torch.arange(blocks * self.block, device=q.device) < s).reshape(blocks, 1, self.block)
        part = from_logits(logits.masked_fill(~real, float("-inf")), v)
        return Partial(part.o.flatten(3, 4)[:, :, :, :t], part.lse.flatten(3, 4)[:, :, :, :t])

    def _sampled(self, q: Tensor, k: Tensor, v: Tensor, bq: int, scale: float, drawn: Drawn) -> Partial:
        """A sample of the sorted keys stands for all keys outside a row's own block."""
        place, weight = drawn
        logits = scale * (q @ _take(k, place)[:, :, None].transpose(-1, -2)) + weight[:, :, None, None].to(q.dtype)
        own = torch.arange(q.shape[3], device=q.device)[:, None] // bq == place[:, :, None] // self.block
        return from_logits(logits.masked_fill(own[:, :, None], float("-inf")), _take(v, place)[:, :, None])

    def chances(self, v: Tensor) -> Tensor:
        """Probability `(B, Hkv, S)` that a draw takes a key. With "vnorm" a zero value keeps a small one: its weight counts."""
        v = v.to(torch.promote_types(v.dtype, torch.float32))
        size = v.square().sum(-1) if self.sampling == "vnorm" else torch.ones_like(v[..., 0])
        size = (size / size.amax(-1, keepdim=True).clamp(min=1e-30)).clamp(min=1e-6)
        return size / size.sum(-1, keepdim=True)

    def cost(self, q: Tensor, k: Tensor, v: Tensor | None = None, *, causal: bool = True) -> Cost:
        """Counted from the plan; it depends on lengths only. A key drawn twice is read twice."""
        check_qkv(q, k, v)
        (batch, hq, t, _), (hkv, s) = q.shape, k.shape[1:3]
        scored = loaded = 0
        for row, row_end, key, key_end, triangle, exact in self.plan(t, s, causal=causal):
            rows, keys = row_end - row, key_end - key
            if triangle:
                loaded += hq * rows * (rows + 1) // 2
            elif exact:
                loaded += hq * rows * keys
            else:
                bq = math.ceil(rows / math.ceil(keys / self.block))
                near = sum((min((i + 1) * bq, rows) - i * bq) * (min((i + 1) * self.block, keys) - i * self.block)
                           for i in range(math.ceil(rows / bq)))
                loaded += hq * (near + rows * self.samples)
                scored += self.planes * (hq * rows + hkv * keys)
        pairs = hq * (causal_pairs(positions(q, k), s) if causal else t * s)
        return Cost(scored=batch * scored, loaded=batch * loaded, pairs=batch * pairs)


class Hardness(NamedTuple):
    """What the paper's guarantee depends on, per query head `(B, Hq)`; at best alpha is 1 (if T = S) and log_kappa 0.

    Attributes:
        alpha: T times the largest squared norm of a column of the attention weights: a column that all rows look at.
        log_kappa: log of the largest over the smallest row sum of exp(logit), over pairs outside matched blocks.
    """

    alpha: Tensor
    log_kappa: Tensor


def hardness(q: Tensor, k: Tensor, together: Tensor | None = None) -> Hardness:
    """Measured on a rectangle in which every query sees every key; `together` marks pairs that need no sample."""
    a = dense.probs(q, k, causal=False)                                                    # (B, Hq, T, S)
    rest = dense.logits(q, k, causal=False, mask=None if together is None else ~together).logsumexp(-1)
    return Hardness(q.shape[2] * a.square().sum(2).amax(-1), rest.amax(-1) - rest.amin(-1))


# ------------------------------------------------------------------------------------------------------------- parts

def over_plan(steps: Iterable[Step], q: Tensor, k: Tensor, v: Tensor, exact: Callable[..., Partial],
              estimate: Callable[..., Partial]) -> Partial:
    """Join what `exact(q, k, v, causal)` and `estimate(q, k, v)` make of each piece; sums are float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    o = torch.zeros(*q.shape[:3], v.shape[3], dtype=wide, device=q.device)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=wide, device=q.device)
    for row, row_end, key, key_end, causal, is_exact in steps:
        rows, keys = slice(row, row_end), slice(key, key_end)
        piece = q[:, :, rows], k[:, :, keys], v[:, :, keys]
        part = exact(*piece, causal) if is_exact else estimate(*piece)
        part = merge(Partial(o[:, :, rows], lse[:, :, rows]), Partial(part.o.to(wide), part.lse))
        o[:, :, rows], lse[:, :, rows] = part.o, part.lse
    return Partial(o, lse)


def _exact(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Partial:
    """Dense attention a few rows at a time; a triangle's rows meet no keys behind the last of them."""
    pos, parts = positions(q, k), []
    for rows in (slice(a, a + ROWS) for a in range(0, q.shape[2], ROWS)):
        seen = int(pos[rows][-1]) + 1 if causal else k.shape[2]
        parts.append(dense.attend(q[:, :, rows], k[:, :, :seen], v[:, :, :seen], causal=causal, scale=scale, dtype=q.dtype,
                                  pos_q=pos[rows]))
    return Partial(torch.cat([part.o for part in parts], 2), torch.cat([part.lse for part in parts], 2))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `x (B, H, N, X)` by `index (B, H, M)`: `(B, H, M, X)`."""
    return x.gather(2, index[..., None].expand(*index.shape, x.shape[-1]))


def _pad(x: Tensor, length: int) -> Tensor:
    """Zero rows below, until there are `length`."""
    return torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[-2]))


def _end(pos: Tensor, keys: int) -> int:
    """How many keys the last of consecutive query rows sees; other rows are refused."""
    if bool((pos.diff() != 1).any()) or (len(pos) and int(pos[-1]) >= keys):
        raise ValueError(f"pos_q must be consecutive and below S = {keys}: hashing sorts all rows of a piece of text; got "
                         f"{pos.tolist()[:8]}. Pass the whole piece, and take the rows you want from the result")
    return int(pos[-1]) + 1 if len(pos) else 0
