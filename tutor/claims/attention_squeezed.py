"""Claims about Squeezed Attention: decoding steps after a fixed prefix, three recorded layers of the real model."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"
PREFIX, WINDOW = 3840, 100               # of 4096 recorded tokens: the last 256 are the questions


def measured(sparsities, *, clusters="kmeans", sinks=(0,), rows=32):
    """One threshold for all layers and heads at each sparsity; load of the prefix, mass and output error per layer.

    `clusters`: "kmeans", or "pages" of neighbouring keys, as many.
    Returns `{(sparsity, sinks): (load (layers,), mass, error)}`, means over heads and over decoding steps.
    """
    from dataclasses import replace

    import torch

    from tutor.attention.dense import attend, probs
    from tutor.attention.methods.squeezed import Squeezed, _means, build, calibrate
    from tutor.attention.selection import attend_selected, output_error
    from tutor.data import capture

    recorded = capture("reference_4096")
    pos, layers = torch.linspace(PREFIX, len(recorded) - 1, rows).long(), {}
    for layer in recorded.layers:
        q, k = recorded.q(layer), recorded.k(layer)
        frac = 0.05 if clusters == "kmeans" else 1e-6                       # one cluster, replaced at once
        index = build(k[:, :, :PREFIX], q[:, :, PREFIX - WINDOW : PREFIX], window=WINDOW, frac=frac)
        if clusters == "pages":
            n = PREFIX - WINDOW
            labels = (torch.arange(n) * int(0.05 * n) // n).expand(1, k.shape[1], n)
            centroids, counts = _means(k[:, :, :n], torch.ones_like(labels), labels)
            index = replace(index, labels=labels, centroids=centroids, counts=counts)
        v, some = recorded.v(layer), q[:, :, pos]
        layers[layer] = index, some, k, v, probs(some, k, pos_q=pos), attend(some, k, v, pos_q=pos).o
    found = {}
    for p in sparsities:
        (threshold,) = calibrate([index for index, *_ in layers.values()], p)
        for first in sinks:
            rows_of = []
            for index, some, k, v, a, whole in layers.values():
                sel, _ = Squeezed(threshold=threshold, window=WINDOW, sinks=first).select(some, k, pos_q=pos, index=index)
                mask = sel.mask()
                rows_of.append((float(mask[..., :PREFIX].double().mean()), float(torch.where(mask, a, 0.0).sum(-1).mean()),
                                float(output_error(attend_selected(some, k, v, sel).o, whole).mean())))
            found[p, first] = torch.tensor(rows_of, dtype=torch.float64).T
    return found


def a_third_and_an_eighth() -> Measured:
    """Mass and output error at 1/3 and 1/8 of the prefix, as the rule says and with the first four keys always read."""
    found = measured((0.62, 0.9), sinks=(0, 4))
    numbers = {}
    for name, p in (("third", 0.62), ("eighth", 0.9)):
        load, mass, error = found[p, 0]
        numbers |= {f"{name}_load": float(load.mean()), f"{name}_mass": float(mass.mean()), f"{name}_error": float(error.mean())}
        numbers[f"{name}_error_with_sinks"] = float(found[p, 4][2].mean())
    numbers["eighth_error_layer_2"], numbers["eighth_error_layer_25"] = (float(found[0.9, 0][2][i]) for i in (0, 2))
    good = lambda suffix: numbers["third_error" + suffix] < 0.05 and numbers["eighth_error" + suffix] < 0.1
    return Measured("holds" if good("") else "in_part" if good("_with_sinks") else "not_here", numbers,
                    f"With {numbers['third_load']:.0%} of the prefix the output is off by {numbers['third_error']:.2f}, with "
                    f"{numbers['eighth_load']:.0%} by {numbers['eighth_error']:.2f} of its length. If the first 4 keys are "
                    f"always read, by {numbers['third_error_with_sinks']:.3f} and {numbers['eighth_error_with_sinks']:.3f}.")


def meaning_beats_neighbourhood() -> Measured:
    """As many clusters by direction as pages of neighbours, the first four keys read in both: error at equal sparsity."""
    kmeans, pages = (measured((0.9,), clusters=kind, sinks=(4,))[0.9, 4] for kind in ("kmeans", "pages"))
    numbers = {"load_clusters": float(kmeans[0].mean()), "load_pages": float(pages[0].mean()),
               "error_clusters": float(kmeans[2].mean()), "error_pages": float(pages[2].mean())}
    fewer = numbers["load_clusters"] < 1.1 * numbers["load_pages"]
    return Measured("holds" if fewer and numbers["error_clusters"] < 0.8 * numbers["error_pages"] else "not_here", numbers,
                    f"Clusters of similar keys: {numbers['load_clusters']:.1%} of the prefix read, output error "
                    f"{numbers['error_clusters']:.3f}. As many pages of neighbouring keys: {numbers['load_pages']:.1%} and "
                    f"{numbers['error_pages']:.3f}.")


CLAIMS = (
    Claim("squeezed.a-third-and-an-eighth", "attention", "squeezed",
          "A KV cache 3.1 times smaller costs no noticeable accuracy, one 8 times smaller half a point on LongBench.",
          "Hooper et al. 2024, abstract", a_third_and_an_eighth,
          Expected("in_part", {
              "third_load": Number(0.32, 0.345, "of the prefix"),
              "third_mass": Number(0.86, 0.885, "of the mass"),
              "third_error": Number(0.34, 0.4, "of the output's length"),
              "third_error_with_sinks": Number(0.008, 0.014, "of the output's length"),
              "eighth_load": Number(0.12, 0.135, "of the prefix"),
              "eighth_mass": Number(0.72, 0.76, "of the mass"),
              "eighth_error": Number(0.67, 0.76, "of the output's length"),
              "eighth_error_with_sinks": Number(0.038, 0.049, "of the output's length"),
              "eighth_error_layer_2": Number(0.06, 0.076, "of the output's length"),
              "eighth_error_layer_25": Number(1.35, 1.53, "of the output's length")}, "2026-11-23", machine=MACHINE),
          headline="eighth_error",
          stops="Output error, not answers: LongBench is not run here. The sink at key 0 is the only one of its kind; k-means "
                "puts it with keys it has nothing in common with, and their mean does not speak for it. Layer 2, which has no "
                "sink, does well without help; layer 25 fails without those four keys.", needs="capture"),
    Claim("squeezed.meaning-beats-neighbourhood", "attention", "squeezed",
          "Clusters of similar keys choose better than pages of consecutive ones at the same budget.",
          "Hooper et al. 2024, section 5, against QUEST (section unverified)", meaning_beats_neighbourhood,
          Expected("holds", {
              "load_clusters": Number(0.12, 0.136, "of the prefix"),
              "load_pages": Number(0.132, 0.149, "of the prefix"),
              "error_clusters": Number(0.038, 0.049, "of the output's length"),
              "error_pages": Number(0.057, 0.069, "of the output's length")}, "2026-11-23", machine=MACHINE),
          headline="error_clusters",
          stops="Pages need no k-means, and a page is one stretch of memory; a cluster's keys lie scattered.", needs="capture"),
)
