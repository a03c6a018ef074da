"""Claims about Lightning Attention-2: what a token costs at any length, and what a state of fixed size can recall."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def constant_cost_per_token() -> Measured:
    """Count the operations that run for one head of width 64 at 512 and 8 192 tokens; compare the results, too."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tutor.attention.dense import attend
    from tutor.attention.methods.lightning import Lightning, lightning_backward, naive, recurrent_step

    def per_token(n, run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / n

    lightning, s, spent = Lightning(64), torch.tensor([0.01], dtype=torch.float64), {}
    q, k, v = torch.randn(3, 1, 1, 8192, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for n in (512, 2048, 8192):
        x = [y[:, :, :n] for y in (q, k, v)]
        spent["prefill", n] = per_token(n, lambda: lightning.attend(*x, s))
        spent["backward", n] = per_token(n, lambda: lightning_backward(x[2], *x, s))
        if n <= 2048:
            spent["softmax", n] = per_token(n, lambda: attend(*x, dtype=torch.float32))
    x = [y[:, :, :2048] for y in (q, k, v)]
    truth = naive(*x, s)
    o, state = lightning.attend(*(y[:, :, :2000] for y in x), s)
    error = (o - truth.o[:, :, :2000]).abs().max()
    for t in range(2000, 2048):
        o, state = recurrent_step(*(y[:, :, t:t + 1] for y in x), s, state)
        error = max(error, (o - truth.o[:, :, t:t + 1]).abs().max())
    numbers = {"growth_prefill": spent["prefill", 8192] / spent["prefill", 512],
               "growth_backward": spent["backward", 8192] / spent["backward", 512],
               "growth_softmax_to_2048": spent["softmax", 2048] / spent["softmax", 512],
               "softmax_over_lightning_at_2048": spent["softmax", 2048] / spent["prefill", 2048],
               "error": float(error / truth.o.abs().max())}
    constant = max(numbers["growth_prefill"], numbers["growth_backward"]) < 1.001 < numbers["growth_softmax_to_2048"]
    holds = constant and numbers["error"] < 1e-12
    return Measured("holds" if holds else "not_here", numbers,
                    f"From 512 to 8192 tokens the operations per token grow {numbers['growth_prefill']:.2f}-fold; those of "
                    f"softmax attention grow {numbers['growth_softmax_to_2048']:.0f}-fold from 512 to 2048 alone, where "
                    f"they are {numbers['softmax_over_lightning_at_2048']:.0f} times as many. Blocks, then token by "
                    f"token, differ from the definition by {numbers['error']:.0e} of its largest output.")


def recall_is_bounded_by_the_state() -> Measured:
    """Store pairs of random unit keys and values of width 64 without decay, ask for each: how often is it returned?"""
    import torch

    from tutor.attention.dense import attend
    from tutor.attention.methods.lightning import Lightning

    def recalled(pairs, softmax):
        g = torch.Generator().manual_seed(pairs)
        k, v = torch.nn.functional.normalize(torch.randn(2, 8, 1, pairs, 64, generator=g), dim=-1)
        if softmax:
            o = attend(k, k, v, causal=False, scale=32.0).o.float()
        else:
            _, state = Lightning(64).attend(k, k, v, torch.zeros(1))           # every pair stored, then every key asked
            o = k @ state
        return float(((o @ v.transpose(-1, -2)).argmax(-1) == torch.arange(pairs)).float().mean())

    numbers = {f"recalled_of_{pairs}": recalled(pairs, False) for pairs in (16, 64, 256, 1024)}
    numbers["softmax_recalled_of_1024"] = recalled(1024, True)
    keeps, limit = numbers["recalled_of_16"] > 0.99, numbers["recalled_of_1024"] < 0.5 * numbers["softmax_recalled_of_1024"]
    return Measured(("in_part" if limit else "holds") if keeps else "not_here", numbers,
                    f"A state of 64 x 64 returns {100 * numbers['recalled_of_16']:.0f} % of 16 stored pairs, "
                    f"{100 * numbers['recalled_of_256']:.0f} % of 256 and {100 * numbers['recalled_of_1024']:.0f} % of "
                    f"1024; softmax attention, which keeps every row, "
                    f"{100 * numbers['softmax_recalled_of_1024']:.0f} % of 1024.")


CLAIMS = (
    Claim("lightning.constant-cost-per-token", "attention", "lightning",
          "A token costs the same at any length of the text, forward and backward.",
          "Qin et al. 2024 (Lightning Attention-2), abstract", constant_cost_per_token,
          Expected("holds", {
              "growth_prefill": Number(1, 1, "fold"),
              "growth_backward": Number(1, 1, "fold"),
              "growth_softmax_to_2048": Number(4, 4, "fold"),
              "softmax_over_lightning_at_2048": Number(16, 16, "times"),
              "error": Number(0, 1e-12, "of the largest output")}, "2026-11-23", machine=MACHINE),
          stops="Operations, not seconds. With blocks of 64 and heads 64 wide, softmax attention needs fewer operations "
                "below 128 tokens (masked pairs counted, as they run here; skipping them halves its count); and "
                "constant cost says nothing about what the state can hold.",
          needs=""),
    Claim("lightning.unlimited-lengths", "attention", "lightning",
          "Texts of unlimited length are handled in memory of fixed size.",
          "Qin et al. 2024 (Lightning Attention-2), title and abstract", recall_is_bounded_by_the_state,
          Expected("in_part", {
              "recalled_of_16": Number(0.99, 1, "of the pairs"),
              "recalled_of_64": Number(0.98, 1, "of the pairs"),
              "recalled_of_256": Number(0.74, 0.79, "of the pairs"),
              "recalled_of_1024": Number(0.08, 0.105, "of the pairs"),
              "softmax_recalled_of_1024": Number(0.99, 1, "of the pairs")}, "2026-11-23", machine=MACHINE),
          headline="recalled_of_1024",
          stops="Computed at any length, yes; recalled, only while the pairs are not many more than the state is wide. "
                "Random keys, no training: a trained model chooses what to write.",
          needs=""),
)
