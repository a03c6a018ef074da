"""Claim about random blocks, measured at equal load."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def chance_helps_the_window() -> Measured:
    """One global block and 15 others of 16 keys: 8 in the window and 7 random, all in the window, or all but one random."""
    import torch

    from tutor.attention.frontier import sample_rows
    from tutor.attention.methods.bigbird import BigBird
    from tutor.attention.selection import mass_recall
    from tutor.data import capture

    recorded = capture("reference_4096")
    rows, mass = sample_rows(len(recorded), 64, seed=0), {}
    for name, n_win, n_rand in (("mixed", 8, 7), ("window_only", 15, 0), ("random_only", 1, 14)):
        method, kept = BigBird(block=16, n_win=n_win, n_rand=n_rand, n_glob=1), []
        for layer in recorded.layers:
            q, k = recorded.q(layer)[:, :, rows], recorded.k(layer)
            kept.append(mass_recall(q, k, method.select(q, k, pos_q=rows)[0]))
        mass[name] = float(torch.cat(kept).mean())
    helps = mass["mixed"] > max(mass["window_only"], mass["random_only"])
    return Measured("holds" if helps else "not_here", mass,
                    f"At 248 keys a row, half window and half random keeps {100 * mass['mixed']:.0f} % of the attention, "
                    f"all window {100 * mass['window_only']:.0f} %, nearly all random {100 * mass['random_only']:.0f} %.")


CLAIMS = (
    Claim("bigbird.chance-helps-the-window", "attention", "bigbird",
          "Random blocks and a window together do better than either alone.",
          "Zaheer et al. 2020, section 2 and table 1", chance_helps_the_window,
          Expected("not_here", {
              "mixed": Number(0.765, 0.79, "of the mass"),
              "window_only": Number(0.81, 0.835, "of the mass"),
              "random_only": Number(0.565, 0.595, "of the mass")}, "2026-11-23", machine=MACHINE),
          stops="Theirs is the accuracy of models trained with the pattern, where random edges carry messages from layer to "
                "layer. In one layer of a model trained dense, a random block keeps only what chance gives it.",
          needs="capture"),
)
