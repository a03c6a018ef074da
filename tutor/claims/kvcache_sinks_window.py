"""Claims about attention sinks: four of them bring a window's perplexity back to that of recomputing the window."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tutor.claim import Claim, Expected, Measured, Number

TOKENS, PREFIX, BUDGET, CHUNK = 768, 256, 112, 16


def _recomputed(model, ids: torch.Tensor) -> float:
    """Perplexity when every call starts anew on the last `BUDGET + CHUNK` tokens: dear, and the paper's yardstick."""
    starts = range(PREFIX, PREFIX + (len(ids) - 1 - PREFIX) // CHUNK * CHUNK, CHUNK)
    windows = torch.stack([ids[s - BUDGET:s + CHUNK] for s in starts])                     # (W, BUDGET + CHUNK)
    targets = torch.stack([ids[s + 1:s + CHUNK + 1] for s in starts])
    with torch.no_grad():
        hidden = torch.cat([model.forward(part, logits="none").hidden[:, -CHUNK:] for part in windows.split(8)])
        logits = model.head(hidden).float()
    return math.exp(F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item())


def four_sinks() -> Measured:
    import tutor
    from tutor import texts
    from tutor.kvcache import evaluate

    model = tutor.load()
    ids = model.encode(texts.reference(TOKENS + 1, model.tokenizer))[0, :TOKENS + 1]
    again = _recomputed(model, ids)
    ppl = {n: evaluate.measure(model, ids, "sinks_window", BUDGET, prefix=PREFIX, chunk=CHUNK, n_sink=n).perplexity
           for n in (0, 1, 4)}
    four, one, none = ppl[4] / again, ppl[1] / again, ppl[0] / again
    restored = four <= 1.1 < none
    verdict = "not_here" if not restored else "in_part" if one <= 1.1 else "holds"
    return Measured(verdict, {"four_to_recomputed": four, "one_to_recomputed": one, "none_to_recomputed": none},
                    f"At {BUDGET} rows a head, perplexity is {none:.2f} times that of a recomputed window without "
                    f"sinks, {four:.2f} times with four, {one:.2f} times with one.")


CLAIMS = (
    Claim(
        id="sinks_window.four-sinks-keep-perplexity", family="kvcache", method="sinks_window",
        paper_says="Four first tokens beside a window bring perplexity back to a recomputed window's; one is too few.",
        where="section 3.1 and table 2 (number of sinks), figure 3 (against recomputation)",
        experiment=four_sinks,
        expected=Expected("in_part", {
            "four_to_recomputed": Number(0.9, 1.08), "one_to_recomputed": Number(0.88, 1.08),
            "none_to_recomputed": Number(1.6, 3.5)}, date="2026-11-23", machine="2-core laptop-class CPU"),
        stops="One sink does nearly all of it in this model, so that the number four is not seen here.",
    ),
)
