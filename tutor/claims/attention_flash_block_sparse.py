"""Claims about block-sparse FlashAttention: what it moves, and whether a fixed pattern suits heads not trained with it."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def words_follow_the_share() -> Measured:
    """Random tiles of one recorded KV group at 1 024 tokens, three shares: words and operations against all tiles."""
    import torch

    from tutor.attention.dense import attend
    from tutor.attention.methods.block_sparse_flash import BlockSparseFlash
    from tutor.attention.methods.flash import Flash
    from tutor.data import capture

    recorded = capture("reference_4096")
    layer, n = recorded.layers[1], 1024
    q, k, v = (x[:, :heads, :n].double().clone() for x, heads in (
        (recorded.q(layer), 3), (recorded.k(layer), 1), (recorded.v(layer), 1)))
    method, whole, off, error = BlockSparseFlash(64, 64), Flash(64, 64).cost(q, k, v), 0.0, 0.0
    fixed = 3 * n * (2 * 64 + 1)                                      # queries in, outputs and log-sum-exps out
    for share in (0.1, 0.25, 0.5):
        blocks = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) < share
        sel = method.selection(q, k, v, blocks | torch.eye(16, dtype=torch.bool))
        cost, found, truth = method.cost(q, k, v, sel), method.attend(q, k, v, sel), attend(q, k, v, mask=sel.mask())
        listed = cost["tiles"] / whole["tiles"]
        per_tile = (cost["words"] - fixed) / (whole["words"] - fixed)
        off = max(off, abs(per_tile - listed), abs(cost["flops"] / whole["flops"] - listed))
        error = max(error, float((found.o - truth.o).abs().max()))
        if share == 0.1:
            least = cost["words"] / whole["words"], listed
    numbers = {"off_the_share": off, "error": error, "tiles_listed": least[1], "words_of_all": least[0]}
    holds = off < 1e-12 and error < 1e-12
    return Measured("holds" if holds else "not_here", numbers,
                    f"Operations and the words of keys and values are the share of tiles listed, to {off:.0e}; with "
                    f"{least[1]:.0%} of the tiles {least[0]:.0%} of all words still move, since queries and outputs always do.")


def a_fixed_pattern_on_heads_not_trained_for_it() -> Measured:
    """Butterfly tiles, as many random ones and as many of the heaviest, on all heads of three layers at 2 048 tokens."""
    import torch

    from tutor.attention.dense import probs
    from tutor.data import capture

    recorded, n, side = capture("reference_4096"), 2048, 64
    count = n // side
    i, j = torch.arange(count)[:, None], torch.arange(count)
    flips = torch.tensor([[bin(a ^ b).count("1") for b in range(count)] for a in range(count)])
    butterfly, causal = ((flips <= 1) | (j == 0)) & (j <= i), j <= i
    held = {"butterfly": [], "random": [], "heaviest": []}
    g = torch.Generator().manual_seed(0)
    for layer in recorded.layers:
        a = probs(recorded.q(layer)[:, :, :n], recorded.k(layer)[:, :, :n], dtype=torch.float32)
        mass = a.unflatten(2, (count, side)).unflatten(4, (count, side)).sum((3, 5))       # (1, 9, count, count)
        rank = {"random": torch.rand(mass.shape, generator=g) + 2 * (i == j), "heaviest": mass}
        chosen = {"butterfly": butterfly.expand_as(mass)}
        for name, score in rank.items():                                                   # as many tiles in each row
            place = score.masked_fill(~causal, -1.0).argsort(-1, descending=True).argsort(-1)
            chosen[name] = (place < butterfly.sum(1)[:, None]) & causal
        for name, blocks in chosen.items():
            held[name].append(float((mass * blocks).sum() / mass.sum()))
    mean = {name: sum(masses) / len(masses) for name, masses in held.items()}
    numbers = {"tiles_listed": float(butterfly.sum() / causal.sum()), **{f"mass_{name}": x for name, x in mean.items()}}
    verdict = "holds" if mean["butterfly"] > 0.98 else "in_part" if mean["butterfly"] > mean["random"] + 0.05 else "not_here"
    return Measured(verdict, numbers,
                    f"With {numbers['tiles_listed']:.0%} of the tiles the butterfly keeps {mean['butterfly']:.0%} of the mass, "
                    f"as many random tiles {mean['random']:.0%}, the heaviest ones {mean['heaviest']:.0%}.")


CLAIMS = (
    Claim("block_sparse_flash.words-follow-the-share", "attention", "block_sparse_flash",
          "With a share s of the tiles, the words that depend on the square of the length shrink to that share.",
          "Dao et al. 2022, section 3.3", words_follow_the_share,
          Expected("holds", {
              "off_the_share": Number(0, 1e-12, "of the words"),
              "error": Number(0, 1e-12, "absolute"),
              "tiles_listed": Number(0.21, 0.212, "of the tiles"),
              "words_of_all": Number(0.29, 0.30, "of the words")}, "2026-11-23", machine=MACHINE),
          stops="Queries and outputs move whatever is listed; a list of single keys scattered over all tiles saves nothing.",
          needs="capture"),
    Claim("block_sparse_flash.a-fixed-pattern-suffices", "attention", "block_sparse_flash",
          "One fixed butterfly pattern of tiles approximates attention well enough for every head (of models trained with it).",
          "Dao et al. 2022, section 3.3 and the long-range experiments", a_fixed_pattern_on_heads_not_trained_for_it,
          Expected("in_part", {
              "tiles_listed": Number(0.26, 0.263, "of the tiles"),
              "mass_butterfly": Number(0.77, 0.82, "of the mass"),
              "mass_random": Number(0.5, 0.65, "of the mass"),
              "mass_heaviest": Number(0.85, 0.89, "of the mass")}, "2026-11-23", machine=MACHINE),
          headline="mass_butterfly",
          stops="Our model was never trained with the pattern: it keeps far more than random tiles, because the diagonal and "
                "the first column are in it, yet it loses a fifth of the mass where the heaviest tiles lose an eighth.",
          needs="capture"),
)
