"""Claims about speculative sampling on a chain."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def law_is_exact() -> Measured:
    """Walk through every draft and every decision on random tables; compare the emitted law with the target's."""
    from tutor.speculative.stats import TableModel, enumerate_law, joint, sample_chain, total_variation
    from tutor.speculative.verify.chain import Chain

    worst, cases = 0.0, 0
    for vocabulary, gamma in ((2, 1), (4, 1), (4, 2), (8, 1), (8, 2)):
        for seed in range(4):
            p, q = (TableModel.random(vocabulary, gamma + 1, 2 * seed + i, sharpness=2.0) for i in (0, 1))
            law = enumerate_law(Chain(), p, sample_chain(q, gamma), gamma + 1)
            worst, cases = max(worst, total_variation(law, joint(p, gamma + 1))), cases + 1
    return Measured("holds" if worst <= 1e-12 else "not_here", {"worst_total_variation": worst, "cases": cases},
                    f"On {cases} pairs of random models the emitted law is the target's to {worst:.0e}.")


def mean_emission() -> Measured:
    """Tables without context make acceptance independent: the enumerated mean must be the closed form."""
    import torch

    from tutor.speculative.cost import expected_tokens
    from tutor.speculative.stats import TableModel, expected_emission, sample_chain
    from tutor.speculative.verify.chain import Chain

    worst = 0.0
    for seed in range(4):
        p, q = (TableModel.random(3, 0, 2 * seed + i)(()) for i in (0, 1))
        alpha = float(torch.minimum(p, q).sum())
        for gamma in (1, 2, 3):
            mean = expected_emission(Chain(), lambda context, p=p: p, sample_chain(lambda context, q=q: q, gamma))
            worst = max(worst, abs(mean - expected_tokens(alpha, gamma)))
    return Measured("holds" if worst <= 1e-12 else "not_here", {"worst_error": worst},
                    f"The mean emission of chains of 1 to 3 tokens is (1 - a^(g+1)) / (1 - a) to {worst:.0e}.")


CLAIMS = (
    Claim("chain.law-is-exact", "speculative", "chain",
          "The text has exactly the law of sampling from the target, whatever the draft.",
          "Leviathan et al. 2023, appendix A.1; Chen et al. 2023, theorem 1", law_is_exact,
          Expected("holds", {"worst_total_variation": Number(0, 1e-12), "cases": Number(20, 20)}, DATE,
                   machine=MACHINE),
          "It needs the distribution that each token was really drawn from, warped as the target's is.", needs=""),
    Claim("chain.mean-emission", "speculative", "chain",
          "With independent acceptance a, a step of g drafted tokens emits (1 - a^(g+1)) / (1 - a) tokens on average.",
          "Leviathan et al. 2023, equation 1", mean_emission,
          Expected("holds", {"worst_error": Number(0, 1e-12)}, DATE, machine=MACHINE),
          "Real acceptance is not independent: easy and hard stretches of text follow each other.", needs=""),
)
