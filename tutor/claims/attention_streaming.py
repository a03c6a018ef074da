"""Claims about attention sinks, measured on three recorded layers of the real model at 4 096 tokens."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def sinks_hold_the_mass() -> Measured:
    """Share of the attention that lies on the first four keys, median over heads, deep layers against an early one."""
    import torch

    from tutor.attention.dense import probs
    from tutor.attention.frontier import sample_rows
    from tutor.data import capture

    recorded = capture("reference_4096")
    rows, share = sample_rows(len(recorded), 64, seed=0), {}
    for layer in recorded.layers:
        a = probs(recorded.q(layer)[:, :, rows], recorded.k(layer), pos_q=rows)[0]        # (Hq, 64, S)
        share[layer] = a[..., :4].sum(-1).mean(-1)                                        # (Hq,)
    early, *later = recorded.layers
    deep = torch.cat([share[layer] for layer in later])
    numbers = {"deep_share": float(deep.median()), "early_share": float(share[early].median()),
               "deep_heads_above_0.3": float((deep > 0.3).double().mean())}
    holds = numbers["deep_share"] > 0.3 and numbers["deep_share"] > 10 * numbers["early_share"]
    return Measured("in_part" if holds else "not_here", numbers,
                    f"In layers {later[0]} and {later[-1]} the median head puts {100 * numbers['deep_share']:.0f} % "
                    f"of its attention on the first 4 of up to 4096 keys; in layer {early} it puts "
                    f"{100 * numbers['early_share']:.1f} % there.")


def four_keys_save_the_window() -> Measured:
    """The same 256 keys per query, four of them at the start or all of them recent, at all recorded heads."""
    from tutor.attention.frontier import frontier
    from tutor.data import capture

    table = frontier(capture("reference_4096"), ["window", "streaming"], rows=64, seed=0)
    (window,) = [p for p in table.series("window") if p["params"] == {"window": 256}]
    (sinks,) = [p for p in table.series("streaming") if p["params"] == {"sinks": 4, "window": 252}]
    numbers = {"mass_window": window["mass"], "mass_with_sinks": sinks["mass"],
               "error_window": window["error"], "error_with_sinks": sinks["error"]}
    holds = sinks["mass"] > window["mass"] + 0.1 and sinks["error"] < window["error"] / 2
    return Measured("holds" if holds else "not_here", numbers,
                    "At 256 keys a query, giving 4 of them to the start lifts the kept attention from "
                    f"{100 * window['mass']:.0f} % to {100 * sinks['mass']:.0f} % and cuts the output error from "
                    f"{window['error']:.2f} to {sinks['error']:.2f}.")


CLAIMS = (
    Claim("streaming.sinks-hold-the-mass", "attention", "streaming",
          "Beyond the bottom layers, heads consistently put a large share of their attention on the first few "
          "tokens, whatever those tokens mean.",
          "Xiao et al. 2024, section 3.1 and figure 2", sinks_hold_the_mass,
          Expected("in_part", {
              "deep_share": Number(0.52, 0.57, "of the mass"),
              "early_share": Number(0.001, 0.003, "of the mass"),
              "deep_heads_above_0.3": Number(0.83, 0.95, "of the heads")}, "2026-11-23", machine=MACHINE),
          stops="It is a fact about most heads of the deep layers: some deep heads park less than a third there, and "
                "the early layer almost nothing.", needs="capture"),
    Claim("streaming.four-keys-save-the-window", "attention", "streaming",
          "Keeping the keys of four initial tokens beside the window largely recovers the attention that a window "
          "alone loses.",
          "Xiao et al. 2024, section 3.2", four_keys_save_the_window,
          Expected("holds", {
              "mass_window": Number(0.47, 0.51, "of the mass"),
              "mass_with_sinks": Number(0.82, 0.85, "of the mass"),
              "error_window": Number(1.3, 1.45, "of the output's length"),
              "error_with_sinks": Number(0.17, 0.2, "of the output's length")}, "2026-11-23", machine=MACHINE),
          headline="mass_with_sinks",
          stops="Heads that fetch words from the middle of the text (layer 20) still lose what lies between the sinks "
                "and the window.", needs="capture"),
)
