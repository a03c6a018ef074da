"""Claim about the two-level look-up of Squeezed Attention, on three recorded layers of the real model."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def fewer_scores_same_keys() -> Measured:
    """Flat and two-level look-up at the same sparsity: centroids met, keys read, mass kept."""
    import torch

    from tutor.attention.dense import probs
    from tutor.attention.methods.squeezed import build, calibrate, keys_of, lookup
    from tutor.data import capture

    recorded, prefix, window = capture("reference_4096"), 3840, 100
    pos = torch.linspace(prefix, len(recorded) - 1, 32).long()
    layers = [(recorded.q(layer), recorded.k(layer)) for layer in recorded.layers]
    indexes = [build(k[:, :, :prefix], q[:, :, prefix - window : prefix], window=window, coarse_frac=0.01) for q, k in layers]
    weights = [probs(q[:, :, pos], k, pos_q=pos) for q, k in layers]
    totals = {}
    for name, sparsities in (("flat", (0.9,)), ("two", (0.7, 0.9))):
        thresholds, dots, load, mass = calibrate(indexes, *sparsities), 0, [], []
        for (q, _), index, a in zip(layers, indexes, weights):
            kept, met = lookup(index, q[:, :, pos], *thresholds)
            mask = keys_of(index, kept, pos, a.shape[3], sinks=4)
            dots += met
            load.append(float(mask[..., :prefix].double().mean()))
            mass.append(float(torch.where(mask, a, 0.0).sum(-1).mean()))
        totals[name] = dots / (len(layers) * 9 * len(pos)), sum(load) / len(load), sum(mass) / len(mass)
    numbers = {"met_flat": totals["flat"][0], "met_two": totals["two"][0], "load_flat": totals["flat"][1],
               "load_two": totals["two"][1], "mass_flat": totals["flat"][2], "mass_two": totals["two"][2]}
    holds = numbers["met_two"] < 0.7 * numbers["met_flat"] and numbers["mass_two"] > numbers["mass_flat"] - 0.01
    return Measured("holds" if holds else "in_part", numbers,
                    f"A flat look-up meets {numbers['met_flat']:.0f} centroids a query, two levels {numbers['met_two']:.0f}. "
                    f"They read {numbers['load_flat']:.1%} and {numbers['load_two']:.1%} of the prefix and keep "
                    f"{numbers['mass_flat']:.1%} and {numbers['mass_two']:.1%} of the attention.")


CLAIMS = (
    Claim("squeezed_hierarchical.fewer-scores-same-keys", "attention", "squeezed_hierarchical",
          "A hierarchical look-up cuts the cost of finding the important keys while it finds about the same ones.",
          "Hooper et al. 2024, section 4.3 (section unverified)", fewer_scores_same_keys,
          Expected("holds", {
              "met_flat": Number(187, 187, "centroids"),
              "met_two": Number(85, 99, "centroids"),
              "load_flat": Number(0.12, 0.136, "of the prefix"),
              "load_two": Number(0.117, 0.133, "of the prefix"),
              "mass_flat": Number(0.948, 0.962, "of the mass"),
              "mass_two": Number(0.944, 0.959, "of the mass")}, "2026-11-23", machine=MACHINE),
          headline="met_two",
          stops="At this length a flat look-up is cheap already: 187 products beside some 500 keys read. With the first four "
                "keys always read, as in the flat one.", needs="capture"),
)
