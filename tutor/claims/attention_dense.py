"""Claim about the dense map itself, measured on three recorded layers of the real model at 4 096 tokens."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number


def most_weights_are_tiny() -> Measured:
    """Share of allowed pairs whose weight is under a tenth of the row's mean, and what they weigh together."""
    import torch

    from tutor.attention.dense import causal_mask, probs
    from tutor.attention.frontier import sample_rows
    from tutor.data import capture

    recorded = capture("reference_4096")
    rows = sample_rows(len(recorded), 64, seed=0)
    allowed = causal_mask(rows, len(recorded))                                            # (64, S)
    tiny, weight = [], []
    for layer in recorded.layers:
        a = probs(recorded.q(layer)[:, :, rows], recorded.k(layer), pos_q=rows)[0]        # (Hq, 64, S)
        small = (a < 0.1 / (rows + 1)[:, None]) & allowed
        tiny.append(small.sum((-1, -2)) / allowed.sum())
        weight.append(torch.where(small, a, 0.0).sum(-1).mean(-1))
    numbers = {"share_of_pairs": float(torch.cat(tiny).mean()), "share_of_mass": float(torch.cat(weight).mean())}
    holds = numbers["share_of_pairs"] > 0.5 and numbers["share_of_mass"] < 0.05
    return Measured("holds" if holds else "not_here", numbers,
                    f"{100 * numbers['share_of_pairs']:.0f} % of the weights that dense attention computes are below "
                    f"a tenth of their row's mean; together they carry {100 * numbers['share_of_mass']:.1f} % of the "
                    "attention.")


CLAIMS = (
    Claim("dense.most-weights-are-tiny", "attention", "dense",
          "Dense attention spends most of its work on weights that hardly matter.",
          "Jiang et al. 2024 (MInference), section 2.2", most_weights_are_tiny,
          Expected("holds", {
              "share_of_pairs": Number(0.79, 0.85, "of the causal pairs"),
              "share_of_mass": Number(0.006, 0.012, "of the mass")}, "2026-11-23", machine="2-core laptop-class CPU"),
          stops="Which weights are tiny is known only after they have been computed: that is every selector's problem.",
          needs="capture"),
)
