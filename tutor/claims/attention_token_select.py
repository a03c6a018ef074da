"""Claims about TokenSelect, measured on three recorded layers of the real model at 4 096 tokens."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def soft_votes_come_near_every_heads_own_choice() -> Measured:
    """Kept mass at 256 keys: three ways to vote on one set for nine heads, and the best set of each head for itself."""
    import torch

    from tutor.attention.frontier import sample_rows
    from tutor.attention.methods.oracle_topk import OracleTopK
    from tutor.attention.methods.token_select import TokenSelect
    from tutor.attention.selection import mass_recall
    from tutor.data import capture

    recorded = capture("reference_4096")
    at = sample_rows(len(recorded), 64, seed=0)
    chosen = {vote: TokenSelect(192, 4, 60, vote=vote) for vote in ("soft", "hard", "logit")} | {"own": OracleTopK(256)}
    mass = {name: [] for name in chosen}
    for layer in recorded.layers:
        q, k = recorded.q(layer)[:, :, at], recorded.k(layer)
        for name, method in chosen.items():
            mass[name].append(float(mass_recall(q, k, method.select(q, k, pos_q=at)[0]).mean()))
    mean = {name: float(torch.tensor(values).mean()) for name, values in mass.items()}
    numbers = {"mass_soft": mean["soft"], "mass_hard": mean["hard"], "mass_logit_sum": mean["logit"],
               "mass_each_head_its_best": mean["own"]}
    wins = all(soft > max(hard, logit) for soft, hard, logit in zip(mass["soft"], mass["hard"], mass["logit"]))
    return Measured("holds" if wins and mean["own"] - mean["soft"] < 0.05 else "in_part" if wins else "not_here", numbers,
                    f"With 256 keys, nine heads that share one set elected by soft votes keep {mean['soft']:.1%} of their "
                    f"attention, {mean['hard']:.1%} with one vote per head and key, {mean['logit']:.1%} by summed logits; "
                    f"each head with its own best 256 keys keeps {mean['own']:.1%}.")


def neighbouring_queries_share_a_vote() -> Measured:
    """200 consecutive decoding steps: how often the last vote serves at theta = 0.9, what that costs, and at 0.7."""
    import torch

    from tutor.attention.methods.token_select import SelectionCache, TokenSelect
    from tutor.attention.selection import mass_recall
    from tutor.data import capture

    recorded = capture("reference_4096")
    rows, method = torch.arange(3800, 4000), TokenSelect(192, 4, 60)
    reused, lost = {0.9: [], 0.7: []}, {0.9: [], 0.7: []}
    for layer in recorded.layers:
        q, k = recorded.q(layer)[:, :, rows], recorded.k(layer)
        fresh = mass_recall(q, k, method.select(q, k, pos_q=rows)[0]).mean()
        for theta in reused:
            cache = SelectionCache(theta)
            sel, _ = method.select(q, k, pos_q=rows, cache=cache)
            reused[theta].append(cache.reused / (cache.reused + cache.voted))
            lost[theta].append(float(fresh - mass_recall(q, k, sel).mean()))
    mean = lambda values: sum(values) / len(values)
    numbers = {"reused_at_0.9": mean(reused[0.9]), "reused_at_0.9_best_layer": max(reused[0.9]), "lost_at_0.9": mean(lost[0.9]),
               "reused_at_0.7": mean(reused[0.7]), "lost_at_0.7": mean(lost[0.7])}
    often, harmless = numbers["reused_at_0.9"] > 0.5, numbers["lost_at_0.9"] < 0.005
    return Measured("holds" if often and harmless else "in_part" if harmless else "not_here", numbers,
                    f"At theta = 0.9 the last vote serves {numbers['reused_at_0.9']:.0%} of the steps and costs "
                    f"{numbers['lost_at_0.9']:.2%} of the attention; at 0.7 it serves {numbers['reused_at_0.7']:.0%} and costs "
                    f"{numbers['lost_at_0.7']:.1%}.")


def sparse_decoding_is_faster() -> Measured:
    """One recorded run of `benchmarks/sparse_decode.py`: a decoding step at 4 096 keys, dense and over an eighth of them."""
    from tutor.attention.decode import recorded

    run = recorded()
    ratio = run["times_faster_than_dense"]
    numbers = {"attend_only": ratio["attend, one set for all heads"], "choose_and_attend": ratio["vote and attend"]}
    verdict = "holds" if min(numbers.values()) > 2 else "in_part" if min(numbers.values()) > 1 else "not_here"
    return Measured(verdict, numbers,
                    f"On a {run['machine']} ({run['date']}) attending to 512 of 4 096 keys is {numbers['attend_only']:.1f} "
                    f"times as fast as torch's dense attention; with the vote before it, {numbers['choose_and_attend']:.2f} "
                    "times.")


def renumbered_keys_reach_beyond_the_trained_length() -> Measured:
    """A recorded run of `benchmarks/beyond_length.py`: nats a token against renumbered sinks and window, on the same tokens."""
    import torch

    from tutor.attention.frontier import interval
    from tutor.data import result

    run = result("beyond-length")
    blocks = {name: torch.tensor(found["blocks"], dtype=torch.float64) for name, found in run["readings"].items()}
    base, far = blocks["sinks and window, renumbered"], 10_240 // run["block"]
    before = slice(run["trained_tokens"] // 2 // run["block"], run["trained_tokens"] // run["block"])
    at_end = {name: interval((x[far:] - base[far:])[None]) for name, x in blocks.items()}
    dense, ours, stay = (at_end[name] for name in ("dense", "TokenSelect, renumbered", "TokenSelect, true positions"))
    numbers = {"dense_within": float((blocks["dense"] - base)[before].mean()), "dense_beyond": dense[0],
               "token_select_beyond": ours[0], "token_select_true_positions_beyond": stay[0]}
    reaches, chooses = ours[2] < min(dense[1], stay[1]), ours[2] < 0
    return Measured("holds" if reaches and chooses else "in_part" if reaches else "not_here", numbers,
                    f"On tokens 10 240 to {run['tokens']:,} of a text, dense attention is {dense[0]:+.2f} nats a token "
                    f"[{dense[1]:+.2f}, {dense[2]:+.2f}] from renumbered sinks and window, TokenSelect {ours[0]:+.2f} "
                    f"[{ours[1]:+.2f}, {ours[2]:+.2f}]; with its keys where they stand {stay[0]:+.2f}.".replace(",", " ", 1))


CLAIMS = (
    Claim("token_select.soft-votes-lose-little", "attention", "token_select",
          "Heads that vote by softmax shares agree on one set of tokens for a layer, better than by summed logits or by one "
          "vote per head.",
          "Wu et al. 2024, section 4", soft_votes_come_near_every_heads_own_choice,
          Expected("holds", {
              "mass_soft": Number(0.90, 0.93, "of the mass"), "mass_hard": Number(0.895, 0.92, "of the mass"),
              "mass_logit_sum": Number(0.893, 0.92, "of the mass"),
              "mass_each_head_its_best": Number(0.94, 0.96, "of the mass")}, "2026-11-23", machine=MACHINE),
          stops="In the diffuse layer 2 one set for nine heads costs 6 points of mass against each head's own; and the gain "
                "over the other two votes is about one point here.", needs="capture"),
    Claim("token_select.neighbours-share-a-vote", "attention", "token_select",
          "Queries of consecutive tokens are so similar that a selection can be reused while their cosine stays above 0.9, "
          "without loss.",
          "Wu et al. 2024, section 4, the selection cache", neighbouring_queries_share_a_vote,
          Expected("in_part", {
              "reused_at_0.9": Number(0.10, 0.15, "of the steps"), "reused_at_0.9_best_layer": Number(0.2, 0.27, "of the steps"),
              "lost_at_0.9": Number(0.0003, 0.0015, "of the mass"),
              "reused_at_0.7": Number(0.72, 0.81, "of the steps"), "lost_at_0.7": Number(0.015, 0.026, "of the mass")},
              "2026-11-23", machine=MACHINE),
          stops="Without loss, yes; but this small model's queries turn more than the paper's: at 0.9 few votes are saved, and "
                "the threshold that saves most of them (0.7) costs two points of mass.", needs="capture"),
    Claim("token_select.sparse-decoding-is-faster", "attention", "token_select",
          "Choosing tokens and attending to them alone is up to 23.84 times as fast as full attention.",
          "Wu et al. 2024, abstract (a GPU, longer texts)", sparse_decoding_is_faster,
          Expected("in_part", {
              "attend_only": Number(2.3, 3.0, "times as fast as dense"),
              "choose_and_attend": Number(1.0, 1.3, "times as fast as dense")}, "2026-11-23", machine=MACHINE),
          stops="One thread, plain torch, 4 096 keys, an eighth read. Attending is as fast as its bytes allow (2.7 times): the "
                "rows are gathered first. The vote reads every key, half of dense, and leaves 1.1 times by bytes; with other "
                "work on the machine it was 0.9 to 1.05. With a reused vote, or longer texts at a fixed budget, there is "
                "more to gain.", needs=""),
    Claim("token_select.reaches-beyond-the-trained-length", "attention", "token_select",
          "A model that reads a few selected tokens as if they stood side by side goes beyond its trained length, with no "
          "further training.",
          "Wu et al. 2024, title and abstract (length extrapolation); the renumbering is that of the released code",
          renumbered_keys_reach_beyond_the_trained_length,
          Expected("in_part", {
              "dense_within": Number(-0.2, -0.13, "nats a token"), "dense_beyond": Number(0.8, 0.95, "nats a token"),
              "token_select_beyond": Number(-0.02, 0.08, "nats a token"),
              "token_select_true_positions_beyond": Number(0.55, 0.67, "nats a token")}, "2026-11-23", machine=MACHINE),
          headline="token_select_beyond",
          stops="It is the numbering that reaches, not the vote: sinks and a window, renumbered too, get as far. This model "
                "reads on undisturbed to about 10 000 tokens, and only then does dense attention break. And where the text "
                "repeats a passage from 6 000 tokens before (7 680 to 8 192), dense attention gains 1.3 nats, votes by chunks "
                "of 256 a quarter of that. One text, one small model, half of the paper's elected keys.", needs=""),
)
