"""Claim about pooling: whether the product of means finds the blocks that matter."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def means_find_the_blocks() -> Measured:
    """Mass in the 16 blocks that pooling chooses and in the 16 best, blocks of 16 x 16; an early and a late layer."""
    import torch

    from tutor.attention.dense import probs
    from tutor.attention.methods.pooled_blocks import PooledBlocks
    from tutor.data import capture

    short, numbers = capture("reference_4096").first(2048), {}
    rows = torch.arange(512, 2048).unflatten(0, (-1, 16))[::8].flatten()        # every eighth query block
    for name, layer in (("early", short.layers[0]), ("late", short.layers[-1])):
        q, k = short.q(layer), short.k(layer)
        sel, _ = PooledBlocks(16, side=16).select(q, k)
        a = probs(q[:, :, rows], k, pos_q=rows)[0].unflatten(1, (-1, 16)).mean(2)               # (Hq, blocks, S)
        per_block = a.unflatten(-1, (-1, 16)).sum(-1)                                           # (Hq, blocks, key blocks)
        chosen = sel.blocks[0][:, rows[::16] // 16]
        numbers[f"{name}_pooled"] = float((per_block * chosen).sum(-1).mean())
        numbers[f"{name}_best"] = float(per_block.topk(16).values.sum(-1).mean())
        numbers[f"{name}_first_block_chosen"] = float(chosen[..., 0].double().mean())
    early, late = (numbers[f"{name}_pooled"] / numbers[f"{name}_best"] for name in ("early", "late"))
    return Measured("holds" if min(early, late) > 0.9 else "in_part" if max(early, late) > 0.9 else "not_here", numbers,
                    f"Pooling finds {100 * early:.0f} % of what the best blocks hold in an early layer and "
                    f"{100 * late:.0f} % in a late one, where it reads the first block, the sinks', in "
                    f"{100 * numbers['late_first_block_chosen']:.0f} % of the cases: one heavy key is lost in its block's mean.")


CLAIMS = (
    Claim("pooled_blocks.means-find-the-blocks", "attention", "pooled_blocks",
          "Mean-pooled queries and keys are enough to find the blocks that hold the attention of block-sparse heads.",
          "Jiang et al. 2024, section 3.3", means_find_the_blocks,
          Expected("in_part", {
              "early_pooled": Number(0.73, 0.76, "of the mass"),
              "early_best": Number(0.77, 0.8, "of the mass"),
              "early_first_block_chosen": Number(0.05, 0.12, "of the query blocks"),
              "late_pooled": Number(0.48, 0.54, "of the mass"),
              "late_best": Number(0.965, 0.985, "of the mass"),
              "late_first_block_chosen": Number(0.08, 0.16, "of the query blocks")}, "2026-11-23", machine=MACHINE),
          stops="The paper says it of block-sparse heads only, and rightly: where a sink holds the mass, the mean of its "
                "block hides it.", needs="capture"),
)
