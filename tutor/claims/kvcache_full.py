"""The price of forgetting nothing, by formula and by measurement."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

TOKENS = 512


def bytes_per_token() -> Measured:
    import torch

    import tutor
    from tutor.kvcache import RaggedCache, make
    from tutor.kvcache.metrics import row_bytes

    model = tutor.load()
    cache = RaggedCache.for_model(model, make("full"))
    model.forward(torch.arange(TOKENS)[None], cache=cache, logits="none")
    formula, measured = row_bytes(model.config, model.embedding.element_size()), cache.nbytes / TOKENS
    verdict = "holds" if abs(measured / formula - 1) <= 0.02 else "not_here"
    return Measured(verdict, {"formula": formula, "measured": measured},
                    f"A token takes {measured:.0f} bytes, {formula} by the formula; the rest are its positions.")


CLAIMS = (
    Claim(
        id="full.bytes-per-token", family="kvcache", method="full",
        paper_says="A cached token takes 2 · layers · KV heads · head width · bytes per number.",
        where="arithmetic of the Llama architecture",
        experiment=bytes_per_token,
        expected=Expected("holds", {
            "formula": Number(23040, 23040, "bytes"), "measured": Number(23040, 23500, "bytes")},
            date="2026-11-23", machine="2-core laptop-class CPU"),
        stops="Quantised or shared caches need their own formula.",
    ),
)
