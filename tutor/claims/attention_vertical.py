"""Claim about columns: whether what the last queries read is what earlier queries read."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def fashion_lasts() -> Measured:
    """Columns voted for by 64 queries at 3 008 and by the last 64, among the 3 008 keys that both may read."""
    import torch

    from tutor.attention.dense import probs
    from tutor.attention.selection import top_k
    from tutor.data import capture

    recorded, then, count = capture("reference_4096"), torch.arange(3008, 3072), 64
    same, kept, best = [], [], []
    for layer in recorded.layers:
        q, k = recorded.q(layer), recorded.k(layer)
        last = probs(q[:, :, -64:], k)[0].mean(1)[:, :3008]                                  # (Hq, 3008)
        earlier = probs(q[:, :, then], k, pos_q=then)[0].mean(1)[:, :3008]
        a, b = top_k(last, count), top_k(earlier, count)
        same.append((a & b).sum(-1) / (a | b).sum(-1))
        kept.append((earlier * a).sum(-1))
        best.append((earlier * b).sum(-1))
    same, kept, best = (float(torch.cat(x).double().mean()) for x in (same, kept, best))
    numbers = {"jaccard": same, "mass": kept, "best_mass": best}
    return Measured("holds" if same > 0.5 else "in_part" if kept > 0.7 * best else "not_here", numbers,
                    f"The 64 favourite columns of the last queries and those of queries 1 024 rows earlier share "
                    f"{100 * same:.0f} % of their union, yet the wrong columns hold {100 * kept:.0f} % of the earlier "
                    f"attention where the right ones hold {100 * best:.0f} %: the sinks are in both.")


CLAIMS = (
    Claim("vertical.fashion-lasts", "attention", "vertical",
          "The keys that a window of queries attends to most stay the important ones.",
          "Li et al. 2024, SnapKV, section 3 (there: from the end of the prompt to the answer)", fashion_lasts,
          Expected("in_part", {
              "jaccard": Number(0.1, 0.13, "of the union"),
              "mass": Number(0.41, 0.445, "of the mass"),
              "best_mass": Number(0.52, 0.545, "of the mass")}, "2026-11-23", machine=MACHINE),
          stops="A reference manual changes its topic from page to page, and with it the favourite columns; what lasts is "
                "the sinks. The paper asks about answers that follow the question in its window.", needs="capture"),
)
