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


def ragged_requests_of_the_real_model() -> Measured:
    """Twenty batches of eight ragged requests on 32 workers; the outputs of three of them against dense attention."""
    import torch

    from tutor.attention.dense import attend
    from tutor.attention.methods.lean import Lean, makespan, schedule, tiles_of
    from tutor.attention.methods.split_k import best_splits, split_schedule
    from tutor.data import capture

    recorded, g, workers = capture("reference_4096"), torch.Generator().manual_seed(0), 32
    busiest, error = {"one": 0, "four": 0, "chosen": 0, "lean": 0}, 0.0
    for batch in range(20):
        lengths = (torch.randn(8, generator=g).mul(0.8).exp() * 900).clamp(100, 4096).int().tolist()
        layer = recorded.layers[batch % len(recorded.layers)]
        k, v = (x.double().expand(8, -1, -1, -1) for x in (recorded.k(layer), recorded.v(layer)))
        if batch < len(recorded.layers):                                  # each asks from the end of its own text
            q = torch.cat([recorded.q(layer)[:, :, n - 1:n] for n in lengths]).double()
            o = Lean(workers, TILE).attend(q, k, v, lengths=lengths).o
            truth = torch.cat([attend(q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n]).o for b, n in enumerate(lengths)])
            error = max(error, float((o - truth).abs().max()))
        tiles = tiles_of(k, TILE, lengths)
        for name, splits in (("one", 1), ("four", 4), ("chosen", best_splits(len(tiles), max(tiles), workers))):
            busiest[name] += makespan(split_schedule(tiles, splits, workers))
        busiest["lean"] += makespan(schedule(tiles, workers))
    gain = {name: total / busiest["lean"] for name, total in busiest.items()}
    numbers = {"over_one_worker_a_head": gain["one"], "over_four_splits": gain["four"],
               "over_chosen_splits": gain["chosen"], "error": error}
    verdict = "not_here" if min(gain.values()) < 1 or error > 1e-12 else "holds" if gain["chosen"] > 1.5 else "in_part"
    return Measured(verdict, numbers,
                    f"On 20 batches of 8 ragged requests equal shares need {gain['one']:.2f} times fewer tile times than "
                    f"one worker a head and {gain['chosen']:.2f} times fewer than chosen splits; the outputs are those of "
                    f"dense attention to {error:.0e}.")


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
          headline="lean_worst",
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
    Claim("lean.ragged-requests-of-the-real-model", "attention", "lean",
          "LeanAttention is 1.73 times faster than Flash-Decoding on average, up to 2.18 times at 256 K keys, and 2.6 times "
          "faster than FlashAttention-2 (an earlier version's mean).",
          "Sanovar et al. 2024, abstracts of two versions", ragged_requests_of_the_real_model,
          Expected("in_part", {
              "over_one_worker_a_head": Number(2.45, 2.48, "times"),
              "over_four_splits": Number(1.12, 1.14, "times"),
              "over_chosen_splits": Number(1.07, 1.09, "times"),
              "error": Number(0, 1e-12, "absolute")}, "2026-11-23", machine=MACHINE),
          stops="Counted tiles of at most 4 096 keys on 32 workers, no GPU. Splits that adapt to the batch come near; a large "
                "gain needs a batch that falls badly into waves.",
          needs="capture"),
)
