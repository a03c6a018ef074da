"""Claims about recursive rejection sampling on trees."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def without_replacement() -> Measured:
    """Chance that one of three sampled children is accepted, enumerated over random pairs on five tokens."""
    from tutor.speculative.stats import (
        TableModel,
        enumerate_law,
        expected_emission,
        joint,
        sample_chain,
        sample_tree,
        total_variation,
    )
    from tutor.speculative.verify.recursive import Recursive

    pairs, accepted, never_less, worst = 8, {True: 0.0, False: 0.0}, True, 0.0
    single = 0.0
    for seed in range(pairs):
        p, q = (TableModel.random(5, 2, 2 * seed + i) for i in (0, 1))
        got = {r: expected_emission(Recursive(), p, sample_tree(q, (3,), replacement=r)) - 1 for r in (True, False)}
        accepted = {r: accepted[r] + got[r] / pairs for r in got}
        never_less &= got[False] >= got[True] - 1e-12
        single += (expected_emission(Recursive(), p, sample_chain(q, 1)) - 1) / pairs
        for r in (True, False):
            law = enumerate_law(Recursive(), p, sample_tree(q, (2,), replacement=r), 2)
            worst = max(worst, total_variation(law, joint(p, 2)))
    holds = never_less and worst <= 1e-12 and accepted[False] > accepted[True] > single
    return Measured("holds" if holds else "not_here",
                    {"one_child": single, "with_replacement": accepted[True], "without_replacement": accepted[False],
                     "worst_total_variation": worst},
                    f"Of three sampled children one is accepted in {100 * accepted[False]:.1f} % of the cases without "
                    f"replacement and {100 * accepted[True]:.1f} % with (one child: {100 * single:.1f} %), law exact.")


CLAIMS = (
    Claim("recursive.without-replacement-accepts-more", "speculative", "recursive",
          "Sampling siblings without replacement accepts more often than with, and both keep the target's law.",
          "Chen et al. 2024 (Sequoia), section 3.2, against Miao et al. 2024 (SpecInfer), section 4.3",
          without_replacement,
          Expected("holds", {"one_child": Number(0.58, 0.6, "chance"), "with_replacement": Number(0.73, 0.75, "chance"),
                             "without_replacement": Number(0.86, 0.88, "chance"),
                             "worst_total_variation": Number(0, 1e-12)}, DATE, machine=MACHINE),
          "The gain is largest where the draft is peaked: there, samples with replacement repeat themselves.",
          needs=""),
)
