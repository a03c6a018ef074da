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

KERNEL = "tutor/kernels/flash_backward.py"
KERNEL_TESTS = "tests/kernels/test_flash_backward.py"
LISTED = "tutor/kernels/block_sparse.py"
LISTED_TESTS = "tests/kernels/test_block_sparse.py"
FP32 = " -k 'float64 and fp32 and (T63 or T45 or T17)'"

MUTANTS += [
    Mutant("backward kernel: delta leaves out the log-sum-exp", KERNEL,
           "delta -= tl.load(dlse_ptr", "delta -= 0 * tl.load(dlse_ptr", KERNEL_TESTS + " -k log_sum_exp"),
    Mutant("backward kernel: the group's gradients overwrite each other", KERNEL,
           "    for _ in range(group):  ", "    for _ in range(1):  ", KERNEL_TESTS + FP32),
    Mutant("backward kernel: rows on the diagonal are not masked", KERNEL,
           "allowed = allowed & (keys[:, None] <= (S - T + rows)[None, :])", "allowed = allowed & True", KERNEL_TESTS + FP32),
    Mutant("backward kernel: the first tile that all see is skipped", KERNEL,
           "for start in range(all_see, T, BLOCK_M):", "for start in range(all_see + BLOCK_M, T, BLOCK_M):", KERNEL_TESTS + FP32),
    Mutant("backward kernel: the tile on the diagonal is skipped", KERNEL,
           "some_see = tl.maximum(first_key - (S - T), 0)", "some_see = tl.maximum(first_key - (S - T) + BLOCK_M, 0)",
           KERNEL_TESTS + FP32),
    Mutant("backward kernel: dk is not scaled", KERNEL,
           "dk = (dk * scale).to", "dk = dk.to", KERNEL_TESTS + FP32),
    Mutant("backward kernel: the log-sum-exp is not turned into powers of two", KERNEL,
           "lse = tl.load(lse_ptr + flat, mask=rows < T, other=0.0) * 1.4426950408889634",
           "lse = tl.load(lse_ptr + flat, mask=rows < T, other=0.0)", KERNEL_TESTS + FP32),
    Mutant("backward kernel: the last keys are not written", KERNEL,
           "in_k = (keys[:, None] < S) &", "in_k = (keys[:, None] < S - 1) &", KERNEL_TESTS + FP32),
    Mutant("backward kernel: dq reads keys beyond the end", KERNEL,
           "allowed = inside[None, :]", "allowed = inside[None, :] | True", KERNEL_TESTS + " -k not_there"),
    Mutant("block-sparse kernel: masked tiles are taken whole", LISTED,
           "for at in range(cut, end):", "for at in range(end, end):", LISTED_TESTS + " -k 'float64 and fp32'"),
    Mutant("block-sparse kernel: the list of the next query block is read", LISTED,
           "tl.cdiv(T, BLOCK_M) + tl.program_id(0)", "tl.cdiv(T, BLOCK_M) + (tl.program_id(0) + 1) % tl.cdiv(T, BLOCK_M)",
           LISTED_TESTS + " -k 'float64 and fp32'"),
    Mutant("block-sparse kernel: all heads read the list of the first", LISTED,
           "mine = (batch * Hq + head) *", "mine = batch * Hq *", LISTED_TESTS + " -k 'float64 and fp32'"),
    Mutant("block-sparse kernel: values come from another KV head", LISTED,
           "v_ptr += batch * stride_vb + (head // G) * stride_vh", "v_ptr += batch * stride_vb + (head % (Hq // G)) * stride_vh",
           LISTED_TESTS + " -k 'float64 and fp32'"),
]

MACHINE = "tutor/attention/machine.py"
MOVES = "tests/attention/test_io_model.py"

MUTANTS += [
    Mutant("memory trace: a store is not told", MACHINE,
           'self._tell("stored", name, buffer.numel())', "pass", MOVES + " -k trace_tells"),
    Mutant("memory trace: a load is told before it is counted", MACHINE,
           """        self.loaded += tile.numel()
        self._tell("loaded", name, tile.numel(), f"{name} {_rows(tile)}")""",
           """        self._tell("loaded", name, tile.numel(), f"{name} {_rows(tile)}")
        self.loaded += tile.numel()""", MOVES + " -k 'trace_tells or in_words'"),
    Mutant("memory trace: words held are told before the buffer is freed", MACHINE,
           """            self.resident -= self._held(name).numel()
            del self.fast[name]
            self._tell("freed", name)""",
           """            self._tell("freed", name)
            self.resident -= self._held(name).numel()
            del self.fast[name]""", MOVES + " -k 'trace_tells or in_words'"),
    Mutant("memory trace: a tile's rows are counted in words", MACHINE,
           "tile.storage_offset() // max(tile.stride(0), 1)", "tile.storage_offset()", MOVES + " -k in_words"),
]
