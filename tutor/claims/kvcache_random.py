"""The control: lots must lose, or the other numbers mean nothing."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

TOKENS, PREFIX, CHUNK, BUDGET = 768, 384, 16, 128


def lots_lose() -> Measured:
    import tutor
    from tutor import texts
    from tutor.kvcache import evaluate

    model = tutor.load()
    ids = model.encode(texts.reference(TOKENS + 1, model.tokenizer))[0, :TOKENS + 1]
    ppl = {name: evaluate.measure(model, ids, name, BUDGET, prefix=PREFIX, chunk=CHUNK).perplexity
           for name in ("random", "window", "h2o")}
    numbers = {f"random_to_{name}": ppl["random"] / ppl[name] for name in ("window", "h2o")}
    verdict = "holds" if min(numbers.values()) > 1.2 else "in_part" if min(numbers.values()) > 1 else "not_here"
    return Measured(verdict, numbers,
                    f"At {BUDGET} rows a head, random ones give {numbers['random_to_window']:.1f} times the perplexity "
                    f"of a plain window and {numbers['random_to_h2o']:.1f} times that of H2O.")


CLAIMS = (
    Claim(
        id="random.is-the-floor", family="kvcache", method="random",
        paper_says="No paper's claim but our control: a policy worth its name beats random eviction of as many rows.",
        where="this course",
        experiment=lots_lose,
        expected=Expected("holds", {"random_to_window": Number(4, 10), "random_to_h2o": Number(8, 20)},
                          date="2026-11-23", machine="2-core laptop-class CPU"),
        stops="At budgets near the length of the text, where nothing much is evicted.",
    ),
)
