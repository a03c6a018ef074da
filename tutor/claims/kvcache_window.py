"""Claims about the plain window: it breaks when the first tokens leave."""

from __future__ import annotations

import math

from tutor.claim import Claim, Expected, Measured, Number

TOKENS, BUDGET, CHUNK = 640, 192, 16


def without_sinks() -> Measured:
    """Stream a text through a window from its first token, and compare losses before and after the window is full."""
    import torch

    import tutor
    from tutor import texts
    from tutor.kvcache import RaggedCache, evaluate, make

    model = tutor.load()
    ids = model.encode(texts.reference(TOKENS + 1, model.tokenizer))[0, :TOKENS + 1]
    loss = {}
    for name, budget, params in (("full", None, {}), ("window", BUDGET, {}), ("sinks_window", BUDGET, {"n_sink": 1})):
        cache = RaggedCache.for_model(model, make(name, **params), budget)
        loss[name], _ = evaluate.losses(model, ids, cache, prefix=CHUNK, chunk=CHUNK)
    first = BUDGET - CHUNK                                        # call that brings the first eviction ends here
    extra = {name: loss[name] - loss["full"] for name in ("window", "sinks_window")}
    before = extra["window"][:first].abs().max().item()
    worst = math.exp(torch.stack([part.mean() for part in extra["window"][first:].split(32)]).max().item())
    after, one = (math.exp(extra[name][first:].mean().item()) for name in ("window", "sinks_window"))
    verdict = "holds" if after > 10 else "in_part" if after > 1.3 > one else "not_here"
    return Measured(verdict, {"before": before, "after": after, "worst_32_tokens": worst, "one_token_kept": one},
                    f"Perplexity is the full cache's until the first token goes, {after:.1f} times as high from then "
                    f"on ({worst:.1f} times in the worst 32 tokens), and {one:.2f} times if only that one token stays.")


CLAIMS = (
    Claim(
        id="window.without-sinks-explodes", family="kvcache", method="window",
        paper_says="Perplexity of window attention explodes as soon as the text is longer than the cache and the first "
                   "tokens are evicted, even by a single token.",
        where="Xiao et al. 2024, section 3.1 and figure 3",
        experiment=without_sinks,
        expected=Expected("in_part", {
            "before": Number(0, 0.05, "nats"), "after": Number(1.6, 3.2), "worst_32_tokens": Number(3, 9),
            "one_token_kept": Number(1, 1.2)}, date="2026-11-23", machine="2-core laptop-class CPU"),
        stops="The moment is the same, but perplexity doubles here and grows by orders of magnitude in larger models.",
    ),
)
