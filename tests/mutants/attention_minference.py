"""Planted bugs of MInference: the lines, the tiles, the search and the kernel."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

SLASH = "tutor/attention/methods/vertical_slash.py"
POOLED = "tutor/attention/methods/pooled_blocks.py"
MAIN = "tutor/attention/methods/minference.py"
KERNEL = "tutor/kernels/vertical_slash.py"
TESTS = "tests/attention/test_minference.py -k "
FAST = "tests/kernels/test_vertical_slash.py -k "

MUTANTS = [
    Mutant("minference: the last rows see ahead", SLASH, "k, pos_q=pos)                              # (B, Hq, R, S)",
           "k, causal=False)                              # (B, Hq, R, S)", TESTS + "'slashes_by_hand or mask'"),
    Mutant("minference: offsets are counted from the row's number", SLASH,
           "back = pos[:, None] - torch.arange(a.shape[-1])",
           "back = torch.arange(len(pos))[:, None] - torch.arange(a.shape[-1])", TESTS + "'distance or loop'"),
    Mutant("minference: weights ahead of a row fall on offset 0", SLASH,
           "weight = torch.where(back >= 0, a, 0.0)", "weight = a", TESTS + "mask"),
    Mutant("minference: the first rows are looked at, not the last", SLASH,
           "a = probs(q[:, :, -last_q:], k, pos_q=pos)", "a = probs(q[:, :, :last_q], k, pos_q=pos)", TESTS + "last_rows_only"),
    Mutant("minference: ranges that touch are read twice", SLASH,
           "begin = torch.maximum(low.clamp(min=0), end)", "begin = low.clamp(min=0)", TESTS + "'by_hand or twice'"),
    Mutant("minference: a column inside a tile is gathered again", SLASH,
           "columns[:, :, None] & ~inside & causal_mask", "columns[:, :, None] & causal_mask", TESTS + "'by_hand or twice'"),
    Mutant("minference: a slash is one tile on the grid", SLASH,
           "low = first - o[..., None]    ", "low = (first - o[..., None]) // tile * tile    ", TESTS + "'by_hand or twice'"),
    Mutant("minference: offsets are walked from near to far", SLASH,
           "torch.where(slashes, torch.arange(keys), -1).sort(-1, descending=True).values",
           "torch.where(slashes, torch.arange(keys), keys).sort(-1).values.masked_fill_(~slashes.sort(-1, True).values, -1)",
           TESTS + "'by_hand or twice'"),
    Mutant("minference: the diagonal is not forced", SLASH, ", slash[..., : self.near] = math.inf, math.inf", " = math.inf",
           TESTS + "bare_lines"),
    Mutant("minference: a short block is divided by its full side", POOLED,
           "total / torch.bincount(member)[:, None]", "total / side", TESTS + "short_last"),
    Mutant("minference: blocks ahead may be chosen", POOLED,
           "score.masked_fill(~allowed, -math.inf)", "score", TESTS + "'pooled or chunk'"),
    Mutant("minference: query blocks begin with the chunk", POOLED,
           "int(pos[0]) >= 0 and int(pos[0]) % self.side == 0", "int(pos[0]) >= 0", TESTS + "chunk"),
    Mutant("minference: the best head pattern is the worst", MAIN, "self.error.argmin(-1)", "self.error.argmax(-1)",
           TESTS + "recognises"),
    Mutant("minference: candidates may run any number of tiles", MAIN,
           "fits = tiles(middle) <= budget", "fits = tiles(middle) <= 2 * budget", TESTS + "same_tiles"),
    Mutant("minference: heads read KV heads in turn", MAIN,
           "k[:, heads // (hq // k.shape[1])]", "k[:, heads % k.shape[1]]", TESTS + "own_pattern"),
    Mutant("minference: the search sees the whole text", MAIN,
           "seeing[: max(1, len(seeing) // 4)]", "seeing", TESTS + "first_quarter"),
    Mutant("minference: a decode step is sparse", MAIN, "if t == 1: ", "if t == 0: ", TESTS + "single_query"),
    Mutant("minference: borrowed columns are read as diagonals", MAIN, "columns, diagonals = chosen.clone()",
           "diagonals, columns = chosen.clone()", TESTS + "text_to_text"),
    Mutant("minference: a query's neighbours are chosen as columns", MAIN, "k.shape[2] - 2 * last_q):] = -1",
           "k.shape[2]):] = -1", TESTS + "text_to_text"),
    Mutant("minference: lines kept in any case are chosen once more", MAIN,
           "vertical[..., : ALWAYS[0]], slash[..., : ALWAYS[1]] = -1, -1", "pass", TESTS + "text_to_text"),
    Mutant("minference: a Jaccard index is over the first set", MAIN, "/ (a | b).sum(-1)", "/ a.sum(-1)", TESTS + "text_to_text"),
    Mutant("vertical-slash kernel: the last tile of a list is skipped", KERNEL,
           "range(0, tl.load(n_starts_ptr + block))", "range(0, tl.load(n_starts_ptr + block) - 1)", FAST + "'hand or budget'"),
    Mutant("vertical-slash kernel: columns are not cut by position", KERNEL,
           "there[None, :] & (keys[None, :] <= pos[:, None])", "there[None, :] & (keys[None, :] <= 2147483647)",
           FAST + "'hand or budget'"),
    Mutant("vertical-slash kernel: absent columns read key 0", KERNEL,
           "s = tl.where(there[None, :] & (keys", "s = tl.where((keys", FAST + "'hand or budget'"),
    Mutant("vertical-slash kernel: lists are found by query block alone", KERNEL,
           "block = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)",
           "block = tl.program_id(0).to(tl.int64)",
           FAST + "budget"),
    Mutant("vertical-slash kernel: only the first chunk of columns is read", KERNEL,
           "for i in range(0, more, BLOCK):", "for i in range(0, tl.minimum(more, BLOCK), BLOCK):", FAST + "budget"),
    Mutant("vertical-slash kernel: positions are aligned top-left", KERNEL, "pos = S - T + rows  ", "pos = rows  ",
           FAST + "'whole_budget or S90'"),
]
