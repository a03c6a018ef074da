"""Block-sparse FlashAttention: the tiles of a list instead of all tiles, for each head its own.

Idea        FlashAttention already works tile by tile. Give each head and query block a list of the key blocks that it
            shall read, and walk that list: what is not listed is neither loaded nor computed. Exact about what it reads;
            which tiles to list is the business of the method that made the selection.
Rule        for each head, for each query block i:  state <- (0, -inf)
                for each listed key block j:  state <- merge(state, softmax over the tile (i, j))
            The listed tiles that all rows may see whole come first, without a mask; then those cut by the diagonal or by
            the end of the keys. A query block with an empty list gives 0 and L = -inf.
Cost        with a share s of the tiles listed: s times the operations, and 2d words per listed key and tile; q, o and the
            log-sum-exp move once whatever is listed. The lists hold one number per tile.
Paper       Dao et al. 2022, FlashAttention, section 3.3: N d + s N^2 d^2 / M words, up to constants.
Differs     the paper uses one fixed (butterfly) pattern for all heads; here any pattern, per head, from a `Selection`.
            Query blocks are outside (FlashAttention-2's order).
See also    flash (all tiles; the gradients), tutor.kernels.block_sparse (the same, fast), tutor.attention.selection;
            tests/attention/test_flash_block_sparse.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tutor.attention.dense import causal_mask, check_qkv
from tutor.attention.methods.flash import Grads, flash_backward, tile_logits
from tutor.attention.partial import Partial, empty_like, from_logits, merge
from tutor.attention.selection import Selection
from tutor.catalog import method
from tutor.cost import Cost


class Lists(NamedTuple):
    """Which key blocks each query block reads: row `r = (b * Hq + h) * Tr + i` reads `indices[indptr[r]:indptr[r + 1]]`.

    Attributes:
        indptr: `(B * Hq * Tr + 1,)`, int64.
        cut: `(B * Hq * Tr,)`, int64: blocks before `cut[r]` are seen whole by every row, those from there on are masked.
        indices: key blocks, ascending within a row, int32.
    """

    indptr: Tensor
    cut: Tensor
    indices: Tensor


def block_lists(sel: Selection) -> Lists:
    """The lists of a block selection, in compressed rows."""
    if sel.kind != "block":
        raise ValueError(f"a selection of kind 'block' is needed; got {sel.kind!r}. Build it with Selection.from_blocks")
    s, device = sel.shape[3], sel.blocks.device
    end = (torch.arange(sel.blocks.shape[3], device=device) + 1) * sel.bk                  # (Tc,) one past the block
    whole = end <= s                                                                       # no key of it is missing
    if sel.causal:
        lowest = torch.stack([rows.min() for rows in sel.pos.to(device).split(sel.bq)])    # (Tr,)
        whole = whole & (end <= lowest[:, None] + 1)                                       # (Tr, Tc)
    counts, free = (x.sum(-1).flatten() for x in (sel.blocks, sel.blocks & whole))
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Lists(indptr, indptr[:-1] + free, (sel.blocks.flatten().nonzero()[:, 0] % len(end)).int())


@method("block_sparse_flash", "attention", "Block-sparse FlashAttention", paper="dao2022flashattention",
        kernel="tutor.kernels.block_sparse.block_sparse_attention", flags=("attends",),
        grid=({"br": 16, "bc": 16}, {"br": 64, "bc": 64}))
@dataclass(frozen=True)
class BlockSparseFlash:
    """Tiles of `br` queries by `bc` keys, those that are listed."""

    br: int = 64
    bc: int = 64

    def __post_init__(self):
        for name in ("br", "bc"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (rows or keys of a tile); got {getattr(self, name)}")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, blocks: Selection | Tensor, *, causal: bool = True,
               scale: float | None = None) -> Partial:
        """Exact attention over the listed tiles, in the dtype of `q`.

        Args:
            q, k, v: `(B, Hq, T, D)`, `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`.
            blocks: a block `Selection` with sides br and bc; or bool `(ceil(T/br), ceil(S/bc))`, for all heads alike or
                with leading axes `(B, Hq)`. A selection says itself whether it is causal.
        """
        sel = self.selection(q, k, v, blocks, causal=causal)
        lists, hq, group = block_lists(sel), q.shape[1], q.shape[1] // k.shape[1]
        out = empty_like(q, v.shape[3])
        for r in range(len(lists.cut)):
            head, i = divmod(r, sel.blocks.shape[2])
            (n, h), rows = divmod(head, hq), slice(i * self.br, (i + 1) * self.br)
            qb, pos = q[n, h, rows][None, None], sel.pos[rows]                             # (1, 1, br, D), (br,)
            state = empty_like(qb, v.shape[3])
            for at in range(int(lists.indptr[r]), int(lists.indptr[r + 1])):
                first = int(lists.indices[at]) * self.bc
                kb, vb = (x[n, h // group, first:first + self.bc][None, None] for x in (k, v))
                logits = tile_logits(qb, kb, scale)                                        # (1, 1, br, bc)
                if sel.causal and at >= lists.cut[r]:
                    logits = logits.masked_fill(~causal_mask(pos - first, kb.shape[2]), float("-inf"))
                state = merge(state, from_logits(logits, vb))
            out.o[n, h, rows], out.lse[n, h, rows] = state.o[0, 0], state.lse[0, 0]
        return out

    def backward(self, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None = None,
                 *, blocks: Selection | Tensor, causal: bool = True, scale: float | None = None) -> Grads:
        """Gradients through the listed tiles, by the rule of `flash_backward`."""
        sel = self.selection(q, k, v, blocks, causal=causal)
        return flash_backward(q, k, v, o, lse, do, dlse, br=self.br, bc=self.bc, causal=sel.causal, scale=scale,
                              block_mask=sel.blocks, pos_q=sel.pos)

    def cost(self, q: Tensor, k: Tensor, v: Tensor, blocks: Selection | Tensor, *, causal: bool = True) -> Cost:
        """Tiles, operations and words moved of all heads; masked pairs of a listed tile are computed: they count."""
        sel = self.selection(q, k, v, blocks, causal=causal)
        (_, _, t, s), d, dv = sel.shape, q.shape[3], v.shape[3]
        tr, tc = sel.blocks.shape[2:]
        rows = (t - torch.arange(tr) * self.br).clamp(max=self.br)                         # (Tr,) rows of a query block
        keys = (s - torch.arange(tc) * self.bc).clamp(max=self.bc)                         # (Tc,) keys of a key block
        pairs = int((sel.blocks * rows[:, None] * keys).sum())
        words = int((sel.blocks * keys).sum()) * (d + dv)                                  # keys and values, per tile
        words += int((sel.blocks.any(-1) * rows).sum()) * d                                # a block without tiles reads no q
        words += math.prod(sel.shape[:3]) * (dv + 1)                                       # but its zeros are written
        return Cost(tiles=int(sel.blocks.sum()), flops=2 * pairs * (d + dv), words=words)

    def selection(self, q: Tensor, k: Tensor, v: Tensor, blocks: Selection | Tensor, *, causal: bool = True) -> Selection:
        """`blocks` as a checked block selection of these tiles."""
        check_qkv(q, k, v)
        if not isinstance(blocks, Selection):
            wanted = torch.as_tensor(blocks)
            shape = (math.ceil(q.shape[2] / self.br), math.ceil(k.shape[2] / self.bc))
            if wanted.dtype != torch.bool or tuple(wanted.shape) not in (shape, (*q.shape[:2], *shape)):
                raise ValueError(f"blocks must be bool of shape {shape} = (ceil(T/br), ceil(S/bc)), or with leading axes "
                                 f"(B, Hq); got {wanted.dtype} {tuple(wanted.shape)}")
            return Selection.from_blocks(wanted.expand(*q.shape[:2], *shape), q, k, bq=self.br, bk=self.bc, causal=causal)
        if blocks.kind != "block" or (blocks.bq, blocks.bk) != (self.br, self.bc):
            raise ValueError(f"the selection must hold blocks of br x bc = {self.br} x {self.bc}; got kind "
                             f"{blocks.kind!r}, {blocks.bq} x {blocks.bk}. Use BlockSparseFlash(br=sel.bq, bc=sel.bk)")
        if blocks.shape != (*q.shape[:3], k.shape[2]):
            raise ValueError(f"the selection was made for (B, Hq, T, S) = {blocks.shape}; "
                             f"q and k give {(*q.shape[:3], k.shape[2])}")
        return blocks
