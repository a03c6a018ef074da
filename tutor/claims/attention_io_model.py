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


def real_chips_lie_beyond_the_crossover() -> Measured:
    """Slopes on both sides of d^2 for three widths at 16 384 tokens, and how far beyond the crossover two chips lie."""
    import math

    from tutor.attention.methods.io_model import SRAM, count

    N, widths = 16384, (32, 64, 128)

    def slope(algorithm, d, low, high):
        return math.log(count(algorithm, N, d, high) / count(algorithm, N, d, low)) / math.log(high / low)

    cross = {d: next(M for M in range(4 * d + 3, 4 * d * d) if count("flash2", N, d, M) <= count("small", N, d, M))
             for d in widths}
    flash = [slope("flash2", d, d * d, 16 * d * d) for d in widths]
    small = [slope("small", d, 4 * d + 3, d * d) for d in widths]
    beyond = [nbytes / 2 / cross[d] for nbytes in SRAM.values() for d in widths]          # words of 16 bits
    numbers = {"slope_flash_least": min(flash), "slope_flash_most": max(flash),
               "slope_small_least": min(small), "slope_small_most": max(small),
               "crossover_exponent": math.log(cross[128] / cross[32]) / math.log(4),
               "chips_beyond_crossover_least": min(beyond), "chips_beyond_crossover_most": max(beyond)}
    holds = max(abs(x + 1) for x in flash) < 0.05 and max(abs(x + 0.5) for x in small) < 0.05 and min(beyond) > 1
    return Measured("holds" if holds else "not_here", numbers,
                    f"In log-log FlashAttention's words fall with slope {min(flash):.2f} to {max(flash):.2f} beyond d^2, those "
                    f"of square tiles with {min(small):.2f} to {max(small):.2f} below it. The curves cross at a memory that "
                    f"grows as d^{numbers['crossover_exponent']:.2f}; the fast memory of an A100 or H100 processor is "
                    f"{min(beyond):.0f} to {max(beyond):.0f} times as large.")


def a_game_small_enough_to_search() -> Measured:
    """All schedules for 4 queries and keys of width 8: fewest words for two memories below d^2 = 64, and FlashAttention's."""
    from tutor.attention.pebbles import Game

    tight, ample, roomy = Game(M=50), Game(M=56), Game(M=92)
    flash, fewest = tight.words(tight.baseline()), tight.words(tight.fewest())
    numbers = {"flash_50_words": flash, "fewest_50_words": fewest, "floor": tight.floor,
               "fewest_56_words": ample.words(ample.fewest()), "flash_92_words": roomy.words(roomy.baseline())}
    holds = fewest < flash / 2 and numbers["flash_92_words"] == tight.floor
    return Measured("holds" if holds else "not_here", numbers,
                    f"With 50 words FlashAttention moves {flash} and the best of all schedules {fewest}, where every vector once "
                    f"is {tight.floor}; 56 words are enough for that, FlashAttention needs 92.")


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
          headline="slope_flash",
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
    Claim("io_model.real-chips-lie-beyond-the-crossover", "attention", "io_model",
          "Words fall as 1/M where M is at least d^2 and as 1/sqrt(M) below; FlashAttention is optimal on the first side.",
          "Saha and Ye 2024, abstract", real_chips_lie_beyond_the_crossover,
          Expected("holds", {
              "slope_flash_least": Number(-1.03, -1.01, "log-log"),
              "slope_flash_most": Number(-0.98, -0.96, "log-log"),
              "slope_small_least": Number(-0.515, -0.50, "log-log"),
              "slope_small_most": Number(-0.495, -0.485, "log-log"),
              "crossover_exponent": Number(1.75, 1.80, "of d"),
              "chips_beyond_crossover_least": Number(17.5, 18.5, "times"),
              "chips_beyond_crossover_most": Number(245, 255, "times")}, "2026-11-23", machine=MACHINE),
          headline="chips_beyond_crossover_least",
          stops="The crossing grows a little more slowly than d^2 at these widths, because the matrix's own N^2 words do not "
                "depend on d. A chip's whole memory is counted for one head; a kernel shares it.",
          needs=""),
    Claim("io_model.a-game-small-enough-to-search", "attention", "io_model",
          "For a fast memory smaller than d^2 words another schedule moves less than FlashAttention.",
          "Saha and Ye 2024, abstract", a_game_small_enough_to_search,
          Expected("holds", {
              "flash_50_words": Number(320, 320, "words"),
              "fewest_50_words": Number(138, 138, "words"),
              "floor": Number(128, 128, "words"),
              "fewest_56_words": Number(128, 128, "words"),
              "flash_92_words": Number(128, 128, "words")}, "2026-11-23", machine=MACHINE),
          headline="fewest_50_words",
          stops="Four queries and keys: whole vectors move, no score is made twice, and the trivial floor lies above the bound's "
                "shape. Nothing follows for other sizes.",
          needs=""),
)
