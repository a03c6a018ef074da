"""Claims of the I/O model: counts on a machine that moves every word, and where one algorithm overtakes the other."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def the_machine_moves_the_words_foretold() -> Measured:
    """All algorithms on the machine at 48 tokens of width 8, five memories: words, output, room; then the slopes."""
    import math

    import torch

    from tutor.attention.dense import attend
    from tutor.attention.methods.io_model import ALGORITHMS, count, lower_bound, run

    g, off, error, held = torch.Generator().manual_seed(0), 0, 0.0, 0.0
    q, k, v = (torch.randn(48, 8, generator=g, dtype=torch.float64) for _ in range(3))
    truth = attend(q[None, None], k[None, None], v[None, None], causal=False).o[0, 0]
    for M in (40, 85, 208, 500, 1200):
        for algorithm in ALGORITHMS:
            done = run(algorithm, q, k, v, M, blocks="strict")
            off = max(off, abs(done.words - count(algorithm, 48, 8, M, blocks="strict", edges=True)))
            error, held = max(error, float((done.o - truth).abs().max())), max(held, done.peak / M)
    N, d = 2**16, 256

    def slope(algorithm, low, high):
        return math.log(count(algorithm, N, d, high) / count(algorithm, N, d, low)) / math.log(high / low)

    sizes = [2**e for e in range(11, 21)]
    ratio = [min(count(a, N, d, M) for a in ("flash2", "small")) / lower_bound(N, d, M) for M in sizes]
    numbers = {"words_off": off, "error": error, "most_held": held,
               "slope_flash": slope("flash2", 2**16, 2**20), "slope_small": slope("small", 2**11, 2**13),
               "least_over_bound": min(ratio), "most_over_bound": max(ratio)}
    holds = off == 0 and error < 1e-12 and held <= 1 and min(ratio) >= 1 and max(ratio) < 10
    return Measured("holds" if holds else "not_here", numbers,
                    f"Counted and foretold words differ by {off}; from 2 048 to a million words of fast memory "
                    f"the better of two algorithms is {min(ratio):.1f} to {max(ratio):.1f} times the bound's shape, "
                    f"with slopes {numbers['slope_flash']:.2f} (tiles) and {numbers['slope_small']:.2f} (matrix).")


def the_crossover_lies_near_d_squared() -> Measured:
    """The least fast memory in which `flash2` moves fewer words than `small`, over d^2, for three widths."""
    from tutor.attention.methods.io_model import count

    def crossover(N, d):
        return next(M for M in range(4 * d + 3, 4 * d * d, max(1, d * d // 400))
                    if count("flash2", N, d, M) <= count("small", N, d, M))

    ratio = {d: crossover(16384, d) / d**2 for d in (32, 64, 128)}
    numbers = {f"crossover_over_d2_at_{d}": value for d, value in ratio.items()}
    low, high = min(ratio.values()), max(ratio.values())
    return Measured("holds" if 0.2 < low and high < 2 and high < 1.5 * low else "not_here", numbers,
                    f"FlashAttention overtakes the square tiles at {low:.2f} to {high:.2f} d^2 words, for widths "
                    "32, 64 and 128.")


CLAIMS = (
    Claim("io_model.two-algorithms-follow-the-bound", "attention", "io_model",
          "Attention moves N^2 d^2 / M words or, when M is below d^2, N^2 d / sqrt(M), up to constants; FlashAttention "
          "reaches the first.",
          "Saha and Ye 2024, abstract", the_machine_moves_the_words_foretold,
          Expected("holds", {
              "words_off": Number(0, 0, "words"),
              "error": Number(0, 1e-12, "absolute"),
              "most_held": Number(0.95, 1, "of M"),
              "slope_flash": Number(-1.0, -0.97, "log-log"),
              "slope_small": Number(-0.51, -0.49, "log-log"),
              "least_over_bound": Number(3.99, 4.01, "times"),
              "most_over_bound": Number(7.4, 7.6, "times")}, "2026-11-23", machine=MACHINE),
          stops="Upper bounds are executed, the lower bound is only drawn: its proof is not repeated, and below d^2 it "
                "is read for combinatorial algorithms alone. One head, no mask, N = S.",
          needs=""),
    Claim("io_model.the-crossover-lies-near-d-squared", "attention", "io_model",
          "For a fast memory of at least d^2 words FlashAttention is optimal up to constants; for a smaller one "
          "another algorithm moves less.",
          "Saha and Ye 2024, abstract", the_crossover_lies_near_d_squared,
          Expected("holds", {
              "crossover_over_d2_at_32": Number(0.44, 0.47, "d^2"),
              "crossover_over_d2_at_64": Number(0.34, 0.36, "d^2"),
              "crossover_over_d2_at_128": Number(0.32, 0.35, "d^2")}, "2026-11-23", machine=MACHINE),
          stops="Where the curves cross depends on constants: those of a plain tiling with the matrix written out, "
                "whose own N^2 words weigh more the narrower the head.",
          needs=""),
)
