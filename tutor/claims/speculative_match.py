"""Claims about sample-and-match."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def neither_rule_dominates() -> Measured:
    """At every place of a text: one guess of a draft, by its best token and `match`, or by a sample and `chain`."""
    import torch

    import tutor
    from tutor.speculative.bench import PASSAGE, SELF_DRAFT
    from tutor.speculative.chooser import RandomChooser
    from tutor.speculative.tree import TokenTree
    from tutor.speculative.verify.match import Match
    from tutor.speculative.warp import Warp

    model = tutor.load()
    ids = torch.tensor([model.tokenizer.encode(PASSAGE)])
    with torch.inference_mode():
        p = Warp()(model.forward(ids).logits[0])                                          # (T, V)
        q = Warp()(model.forward(ids, layers=SELF_DRAFT[model.config.name]).logits[0])
    best = q.argmax(-1)
    match = p.gather(1, best[:, None])[:, 0]                                              # p(children), (T,)
    chain = torch.minimum(p, q).sum(-1)
    chooser, hits, draws = RandomChooser(0), 0, 20
    for t, row in enumerate(p):
        tree = TokenTree.chain(0, [int(best[t])])
        hits += sum(Match().verify(tree, torch.stack([row, row]), chooser).accepted for _ in range(draws))
    spread = float((match * (1 - match)).sum() / draws) ** 0.5 / len(p)
    error = abs(hits / draws / len(p) - float(match.mean())) / spread                      # in standard errors
    wins = float((match > chain).double().mean())
    return Measured("holds" if error < 4 and 0 < wins < 1 else "not_here",
                    {"match_acceptance": float(match.mean()), "chain_acceptance": float(chain.mean()),
                     "match_wins": wins, "standard_errors": error},
                    f"One guess per place: best token and match {100 * float(match.mean()):.0f} %, sample and chain "
                    f"{100 * float(chain.mean()):.0f} %; match is ahead at {100 * wins:.0f} % of the places.")


CLAIMS = (
    Claim("match.accepts-the-mass-of-its-children", "speculative", "match",
          "Sample-and-match accepts with the target's probability of the children, sampling with sum min(p, q); "
          "neither dominates the other.",
          "Miao et al. 2024 (SpecInfer), section 4.3, compares the two", neither_rule_dominates,
          Expected("holds", {"match_acceptance": Number(0.22, 0.31, "share"), "chain_acceptance": Number(0.58, 0.68, "share"),
                             "match_wins": Number(0.02, 0.15, "share of places"), "standard_errors": Number(0, 4)},
                   DATE, machine=MACHINE),
          "Here the sampled guess is far ahead on average; the best token wins only where the target is sure of it."),
)
