"""Claim about how unequal rows are, measured on three recorded layers of the real model at 4 096 tokens."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number


def rows_need_very_different_budgets() -> Measured:
    """Keys that hold 95 % of a row's attention: their spread over rows and heads, and what one budget for all costs."""
    import torch

    from tutor.attention.frontier import sample_rows
    from tutor.attention.methods.oracle_topk import OracleTopK
    from tutor.attention.methods.oracle_topp import OracleTopP
    from tutor.attention.selection import mass_recall
    from tutor.data import capture

    recorded = capture("reference_4096")
    rows, counts, fixed = sample_rows(len(recorded), 64, seed=0), [], []
    for layer in recorded.layers:
        q, k = recorded.q(layer)[:, :, rows], recorded.k(layer)
        counts.append(OracleTopP(0.95).select(q, k, pos_q=rows)[0].counts().flatten().double())
    needed = torch.cat(counts)
    mean = int(needed.mean())
    for layer in recorded.layers:
        q, k = recorded.q(layer)[:, :, rows], recorded.k(layer)
        fixed.append(mass_recall(q, k, OracleTopK(mean).select(q, k, pos_q=rows)[0]).flatten())
    low, high = needed.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    numbers = {"keys_10th_percentile": low, "keys_90th_percentile": high, "keys_mean": float(needed.mean()),
               "rows_short_at_equal_budget": float((torch.cat(fixed) < 0.95).double().mean())}
    return Measured("holds" if high > 20 * low else "not_here", numbers,
                    f"To hold 95 % of its attention one row in ten needs {low:.0f} keys or fewer and one in ten needs "
                    f"{high:.0f} or more; with the mean, {mean}, for every row, "
                    f"{100 * numbers['rows_short_at_equal_budget']:.0f} % of the rows stay below 95 %.")


CLAIMS = (
    Claim("oracle_topp.rows-need-very-different-budgets", "attention", "oracle_topp",
          "How many keys matter changes from head to head and from query to query, so a fixed number of keys is "
          "wasteful for some and too small for others.",
          "Jiang et al. 2024 (MInference), section 2.2 (sparsity is dynamic)", rows_need_very_different_budgets,
          Expected("holds", {
              "keys_10th_percentile": Number(2, 6, "keys"),
              "keys_90th_percentile": Number(590, 670, "keys"),
              "keys_mean": Number(200, 221, "keys"),
              "rows_short_at_equal_budget": Number(0.31, 0.37, "of the rows")},
              "2026-11-23", machine="2-core laptop-class CPU"),
          headline="keys_90th_percentile",
          stops="Within one head the spread is smaller than between heads; an oracle pays for every score to know it.",
          needs="capture"),
)
