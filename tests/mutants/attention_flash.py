"""Planted bugs of FlashAttention's gradients and of its block-sparse form."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FLASH = "tutor/attention/methods/flash.py"
SPARSE = "tutor/attention/methods/block_sparse_flash.py"
BACK = "tests/attention/test_flash_backward.py"
LISTS = "tests/attention/test_flash_block_sparse.py"

MUTANTS = [
    Mutant("flash backward: the gradient of the log-sum-exp is left out", FLASH,
           "- (0 if dlse is None else dlse)", "- 0", BACK + " -k 'by_hand or merge'"),
    Mutant("flash backward: the gradient of the log-sum-exp has the wrong sign", FLASH,
           "- (0 if dlse is None else dlse)", "+ (0 if dlse is None else dlse)", BACK + " -k by_hand"),
    Mutant("flash backward: D is forgotten", FLASH,
           "p * (dp - stack_groups(delta[:, :, rows, None], kv_heads))", "p * dp", BACK + " -k 'by_hand or autograd'"),
    Mutant("flash backward: the scale is forgotten", FLASH,
           "kv_heads)) * factor", "kv_heads))", BACK + " -k autograd"),
    Mutant("flash backward: an empty row becomes NaN", FLASH,
           "torch.exp(s - finite(lse[:, :, rows])[..., None])", "torch.exp(s - lse[:, :, rows][..., None])",
           BACK + " -k see_nothing"),
    Mutant("flash backward: a key block keeps its last query block only", FLASH,
           "dk[:, :, keys] += ds.transpose", "dk[:, :, keys] = ds.transpose", BACK + " -k autograd"),
    Mutant("flash backward: only tiles on the diagonal count", FLASH,
           "for i, j in flash.visits(plan):                                                        # a query",
           "for i, j in flash.visits(plan * (plan == MASKED)):                                     # a query",
           BACK + " -k autograd"),
    Mutant("flash backward: the block mask is for the output alone", FLASH,
           "plan = flash.plan(pos, k.shape[2], causal=causal, block_mask=block_mask)\n    delta",
           "plan = flash.plan(pos, k.shape[2], causal=causal)\n    delta", BACK + " -k 'block_mask or skipped'"),
    Mutant("block-sparse: the diagonal tile is taken whole", SPARSE,
           "whole & (end <= lowest[:, None] + 1)", "whole & (end <= lowest[:, None] + sel.bq)", LISTS + " -k 'by_hand or dense'"),
    Mutant("block-sparse: the last listed tile is not visited", SPARSE,
           "range(int(lists.indptr[r]), int(lists.indptr[r + 1]))", "range(int(lists.indptr[r]), int(lists.indptr[r + 1]) - 1)",
           LISTS + " -k dense"),
    Mutant("block-sparse: all heads read the list of the first", SPARSE,
           "(sel.blocks.flatten().nonzero()[:, 0] % len(end)).int()",
           "(sel.blocks[:1, :1].expand_as(sel.blocks).flatten().nonzero()[:, 0] % len(end)).int()", LISTS + " -k dense"),
    Mutant("block-sparse: a tile replaces what the row had", SPARSE,
           "state = merge(state, from_logits(logits, vb))", "state = from_logits(logits, vb)", LISTS + " -k dense"),
    Mutant("block-sparse: a head reads the next KV head", SPARSE,
           "x[n, h // group, first", "x[n, h % k.shape[1], first", LISTS + " -k dense"),
    Mutant("block-sparse: the gradient runs over all tiles", SPARSE,
           "block_mask=sel.blocks, pos_q=sel.pos)", "pos_q=sel.pos)", LISTS + " -k gradients"),
    Mutant("block-sparse: the cost counts whole blocks", SPARSE,
           "(s - torch.arange(tc) * self.bc).clamp(max=self.bc)", "torch.full((tc,), self.bc)", LISTS + " -k cost"),
]
