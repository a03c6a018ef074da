"""Claims about plain decoding."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def one_pass_per_token() -> Measured:
    """Count passes, and compare the text of the engine's root-only trees with the model's own loop."""
    import torch

    import tutor
    from tutor.speculative.bench import prompts
    from tutor.speculative.draft.autoregressive import Autoregressive
    from tutor.speculative.engine import generate
    from tutor.speculative.warp import GREEDY

    model = tutor.load(dtype=torch.float32)
    prompt = prompts(model, "chat")[0]
    out = generate(model, Autoregressive(), prompt, max_new=24, warp=GREEDY)
    same = out.tokens == model.generate(prompt, max_new=24).tokens
    return Measured("holds" if same and out.stats.tokens_per_step == 1 else "not_here",
                    {"tokens_per_step": out.stats.tokens_per_step, "same_text": float(same)},
                    "Every token takes one pass over all weights; the text is that of the model's own loop.")


CLAIMS = (
    Claim("autoregressive.one-pass-per-token", "speculative", "autoregressive",
          "Decoding K tokens takes K passes of the model, one after the other.", "Leviathan et al. 2023, abstract",
          one_pass_per_token,
          Expected("holds", {"tokens_per_step": Number(1, 1), "same_text": Number(1, 1)}, DATE, machine=MACHINE),
          "Batches share a pass between texts; within one text nothing but a guess can"),
)
