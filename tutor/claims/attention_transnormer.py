"""Claim about TransNormer: the cost of a token in a whole model, and what the model learns beside softmax attention."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number


def constant_speed_and_a_loss_as_good() -> Measured:
    """Count a small model's operations per token at 256 and 2 048 tokens; train it and its softmax peer on letters."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tutor.attention.methods.transnormer import TransNormer
    from tutor.data import capture

    alphabet = " etaoinsrhldcumfpgwybvkxjqz"
    text = [alphabet.index(c) for c in "".join(capture("reference_4096").tokens).lower() if c in alphabet]
    ids = torch.tensor(text)

    def per_token(n):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            TransNormer(27)(ids[None, :n])
        return counter.get_total_flops() / n

    def loss_after(mix, steps=120, length=128):
        model, draw, losses = TransNormer(27, width=48, mix=mix), torch.Generator().manual_seed(0), []
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(steps):
            starts = torch.randint(len(ids) - length - 1, (8,), generator=draw)
            rows = torch.stack([ids[i:i + length + 1] for i in starts])
            loss = torch.nn.functional.cross_entropy(model(rows[:, :-1])[0].flatten(0, 1), rows[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return sum(losses[-20:]) / 20

    numbers = {"growth_256_to_2048": per_token(2048) / per_token(256), "loss_lightning": loss_after("lightning"),
               "loss_softmax": loss_after("softmax")}
    constant, close = numbers["growth_256_to_2048"] < 1.001, numbers["loss_lightning"] < numbers["loss_softmax"] + 0.1
    return Measured(("in_part" if close else "not_here") if constant else "not_here", numbers,
                    f"From 256 to 2048 tokens the operations per token grow {numbers['growth_256_to_2048']:.3f}-fold. After 120 "
                    f"steps on letters the loss is {numbers['loss_lightning']:.2f} nats, with softmax in the same place "
                    f"{numbers['loss_softmax']:.2f}: two layers of width 48, one seed, a task that needs little memory.")


CLAIMS = (
    Claim("transnormer.constant-speed", "attention", "transnormer",
          "Texts of various lengths train at constant speed in fixed memory, and the model is no worse than softmax attention.",
          "Qin et al. 2024 (Various Lengths, Constant Speed), abstract", constant_speed_and_a_loss_as_good,
          Expected("in_part", {
              "growth_256_to_2048": Number(0.999, 1.001, "fold"),
              "loss_lightning": Number(1.9, 2.4, "nats a letter"),
              "loss_softmax": Number(1.9, 2.4, "nats a letter")}, "2026-11-23", machine="2-core laptop-class CPU"),
          stops="Operations, not seconds; letters, not words; the softmax peer has no position codes. What a state of fixed "
                "size cannot recall (see Lightning Attention's card) no training brings back.",
          needs=""),
)
