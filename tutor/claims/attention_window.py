"""Claim about windows without sinks, measured in the loss of the real model."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number


def loses_without_sinks() -> Measured:
    """Loss of 512 tokens with a window of 64 keys in every layer, with and without sinks, above exact attention's."""
    import torch

    import tutor
    from tutor.attention.methods.streaming import Streaming
    from tutor.attention.methods.window import Window
    from tutor.attention.patch import patched
    from tutor.data import capture

    model = tutor.load(dtype=torch.float32)
    ids = capture("reference_4096").ids[:512].long()
    loss = lambda **seams: float(model.nll(ids, **seams)[0, 64:].mean())      # the first 64 tokens lose no key
    exact = loss()
    numbers = {"nats_window": loss(attend=patched(model, Window(64))) - exact,
               "nats_with_sinks": loss(attend=patched(model, Streaming(4, 60))) - exact}
    holds = numbers["nats_window"] > 0.3 and numbers["nats_with_sinks"] < numbers["nats_window"] / 3
    return Measured("holds" if holds else "not_here", numbers,
                    f"A window of 64 keys in every layer costs {numbers['nats_window']:.2f} nats a token; giving 4 of "
                    f"the 64 to the first tokens leaves {numbers['nats_with_sinks']:.2f}.")


CLAIMS = (
    Claim("window.loses-without-sinks", "attention", "window",
          "Once the first tokens leave the window, a model trained with dense attention loses its footing: its "
          "perplexity jumps, though each token still sees many recent ones.",
          "Xiao et al. 2024, section 1 and figure 3", loses_without_sinks,
          Expected("holds", {
              "nats_window": Number(1.4, 1.56, "nats a token"),
              "nats_with_sinks": Number(0.2, 0.27, "nats a token")}, "2026-11-23", machine="2-core laptop-class CPU"),
          stops="The collapse is smaller here than in the paper's larger models (their curves reach the thousands), "
                "and a model trained with a window does not show it.", needs="model"),
)
