"""Claims about HiP, counted on one KV group and measured on three recorded layers of the real model at 4 096 tokens."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def scored_keys_grow_as_t_log_t() -> Measured:
    """Products of a whole prefill at 512 to 4 096 tokens, fitted by a T log2(T / mask_k) + b T."""
    import numpy as np

    from tutor.attention.methods.hip import HiP
    from tutor.data import capture

    recorded, mask_k = capture("reference_4096"), 64
    q, k = recorded.q(20)[:, :3], recorded.k(20)[:, :1]
    lengths = np.array([256, 512, 1024, 2048, 4096])
    costs = [HiP(mask_k).select(q[:, :, :t], k[:, :, :t])[1] for t in lengths]
    each = np.array([cost["scored"] for cost in costs]) / 3
    fitted = np.stack([lengths * np.log2(lengths / mask_k), lengths], 1)
    (a, b), *_ = np.linalg.lstsq(fitted / each[:, None], np.ones(len(each)), rcond=None)     # relative residuals
    numbers = {"per_row_and_round": float(a) / mask_k, "worst_residual": float(np.abs(fitted @ [a, b] / each - 1).max()),
               "growth_hip": float(each[-1] / each[-2]), "growth_dense": costs[-1]["pairs"] / costs[-2]["pairs"],
               "share_of_dense_at_4096": costs[-1]["scored"] / costs[-1]["pairs"],
               "share_of_dense_at_256": costs[0]["scored"] / costs[0]["pairs"]}
    holds = numbers["worst_residual"] < 0.05 and numbers["growth_hip"] < 3
    return Measured("holds" if holds else "not_here", numbers,
                    f"From 256 to 4096 tokens the products follow {a / mask_k:.2f} · mask_k · T log2(T / mask_k) {b:+.0f} T to "
                    f"{numbers['worst_residual']:.0%}; the last doubling of the text multiplies them by "
                    f"{numbers['growth_hip']:.2f}, dense attention's by {numbers['growth_dense']:.2f}.")


def found(representatives, mask_k, blocks=4):
    """Mass kept, mass of the best keys at that load, and how often key 0 is read: `{representative: (3, layers)}`."""
    import torch

    from tutor.attention.dense import probs
    from tutor.attention.methods.hip import HiP
    from tutor.data import capture

    recorded = capture("reference_4096")
    starts, result = torch.linspace(1024, len(recorded) - 64, blocks).long(), {}
    for name in representatives:
        columns = []
        for layer in recorded.layers:
            q, k, told = recorded.q(layer), recorded.k(layer), []
            for start in starts.tolist():
                rows = torch.arange(start, start + 64)
                sel, _ = HiP(mask_k, representative=name).select(q[:, :, rows], k, pos_q=rows)
                some = torch.arange(3, 64, 8)
                a, mask = probs(q[:, :, rows[some]], k, pos_q=rows[some]), sel.take(some).mask()
                ordered = a.sort(-1, descending=True).values.cumsum(-1)
                best = ordered.gather(-1, mask.sum(-1, keepdim=True) - 1)
                told.append([float(x.double().mean()) for x in (torch.where(mask, a, 0.0).sum(-1), best, mask[..., 0])])
            columns.append(torch.tensor(told).mean(0))
        result[name] = torch.stack(columns, 1)
    return result


def one_key_can_speak() -> Measured:
    """How much mass the halves' first keys find, beside an upper bound that asks all keys, and the best choice."""
    told = found(("first", "max_oracle"), 128)
    (first, best, _), (bound, *_) = told["first"], told["max_oracle"]
    numbers = {"mass_first": float(first.mean()), "mass_all_ask": float(bound.mean()), "mass_best_keys": float(best.mean()),
               "mass_first_layer_2": float(first[0]), "mass_first_layer_25": float(first[2])}
    near = numbers["mass_all_ask"] - numbers["mass_first"]
    return Measured("in_part" if near < 0.05 and numbers["mass_best_keys"] - numbers["mass_first"] > 0.1 else
                    "holds" if near < 0.05 else "not_here", numbers,
                    f"With 128 keys for a block of 64 queries HiP keeps {numbers['mass_first']:.0%} of the attention; if every "
                    f"half sent its best key, {numbers['mass_all_ask']:.0%}; the best keys of each query by itself hold "
                    f"{numbers['mass_best_keys']:.0%}.")


def the_middle_misses_the_sink() -> Measured:
    """First against middle block as the representative, layers 20 and 25: mass, and how often the sink is read."""
    told = found(("first", "middle"), 128)
    numbers = {f"{what}_{name}": float(told[name][row, 1:].mean())
               for name in told for row, what in ((0, "mass"), (2, "sink_read"))}
    worse = numbers["mass_middle"] < numbers["mass_first"] - 0.2
    return Measured("not_here" if worse else "holds", numbers,
                    f"If the middle speaks for a half, key 0, on which these layers rest, is read by "
                    f"{numbers['sink_read_middle']:.0%} of the query blocks, and {numbers['mass_middle']:.0%} of the attention "
                    f"is kept; if the first speaks, {numbers['sink_read_first']:.0%} and {numbers['mass_first']:.0%}.")


def locality_predicts_recall() -> Measured:
    """Per head: correlation of the scores of keys 8 apart, and the share of the 64 heaviest keys that 128 kept keys hold."""
    import torch

    from tutor.attention.methods.hip import HiP
    from tutor.attention.selection import topk_recall
    from tutor.data import capture

    recorded, alike, recall = capture("reference_4096"), [], []
    rows = torch.linspace(1024, len(recorded) - 1, 16).long()
    for layer in recorded.layers:
        q, k = recorded.q(layer)[:, :, rows], recorded.k(layer)
        s = q[0] @ k[0, :, :1024].repeat_interleave(3, 0).mT                              # (Hq, rows, 1024)
        s = s - s.mean(-1, keepdim=True)
        near, far = s[..., :-8], s[..., 8:]
        alike.append(((near * far).sum(-1) / (near.norm(dim=-1) * far.norm(dim=-1))).mean(-1))
        sel = HiP(128, bq=1).select(q, k, pos_q=rows)[0]
        recall.append(topk_recall(q, k, sel, 64)[0].double().mean(-1))
    alike, recall = torch.cat(alike), torch.cat(recall)
    rank = lambda x: x.argsort().argsort().double()
    local = alike > alike.median()
    numbers = {"rank_correlation": float(torch.corrcoef(torch.stack([rank(alike), rank(recall)]))[0, 1]),
               "recall_local_heads": float(recall[local].mean()), "recall_other_heads": float(recall[~local].mean())}
    return Measured("holds" if numbers["rank_correlation"] > 0.7 else "not_here", numbers,
                    f"Over 27 heads, how alike keys 8 apart score and how many of the 64 heaviest keys HiP finds have a rank "
                    f"correlation of {numbers['rank_correlation']:.2f}: {numbers['recall_local_heads']:.0%} in the more local "
                    f"half of the heads, {numbers['recall_other_heads']:.0%} in the other.")


CLAIMS = (
    Claim("hip.scored-keys-grow-as-t-log-t", "attention", "hip",
          "Choosing keys by halving takes O(T log T) time for a text of T tokens.",
          "Lee et al. 2024, abstract and section 3", scored_keys_grow_as_t_log_t,
          Expected("holds", {
              "per_row_and_round": Number(1.7, 1.78, "· mask_k"),
              "worst_residual": Number(0.02, 0.035, "of the products"),
              "growth_hip": Number(2.49, 2.53, "-fold"),
              "growth_dense": Number(3.99, 4.0, "-fold"),
              "share_of_dense_at_4096": Number(0.29, 0.305, "of the pairs"),
              "share_of_dense_at_256": Number(1.17, 1.2, "of the pairs")}, "2026-11-23", machine=MACHINE),
          headline="growth_hip",
          stops="The constant is 2 mask_k products a row and round: below some 16 mask_k tokens it scores half as many pairs as "
                "dense attention, or more. It pays on long texts.", needs="capture"),
    Claim("hip.one-key-can-speak", "attention", "hip",
          "Neighbouring tokens score alike, so a representative finds nearly the top keys of a query.",
          "Lee et al. 2024, section 3 (locality)", one_key_can_speak,
          Expected("in_part", {
              "mass_first": Number(0.735, 0.775, "of the mass"),
              "mass_all_ask": Number(0.755, 0.795, "of the mass"),
              "mass_best_keys": Number(0.885, 0.908, "of the mass"),
              "mass_first_layer_2": Number(0.575, 0.62, "of the mass"),
              "mass_first_layer_25": Number(0.925, 0.95, "of the mass")}, "2026-11-23", machine=MACHINE),
          stops="The first key speaks nearly as well as the best one would. What is lost is lost because 64 queries must share "
                "one list: most in the diffuse layer.", needs="capture"),
    Claim("hip.the-middle-speaks", "attention", "hip",
          "The middle token of a chunk represents it.",
          "Lee et al. 2024, section 3 (the released code takes the first)", the_middle_misses_the_sink,
          Expected("not_here", {
              "mass_first": Number(0.81, 0.855, "of the mass"),
              "sink_read_first": Number(1, 1, "of the query blocks"),
              "mass_middle": Number(0.35, 0.42, "of the mass"),
              "sink_read_middle": Number(0.03, 0.12, "of the query blocks")}, "2026-11-23", machine=MACHINE),
          stops="It is about the sink alone: key 0 is the first of its half in every round, and the middle of none until the "
                "last. With sinks kept unasked, as in release 1.2, it need not matter.", needs="capture"),
    Claim("hip.locality-predicts-recall", "attention", "hip",
          "If scores are correlated with distance, each halving keeps the better half more often than not.",
          "Lee et al. 2024, section 3 and its analysis (unverified)", locality_predicts_recall,
          Expected("holds", {
              "rank_correlation": Number(0.86, 0.92),
              "recall_local_heads": Number(0.88, 0.92, "of the 64 heaviest keys"),
              "recall_other_heads": Number(0.64, 0.69, "of the 64 heaviest keys")}, "2026-11-23", machine=MACHINE),
          stops="Single queries, each with a list of its own. A key that is unlike its neighbours, a needle, is found only where "
                "it happens to speak, however heavy it is.", needs="capture"),
)
