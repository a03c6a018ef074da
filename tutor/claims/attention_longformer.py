"""Claim about dilated windows, measured on a model that never trained with holes."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def holes_see_farther() -> Measured:
    """252 keys in a band, without holes and with every second key, four globals each, at all recorded heads."""
    import torch

    from tutor.attention.frontier import sample_rows
    from tutor.attention.methods.longformer import Longformer
    from tutor.attention.selection import mass_recall
    from tutor.data import capture

    recorded = capture("reference_4096")
    rows, kept = sample_rows(len(recorded), 64, seed=0), {1: [], 2: []}
    for layer in recorded.layers:
        q, k = recorded.q(layer)[:, :, rows], recorded.k(layer)
        for dilation, mass in kept.items():
            mass.append(mass_recall(q, k, Longformer(252, dilation).select(q, k, pos_q=rows)[0]).mean(-1)[0])
    plain, holes = torch.cat(kept[1]), torch.cat(kept[2])
    numbers = {"mass_without_holes": float(plain.mean()), "mass_with_holes": float(holes.mean()),
               "heads_that_gain": int((holes > plain).sum())}
    return Measured("holds" if numbers["heads_that_gain"] >= 2 else "not_here", numbers,
                    f"252 keys and 4 globals keep {100 * plain.mean():.0f} % of the attention without holes and "
                    f"{100 * holes.mean():.0f} % with every second key; {numbers['heads_that_gain']} of {len(plain)} "
                    "heads gain.")


CLAIMS = (
    Claim("longformer.holes-see-farther", "attention", "longformer",
          "Dilating the window of a few heads lets them look farther for the same price, and helps.",
          "Beltagy et al. 2020, section 3.1 and the ablation on dilation", holes_see_farther,
          Expected("not_here", {
              "mass_without_holes": Number(0.82, 0.845, "of the mass"),
              "mass_with_holes": Number(0.605, 0.63, "of the mass"),
              "heads_that_gain": Number(0, 0, "of 27 heads")}, "2026-11-23", machine=MACHINE),
          stops="Their models train with the holes and learn to live with them. Ours did not: its heads look at the "
                "token just before, and a hole there cannot be mended by seeing farther.", needs="capture"),
)
