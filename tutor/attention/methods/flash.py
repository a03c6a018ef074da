"""FlashAttention: exact attention in tiles, never holding the T x S matrix.

Idea        Attention is slow because it moves a T x S matrix to memory and back, not because it multiplies. Cut queries
            and keys into blocks that fit in fast memory, attend tile by tile, and join each tile's partial result with
            what the row has so far. The matrix never exists; the log-sum-exp that is kept allows to rebuild any weight.
Rule        for each tile (i, j):  state_i <- merge(state_i, softmax over the tile).
            A tile is skipped when all its keys lie beyond the last query of the block (causal), or by a block mask.
            order=2: for i, for j: one query block's state stays in fast memory until it is finished.
            order=1: for j, for i: a key block stays; every query block's state is read and written once per key block.
Backward    what was not stored is made again: with L_i kept, a tile's weights are P = exp(S - L). Then with
            D_i = dO_i·O_i - dL_i:  dV = P'dO,  dS = P * (dO V' - D),  dQ = scale dS K,  dK = scale dS'Q.
            dL is what a later `merge` sends back. Two passes, one per key block (dK, dV), one per query block (dQ), so
            that every sum has one owner: no atomics, the same bits each time.
Cost        the same operations as dense attention, halved by the causal rule; extra memory one word per row.
            Words moved (one head, d wide): order 1 reads each key block once and moves 3d + 4 words per row and tile;
            order 2 moves 2d + 1 words per row and 2d per key and tile.
            Backward: seven products per tile where forward has two (five, if one pass did both and dQ were added up in
            slow memory, as in the paper: S and dO V' are made twice here).
Paper       Dao et al. 2022, FlashAttention, sections 3.1 (algorithm 1: order 1) and 3.3 (block-sparse);
            Dao 2024, FlashAttention-2, section 3.1 (order 2). Backward: Dao et al. 2022, appendix B (numbering
            unverified).
Differs     the running state is (o, log-sum-exp), joined by `merge`; the papers keep (o, m, l), and FlashAttention-2
            leaves o unnormalised until the end. Numbers agree to rounding; words are counted with their m and l.
            The gradient of the log-sum-exp is ours: the paper's output is never merged. No dropout.
See also    tutor.kernels.flash and flash_backward (the same, fast), tutor.attention.partial (the merge),
            block_sparse_flash (lists of tiles for each head); tests/attention/test_flash.py, test_flash_backward.py
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tutor.attention.dense import causal_mask, check_qkv, positions, stack_groups
from tutor.attention.partial import Partial, empty_like, finite, from_logits, merge
from tutor.catalog import method
from tutor.cost import Cost
from tutor.trace import Recorder, Trace

SKIPPED, FULL, MASKED = 0, 1, 2     # what is done about a tile: nothing, every pair, only the allowed pairs


@method("flash", "attention", "FlashAttention", paper="dao2022flashattention",
        kernel="tutor.kernels.flash.flash_attention", flags=("attends", "exact"),
        grid=({"br": 16, "bc": 16}, {"br": 64, "bc": 64}, {"br": 128, "bc": 64}))
@dataclass(frozen=True)
class Flash:
    """Tiles of `br` queries by `bc` keys, visited in the order of version 1 or 2 of the paper."""

    br: int = 64
    bc: int = 64
    order: int = 2

    def __post_init__(self):
        for name in ("br", "bc"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (rows or keys of a tile); got {getattr(self, name)}")
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 (keys outside) or 2 (queries outside); got {self.order}")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None,
               block_mask: Tensor | None = None, pos_q: Tensor | None = None, trace: Recorder | None = None) -> Partial:
        """Exact attention, in the dtype of `q`.

        Args:
            q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`; T < S: a chunk of a prefill, or decode.
            block_mask: bool `(ceil(T/br), ceil(S/bc))`, or with leading axes `(B, Hq)`; False blocks are skipped.
            trace: a recorder of schema "attention.tiles/1"; rows of head `subject["head"]` of batch 0 are told.
        """
        check_qkv(q, k, v)
        pos = positions(q, k, pos_q)
        plan = self.plan(pos, k.shape[2], causal=causal, block_mask=block_mask)
        states = [empty_like(block, v.shape[3]) for block in q.split(self.br, 2)]
        if trace is not None:
            for i, j in (plan == SKIPPED).nonzero().tolist():
                trace.event("skipped", i=i, j=j)
        for i, j in self.visits(plan):
            rows, keys = slice(i * self.br, (i + 1) * self.br), slice(j * self.bc, (j + 1) * self.bc)
            s = tile_logits(q[:, :, rows], k[:, :, keys], scale)                           # (B, Hq, br, bc)
            s = _masked(s, pos[rows] - keys.start, causal and plan[i, j] == MASKED, block_mask, i, j)
            tile = from_logits(stack_groups(s, k.shape[1]), v[:, :, keys])                 # (B, Hkv, G*br, Dv)
            tile = Partial(tile.o.reshape(*s.shape[:3], -1), tile.lse.reshape(s.shape[:3]))
            before, states[i] = states[i], merge(states[i], tile)
            if trace is not None:
                self._tell(trace, i, j, int(plan[i, j]), s, before, states[i])
        return Partial(torch.cat([part.o for part in states], 2), torch.cat([part.lse for part in states], 2))

    def plan(self, pos: Tensor, keys: int, *, causal: bool = True, block_mask: Tensor | None = None) -> Tensor:
        """What is done about each tile, int8 `(ceil(T/br), ceil(S/bc))`: SKIPPED, FULL or MASKED."""
        tr, tc = math.ceil(len(pos) / self.br), math.ceil(keys / self.bc)
        plan = torch.full((tr, tc), FULL, dtype=torch.int8)
        if causal:
            first = torch.arange(tc) * self.bc                                             # (Tc,) keys of tile j
            last = (first + self.bc).clamp(max=keys) - 1
            lowest = torch.stack([block.min() for block in pos.split(self.br)])[:, None]   # (Tr, 1)
            highest = torch.stack([block.max() for block in pos.split(self.br)])[:, None]
            plan[last > lowest] = MASKED                                               # some query may not see some key
            plan[first > highest] = SKIPPED                                                # no query sees any key
        if block_mask is not None:
            fits = tuple(block_mask.shape[-2:]) == (tr, tc) and block_mask.ndim in (2, 4)
            if not fits or block_mask.dtype != torch.bool:
                raise ValueError(f"block_mask must be bool of shape ({tr}, {tc}) = (ceil(T/br), ceil(S/bc)), or with "
                                 f"leading axes (B, Hq); got {block_mask.dtype} {tuple(block_mask.shape)}")
            wanted = block_mask if block_mask.ndim == 2 else block_mask.flatten(0, 1).any(0)
            plan[~wanted] = SKIPPED
        return plan

    def visits(self, plan: Tensor) -> list[tuple[int, int]]:
        """The tiles that run, in the order they run in."""
        run = [(i, j) for i, j in (plan != SKIPPED).nonzero().tolist()]                    # row by row
        return run if self.order == 2 else sorted(run, key=lambda tile: tile[::-1])

    def cost(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, block_mask: Tensor | None = None,
             pos_q: Tensor | None = None) -> Cost:
        """Tiles, operations and words moved, counted tile by tile; masked pairs of a tile are computed: they count."""
        pos, s, d, dv = positions(q, k, pos_q), k.shape[2], q.shape[3], v.shape[3]
        plan = self.plan(pos, s, causal=causal, block_mask=block_mask)
        rows, keys = _sizes(len(pos), self.br), _sizes(s, self.bc)
        heads, words, pairs = q.shape[0] * q.shape[1], 0, 0
        tiles = self.visits(plan)
        for i, j in tiles:
            pairs += rows[i] * keys[j]
            words += rows[i] * (d + 2 * dv + 4) if self.order == 1 else keys[j] * (d + dv)
        if self.order == 1:
            words += sum(keys[j] * (d + dv) for j in {j for _, j in tiles})
        else:
            words += sum(rows) * (d + dv + 1)
        return Cost(tiles=heads * len(tiles), flops=2 * heads * pairs * (d + dv), words=heads * words)

    def trace(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None,
              block_mask: Tensor | None = None, head: int = 0, tokens: tuple[str, ...] = ()) -> Trace:
        """Run once and tell it: one step per tile, with the running maximum and log-sum-exp of each row of one head."""
        recorder = Recorder("attention.tiles/1", method="flash", params=asdict(self), subject={
            "T": q.shape[2], "S": k.shape[2], "head": head, "causal": causal, "tokens": list(tokens)})
        part = self.attend(q, k, v, causal=causal, scale=scale, block_mask=block_mask, trace=recorder)
        plan = self.plan(positions(q, k), k.shape[2], causal=causal, block_mask=block_mask)
        return recorder.finish(plan=plan.numpy(), lse=part.lse[0, head].float().numpy())

    def _tell(self, trace: Recorder, i: int, j: int, state: int, s: Tensor, before: Partial, after: Partial) -> None:
        head = trace.subject.get("head", 0)
        trace.event("ran", i=i, j=j, masked=state == MASKED)
        shrink = torch.exp(before.lse[0, head] - finite(after.lse[0, head]))          # what the old output is scaled by
        trace.events("updated", row=range(i * self.br, i * self.br + s.shape[2]),
                     top=s[0, head].amax(-1).float().numpy(), lse=after.lse[0, head].float().numpy(),
                     rescale=shrink.float().numpy())
        trace.next_step()


class Grads(NamedTuple):
    """Gradients of q, k and v."""

    q: Tensor
    k: Tensor
    v: Tensor


def flash_backward(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None = None, *,
                   br: int = 64, bc: int = 64, causal: bool = True, scale: float | None = None,
                   block_mask: Tensor | None = None, pos_q: Tensor | None = None) -> Grads:
    """Gradients by hand, tile by tile, from what forward kept: its output and one log-sum-exp per row.

    Args:
        q, k, v, causal, scale, block_mask, pos_q: what `Flash.attend` was given; tiles may differ unless masked.
        o, lse: its result, `(B, Hq, T, Dv)` and `(B, Hq, T)`.
        do, dlse: gradients of both; dlse is zero unless the log-sum-exp was used, as `merge` uses it.
    """
    check_qkv(q, k, v)
    for name, x, want in (("o", o, (*q.shape[:3], v.shape[3])), ("lse", lse, q.shape[:3]),
                          ("do", do, (*q.shape[:3], v.shape[3])), ("dlse", dlse, q.shape[:3])):
        if x is not None and x.shape != tuple(want):
            raise ValueError(f"{name} must have shape {tuple(want)}, as the result of attend; got {tuple(x.shape)}")
    flash, pos, kv_heads = Flash(br, bc), positions(q, k, pos_q), k.shape[1]
    factor = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    plan = flash.plan(pos, k.shape[2], causal=causal, block_mask=block_mask)
    delta = (do * o).sum(-1) - (0 if dlse is None else dlse)                               # (B, Hq, T)
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))

    def tile(i: int, j: int):
        """The weights of a tile, made again, and the gradient of its logits; heads of a group stacked, (B, Hkv, G*br, bc)."""
        rows, keys = slice(i * br, (i + 1) * br), slice(j * bc, (j + 1) * bc)
        s = tile_logits(q[:, :, rows], k[:, :, keys], scale)
        s = _masked(s, pos[rows] - keys.start, causal and plan[i, j] == MASKED, block_mask, i, j)
        p = stack_groups(torch.exp(s - finite(lse[:, :, rows])[..., None]), kv_heads)      # 0 where masked: never NaN
        dp = stack_groups(do[:, :, rows], kv_heads) @ v[:, :, keys].transpose(-1, -2)
        return rows, keys, p, p * (dp - stack_groups(delta[:, :, rows, None], kv_heads)) * factor

    for i, j in Flash(br, bc, order=1).visits(plan):                                       # a key block at a time
        rows, keys, p, ds = tile(i, j)
        dv[:, :, keys] += p.transpose(-1, -2) @ stack_groups(do[:, :, rows], kv_heads)     # sums over the query heads
        dk[:, :, keys] += ds.transpose(-1, -2) @ stack_groups(q[:, :, rows], kv_heads)
    for i, j in flash.visits(plan):                                                        # a query block at a time
        rows, keys, _, ds = tile(i, j)
        dq[:, :, rows] += (ds @ k[:, :, keys]).reshape(dq[:, :, rows].shape)
    return Grads(dq, dk, dv)


def tile_logits(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    """Scaled dot products of one tile `(B, Hq, br, bc)`."""
    s = stack_groups(q, k.shape[1]) @ k.transpose(-1, -2)                                  # (B, Hkv, G*br, bc)
    return s.reshape(*q.shape[:3], -1) * (1 / math.sqrt(q.shape[3]) if scale is None else scale)


def _masked(s: Tensor, pos: Tensor, causal: bool, block_mask: Tensor | None, i: int, j: int) -> Tensor:
    """The logits of tile (i, j) with `-inf` where a key is not allowed; `pos` counts from the tile's first key."""
    if causal:
        s = s.masked_fill(~causal_mask(pos, s.shape[3]), float("-inf"))
    if block_mask is not None and block_mask.ndim == 4:                                    # a mask for each head
        s = s.masked_fill(~block_mask[..., i, j][..., None, None], float("-inf"))
    return s


def _sizes(length: int, block: int) -> list[int]:
    return [min(block, length - start) for start in range(0, length, block)]
