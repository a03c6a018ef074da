"""Claims about LeanAttention: occupancy of equal shares over lengths and batches, counted; and that any cut is exact."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"
WORKERS, HEADS, TILE = 108, 8, 256                     # multiprocessors of an A100, KV heads, keys of a tile


def equal_shares_keep_workers_busy() -> Measured:
    """Occupancy over contexts of 8 192 to 131 072 keys and 1 to 16 requests: equal shares, 4 splits, chosen splits."""
    from tutor.attention.methods.lean import makespan, schedule
    from tutor.attention.methods.split_k import best_splits, split_schedule

    busy = {"lean": [], "four": [], "chosen": []}
    for requests in range(1, 17):
        for tiles in range(32, 513, 16):
            outputs = [tiles] * (HEADS * requests)
            pieces = {"lean": schedule(outputs, WORKERS), "four": split_schedule(outputs, 4, WORKERS),
                      "chosen": split_schedule(outputs, best_splits(len(outputs), tiles, WORKERS), WORKERS)}
            for name, found in pieces.items():
                busy[name].append(sum(outputs) / (WORKERS * makespan(found)))
    gain = [lean / chosen for lean, chosen in zip(busy["lean"], busy["chosen"])]
    numbers = {"lean_worst": min(busy["lean"]), "lean_mean": sum(busy["lean"]) / len(gain),
               "four_splits_worst": min(busy["four"]), "chosen_splits_worst": min(busy["chosen"]),
               "chosen_splits_mean": sum(busy["chosen"]) / len(gain),
               "gain_mean": sum(gain) / len(gain), "gain_most": max(gain)}
    ahead = min(gain) >= 1 and numbers["gain_mean"] > 1.05
    verdict = "not_here" if not ahead else "holds" if numbers["lean_worst"] >= 0.95 else "in_part"
    return Measured(verdict, numbers,
                    f"Equal shares keep {100 * numbers['lean_mean']:.0f} % of the workers busy on average, "
                    f"{100 * numbers['lean_worst']:.0f} % at worst; splits chosen for each launch "
                    f"{100 * numbers['chosen_splits_mean']:.0f} % and {100 * numbers['chosen_splits_worst']:.0f} %. "
                    f"Counted in tiles that is {numbers['gain_mean']:.2f} times faster, at most "
                    f"{numbers['gain_most']:.2f} times.")


def any_cut_is_exact() -> Measured:
    """Eight requests of log-normal lengths: error, busiest worker against chosen splits, and partials stored."""
    import torch

    from tutor.attention.dense import attend
    from tutor.attention.methods.lean import Lean, fixups, makespan
    from tutor.attention.methods.split_k import SplitK

    g = torch.Generator().manual_seed(7)
    lengths = (torch.randn(8, generator=g).mul(0.8).exp() * 500).clamp(1, 2000).int().tolist()
    q = torch.randn(8, 4, 1, 16, generator=g, dtype=torch.float64)
    k, v = torch.randn(2, 8, 2, max(lengths), 16, generator=g, dtype=torch.float64)
    lean, split = Lean(13, 32), SplitK(13, 32)
    part = lean.attend(q, k, v, lengths=lengths)
    error = max(float((part.o[b] - attend(q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n]).o[0]).abs().max())
                for b, n in enumerate(lengths))
    shares, splits = (method.schedule(q, k, lengths=lengths) for method in (lean, split))
    numbers = {"error": error, "busiest_over_lean": makespan(splits) / makespan(shares),
               "partials_a_worker": fixups(shares) / lean.workers}
    holds = error < 1e-12 and numbers["partials_a_worker"] < 1
    return Measured("holds" if holds else "not_here", numbers,
                    f"Cuts in the middle of heads change the output by {error:.0e}; {fixups(shares)} partials are stored "
                    f"for {lean.workers} workers, and the busiest one runs {makespan(shares)} tiles, against "
                    f"{makespan(splits)} with the same number of splits for every request.")


CLAIMS = (
    Claim("lean.equal-shares-keep-workers-busy", "attention", "lean",
          "Equal shares of tiles occupy the device almost fully whatever the context length and the batch, where a "
          "fixed split leaves workers idle in its last wave.",
          "Sanovar et al. 2024, abstract and the comparison with Flash-Decoding (section unverified)",
          equal_shares_keep_workers_busy,
          Expected("in_part", {
              "lean_worst": Number(0.79, 0.791, "of the workers"),
              "lean_mean": Number(0.992, 0.993, "of the workers"),
              "four_splits_worst": Number(0.296, 0.297, "of the workers"),
              "chosen_splits_worst": Number(0.518, 0.519, "of the workers"),
              "chosen_splits_mean": Number(0.835, 0.837, "of the workers"),
              "gain_mean": Number(1.23, 1.24, "times"),
              "gain_most": Number(1.92, 1.94, "times")}, "2026-11-23", machine=MACHINE),
          stops="With few tiles a worker the remainder shows, for equal shares, too. Counted tiles, not seconds: "
                "bandwidth, waiting for other workers' partials and the second launch of a split are left out.",
          needs=""),
    Claim("lean.any-cut-is-exact", "attention", "lean",
          "Softmax attention joins exactly from pieces of unequal size, so a piece may end inside a head, and a worker "
          "leaves one partial at most for another.",
          "Sanovar et al. 2024, the associativity of the softmax reduction (section unverified)", any_cut_is_exact,
          Expected("holds", {
              "error": Number(0, 1e-12, "absolute"),
              "busiest_over_lean": Number(1.7, 2.1, "times"),
              "partials_a_worker": Number(0.8, 0.9, "partials")}, "2026-11-23", machine=MACHINE),
          stops="In low precision the order of merges shows in the last digits.",
          needs=""),
)
