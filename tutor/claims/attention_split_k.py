"""Claim about Flash-Decoding: splits fill a device that one request leaves idle; counted, no clock."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"
WORKERS, HEADS = 108, 8                                # multiprocessors of an A100, KV heads


def splits_fill_the_device() -> Measured:
    """Makespan of one request of 8 192 to 131 072 keys with and without splits; then the worst of 1 to 16 requests."""
    from tutor.attention.methods.lean import makespan, occupancy
    from tutor.attention.methods.split_k import best_splits, split_makespan, split_schedule

    lengths, gain, busy = range(32, 513, 16), [], []
    for tiles in lengths:
        pieces = split_schedule([tiles] * HEADS, best_splits(HEADS, tiles, WORKERS), WORKERS)
        gain.append(split_makespan(HEADS, tiles, 1, WORKERS) / makespan(pieces))
        busy.append(occupancy(pieces, WORKERS))
    crowd = {n: occupancy(split_schedule([512] * HEADS * n, best_splits(HEADS * n, 512, WORKERS), WORKERS), WORKERS)
             for n in range(1, 17)}
    worst = min(crowd, key=crowd.get)
    numbers = {"busy_without": HEADS / WORKERS, "busy_with_worst": min(busy), "gain_least": min(gain),
               "gain_most": max(gain), "crowd_worst": crowd[worst], "crowd_worst_requests": worst}
    return Measured("holds" if min(gain) > 5 else "in_part" if min(gain) > 1 else "not_here", numbers,
                    f"One request without splits keeps {100 * HEADS / WORKERS:.0f} % of {WORKERS} workers busy; with "
                    f"them at least {100 * min(busy):.0f} %, and the busiest runs {min(gain):.1f} to "
                    f"{max(gain):.1f} times fewer tiles. The worst of 1 to 16 requests is {worst}, with "
                    f"{100 * crowd[worst]:.0f} % busy: {HEADS * worst} heads in "
                    f"{best_splits(HEADS * worst, 512, WORKERS)} split(s) do not divide into waves of {WORKERS}.")


CLAIMS = (
    Claim("split_k.splits-fill-the-device", "attention", "split_k",
          "Cutting the keys in splits that run side by side uses the whole device even for one request, where one "
          "block a head leaves most of it idle.",
          "Dao et al. 2023, Flash-Decoding for long-context inference", splits_fill_the_device,
          Expected("holds", {
              "busy_without": Number(0.074, 0.075, "of the workers"),
              "busy_with_worst": Number(0.761, 0.763, "of the workers"),
              "gain_least": Number(10.2, 10.4, "times"),
              "gain_most": Number(12.7, 12.9, "times"),
              "crowd_worst": Number(0.518, 0.519, "of the workers"),
              "crowd_worst_requests": Number(14, 14, "requests")}, "2026-11-23", machine=MACHINE),
          headline="gain_most",
          stops="Counted tiles, not seconds: the second pass and the bandwidth are left out. Once the outputs fill most "
                "workers nothing is split, and a last wave may stand almost empty.",
          needs=""),
)
