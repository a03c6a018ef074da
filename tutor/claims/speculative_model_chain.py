"""Claims about drafting with a model."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def half_the_layers() -> Measured:
    """Acceptance of the model without some of its layers, and the best modelled speed-up that follows from it."""
    import torch

    import tutor
    from tutor.speculative.bench import PASSAGE, SELF_DRAFT
    from tutor.speculative.cost import chain_speedup
    from tutor.speculative.warp import Warp

    model = tutor.load()
    c = model.config
    ids = torch.tensor([model.tokenizer.encode(PASSAGE)])
    head = c.vocab * c.width
    block = 2 * c.width * c.head_dim * (c.n_heads + c.n_kv_heads) + 3 * c.width * c.ffn_width
    kept = {"alpha_26": SELF_DRAFT[c.name], "alpha_15_first": range(15), "alpha_15_even": range(0, 30, 2)}
    with torch.inference_mode():
        p = Warp()(model.forward(ids).logits[0])                                          # (T, V)
        alpha = {name: float(torch.minimum(p, Warp()(model.forward(ids, layers=layers).logits[0])).sum(-1).mean())
                 for name, layers in kept.items()}
    costs = {name: (head + len(layers) * block) / (head + c.n_layers * block) for name, layers in kept.items()}
    gain = max(chain_speedup(alpha[name], gamma, costs[name]) for name in kept for gamma in range(1, 9))
    half = max(alpha["alpha_15_first"], alpha["alpha_15_even"])
    return Measured("holds" if gain > 1.5 else "in_part" if gain > 1 else "not_here",
                    {**alpha, "best_modelled_gain": gain},
                    f"Without 4 of its 30 layers the model accepts {100 * alpha['alpha_26']:.0f} % of its own drafts, "
                    f"without half of them at most {100 * half:.0f} %; by bytes read the best chain is {gain:.2f} times as "
                    "fast as none.")


CLAIMS = (
    Claim("model_chain.cheap-draft-pays", "speculative", "model_chain",
          "A cheaper approximation of the target makes decoding 2 to 3 times as fast; the draft should be about two "
          "orders of magnitude smaller.",
          "Leviathan et al. 2023, section 4; Chen et al. 2023, section 4", half_the_layers,
          Expected("not_here", {"alpha_26": Number(0.58, 0.68, "share"), "alpha_15_first": Number(0.1, 0.17, "share"),
                                "alpha_15_even": Number(0.01, 0.06, "share"),
                                "best_modelled_gain": Number(0.83, 0.9, "times plain decoding")}, DATE, machine=MACHINE),
          "Here the draft is the model itself without some layers: neither small nor, without training, accurate. The "
          "law of the text is exact all the same."),
)
