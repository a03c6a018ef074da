"""The control's own claim: blind choice keeps the share of the mass that chance predicts."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number


def keeps_what_chance_predicts() -> Measured:
    """Mass of 256 random keys against own + (1 - own) * 255 / (n - 1), over all recorded heads."""
    import torch

    from tutor.attention.dense import probs
    from tutor.attention.frontier import sample_rows
    from tutor.attention.methods.random_k import RandomK
    from tutor.attention.selection import mass_recall
    from tutor.data import capture

    recorded = capture("reference_4096")
    rows, kept, chance, best = sample_rows(len(recorded), 64, seed=0), [], [], []
    for layer in recorded.layers:
        q, k = recorded.q(layer)[:, :, rows], recorded.k(layer)
        a = probs(q, k, pos_q=rows)
        own = a.gather(-1, rows.expand(*a.shape[:-1])[..., None])[..., 0]
        chance.append(own + (1 - own) * 255 / rows)                       # n = rows + 1 keys, one of them the own key
        kept.append(mass_recall(q, k, RandomK(256, seed=0).select(q, k, pos_q=rows)[0]))
        best.append(a.topk(256).values.sum(-1))
    kept, chance, best = (float(torch.cat(x).mean()) for x in (kept, chance, best))
    numbers = {"mass": kept, "chance": chance, "best": best}
    return Measured("holds" if abs(kept - chance) < 0.02 and kept < best / 3 else "not_here", numbers,
                    f"256 random keys keep {100 * kept:.1f} % of the attention, where chance predicts "
                    f"{100 * chance:.1f} % and the best 256 keys keep {100 * best:.0f} %.")


CLAIMS = (
    Claim("random_k.keeps-what-chance-predicts", "attention", "random_k",
          "A selector that knows nothing keeps, on average, its own key and a proportional share of the rest.",
          "no paper: arithmetic of drawing without replacement", keeps_what_chance_predicts,
          Expected("holds", {
              "mass": Number(0.145, 0.165, "of the mass"),
              "chance": Number(0.14, 0.155, "of the mass"),
              "best": Number(0.94, 0.96, "of the mass")}, "2026-11-23", machine="2-core laptop-class CPU"),
          stops="On average only: a row whose weight lies on one sink keeps nearly all of it or nearly none.",
          needs="capture"),
)
