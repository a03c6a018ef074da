"""Claim about sparsity, measured on three recorded layers of the real model at 4 096 tokens."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number


def few_keys_hold_the_mass() -> Measured:
    """Attention mass of the best 1 % of the keys of each row, per head."""
    import torch

    from tutor.attention.dense import probs
    from tutor.attention.frontier import sample_rows
    from tutor.data import capture

    recorded = capture("reference_4096")
    rows, mass = sample_rows(len(recorded), 64, seed=0), {}
    for layer in recorded.layers:
        a = probs(recorded.q(layer)[:, :, rows], recorded.k(layer), pos_q=rows)[0]        # (Hq, 64, S)
        best = a.sort(-1, descending=True).values.cumsum(-1)
        percent = ((rows + 1) / 100).ceil().long() - 1                                    # last of the best 1 %
        mass[layer] = best[:, torch.arange(len(rows)), percent].mean(-1)                  # (Hq,)
    early, *later = recorded.layers
    deep = torch.cat([mass[layer] for layer in later])
    numbers = {"deep_mass": float(deep.median()), "deep_mass_least": float(deep.min()),
               "early_mass": float(mass[early].median())}
    holds = numbers["deep_mass"] > 0.8
    verdict = "not_here" if not holds else "holds" if numbers["early_mass"] > 0.8 else "in_part"
    return Measured(verdict, numbers,
                    f"The best 1 % of the keys hold {100 * numbers['deep_mass']:.0f} % of the attention in the median "
                    f"head of layers {later[0]} and {later[-1]}, and {100 * numbers['early_mass']:.0f} % in layer "
                    f"{early}.")


CLAIMS = (
    Claim("oracle_topk.few-keys-hold-the-mass", "attention", "oracle_topk",
          "Attention over a long prompt is sparse: a few per cent of the keys hold almost all of a row's weight.",
          "Jiang et al. 2024 (MInference), section 2.2", few_keys_hold_the_mass,
          Expected("in_part", {
              "deep_mass": Number(0.89, 0.94, "of the mass"),
              "deep_mass_least": Number(0.53, 0.59, "of the mass"),
              "early_mass": Number(0.5, 0.55, "of the mass")}, "2026-11-23", machine="2-core laptop-class CPU"),
          stops="Early layers average over many keys: there the same 1 % holds about half of the weight.",
          needs="capture"),
)
