"""Claims about trees from a draft model."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def more_guesses() -> Measured:
    """How often the target's best token is among the draft's k best, at every place of a text."""
    import torch

    import tutor
    from tutor.speculative.bench import PASSAGE, SELF_DRAFT

    model = tutor.load()
    ids = torch.tensor([model.tokenizer.encode(PASSAGE)])
    with torch.inference_mode():
        wanted = model.forward(ids).logits[0].argmax(-1)                                  # (T,)
        guesses = model.forward(ids, layers=SELF_DRAFT[model.config.name]).logits[0].topk(5, -1).indices
    hit = (guesses == wanted[:, None]).double().cumsum(-1).mean(0).tolist()
    gain = hit[4] - hit[0]
    return Measured("holds" if gain > 0.1 else "not_here", {"top_1": hit[0], "top_2": hit[1], "top_5": hit[4]},
                    f"The target's choice is the draft's first guess at {100 * hit[0]:.0f} % of the places, among its first "
                    f"two at {100 * hit[1]:.0f} %, among five at {100 * hit[4]:.0f} %.")


CLAIMS = (
    Claim("model_tree.more-guesses-find-the-token", "speculative", "model_tree",
          "A draft's few most probable tokens hold the target's choice far more often than its best one does.",
          "Miao et al. 2024 (SpecInfer), section 3, table 1", more_guesses,
          Expected("holds", {"top_1": Number(0.51, 0.62, "share"), "top_2": Number(0.69, 0.8, "share"),
                             "top_5": Number(0.85, 0.95, "share")}, DATE, machine=MACHINE),
          "Every further guess is one more row to verify, at every depth."),
)
