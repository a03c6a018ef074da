"""Claim about butterfly wiring: what grows with the logarithm, and what it keeps."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def a_logarithm_of_blocks() -> Measured:
    """Keys read per row from 4 096 to 65 536 tokens, counted; kept mass at 4 096 beside sinks and a window of equal load."""
    import torch

    from tutor.attention.frontier import sample_rows
    from tutor.attention.methods.butterfly import Butterfly, wired
    from tutor.attention.methods.streaming import Streaming
    from tutor.attention.selection import mass_recall
    from tutor.data import capture

    def blocks_read(length: int) -> float:
        number = torch.arange(length // 64)
        return float((wired(number[:, None], number) & (number <= number[:, None])).sum(-1).double().mean())

    recorded = capture("reference_4096")
    rows, mass = sample_rows(len(recorded), 64, seed=0), {"wired": [], "streaming": []}
    for layer in recorded.layers:
        q, k = recorded.q(layer)[:, :, rows], recorded.k(layer)
        choice, _ = Butterfly(64).select(q, k, pos_q=rows)
        load = round(float(choice.counts().double().mean()))
        same, _ = Streaming(4, load - 4).select(q, k, pos_q=rows)
        mass["wired"].append(mass_recall(q, k, choice))
        mass["streaming"].append(mass_recall(q, k, same))
    wires, near = (float(torch.cat(x).mean()) for x in mass.values())
    numbers = {"blocks_at_4096": blocks_read(4096), "blocks_at_65536": blocks_read(65536), "mass": wires,
               "mass_streaming": near}
    grows = numbers["blocks_at_65536"] - numbers["blocks_at_4096"] <= 4 / 2 + 1
    return Measured(("holds" if wires > near else "in_part") if grows else "not_here", numbers,
                    f"16 times the text costs {numbers['blocks_at_65536']:.1f} blocks a row in place of "
                    f"{numbers['blocks_at_4096']:.1f}; they keep {100 * wires:.0f} % of the attention, sinks and a window "
                    f"of the same size {100 * near:.0f} %.")


CLAIMS = (
    Claim("butterfly.a-logarithm-of-blocks", "attention", "butterfly",
          "A fixed butterfly pattern gives sparse attention at a fraction of the cost, with the quality of dense.",
          "Dao et al. 2022, section 3.3 (in the spirit of: the pattern here is ours)", a_logarithm_of_blocks,
          Expected("in_part", {
              "blocks_at_4096": Number(4.89, 4.892, "blocks of 64"),
              "blocks_at_65536": Number(6.989, 6.99, "blocks of 64"),
              "mass": Number(0.73, 0.76, "of the mass"),
              "mass_streaming": Number(0.83, 0.86, "of the mass")}, "2026-11-23", machine=MACHINE),
          headline="mass",
          stops="The cost is as said. The quality is not: wires laid before the text is seen keep less than the nearest "
                "keys do; their models trained with the pattern.", needs="capture"),
)
