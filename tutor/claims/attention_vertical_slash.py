"""Claim about the estimate: whether the last 64 queries know the lines of all others."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def the_last_rows_know() -> Measured:
    """64 columns and 64 offsets for queries at 512, 1 024 and 1 536: by the last of 2 048, by themselves, blind."""
    import torch

    from tutor.attention.dense import probs
    from tutor.attention.methods.vertical_slash import lines, slash_sums
    from tutor.attention.selection import top_k
    from tutor.data import capture

    short, mass = capture("reference_4096").first(2048), {"last_rows": [], "own_rows": [], "blind": []}
    for layer in short.layers:
        q, k = short.q(layer), short.k(layer)
        late = lines(q, k)
        for begin in (512, 1024, 1536):
            pos = torch.arange(begin, begin + 64)
            a = probs(q[:, :, pos], k, pos_q=pos)
            back = pos[:, None] - torch.arange(k.shape[2])
            nothing = torch.zeros_like(late[0])
            for name, (vertical, slash) in (("last_rows", late), ("own_rows", (a.sum(2), slash_sums(a, pos))),
                                            ("blind", (nothing, nothing))):
                vertical, slash = vertical.clone(), slash.clone()
                vertical[..., :4], slash[..., :32] = torch.inf, torch.inf
                columns, offsets = top_k(vertical, 64), top_k(slash, 64)      # blind: ties, so the first 64 of each
                kept = (columns[:, :, None] | offsets[:, :, back.clamp(min=0)]) & (back >= 0)
                mass[name].append(torch.where(kept, a, 0.0).sum(-1).mean())
    numbers = {name: float(torch.stack(values).mean()) for name, values in mass.items()}
    gain = (numbers["last_rows"] - numbers["blind"]) / (numbers["own_rows"] - numbers["blind"])
    return Measured("holds" if gain > 0.7 else "in_part" if gain > 0.2 else "not_here", numbers,
                    f"64 columns and 64 diagonals chosen by the last queries keep {100 * numbers['last_rows']:.0f} % of the "
                    f"attention of earlier ones; chosen by those themselves {100 * numbers['own_rows']:.0f} %; the first 64 keys "
                    f"and the nearest 64, without looking, {100 * numbers['blind']:.0f} %.")


CLAIMS = (
    Claim("vertical_slash.the-last-rows-know", "attention", "vertical_slash",
          "The attention of the last 64 queries is enough to find the columns and diagonals of the whole prompt.",
          "Jiang et al. 2024, section 3.3", the_last_rows_know,
          Expected("not_here", {
              "last_rows": Number(0.7, 0.76, "of the mass"),
              "own_rows": Number(0.78, 0.84, "of the mass"),
              "blind": Number(0.7, 0.76, "of the mass")}, "2026-11-23", machine=MACHINE),
          stops="A small model on a manual that changes its subject every page, 2 048 tokens, 64 lines each. Their heads and "
                "prompts are a hundred times larger, their budgets nearly a fifth of all lines.", needs="capture"),
)
