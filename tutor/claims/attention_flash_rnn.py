"""Claims about FlashRNN: what a state can follow and attention cannot, and what a resident matrix saves."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def a_state_follows_parity() -> Measured:
    """Train an LSTM, two layers of softmax and two of linear attention on parity of up to 40 bits; ask at 400."""
    from tutor.attention.parity import Mixing, Recurrent, accuracy, fit

    trained = {"lstm": fit(lambda: Recurrent("lstm"), steps=200),
               "softmax": fit(lambda: Mixing("softmax"), steps=200, rate=3e-3),
               "linear": fit(lambda: Mixing("linear"), steps=200, rate=3e-3)}
    numbers = {}
    for name, model in trained.items():
        right = accuracy(model, 400)
        numbers |= {f"{name}_first_40": float(right[:40].mean()), f"{name}_last_200": float(right[200:].mean())}
    holds = numbers["lstm_last_200"] > 0.99 and max(numbers["softmax_last_200"], numbers["linear_last_200"]) < 0.6
    return Measured("holds" if holds else "not_here", numbers,
                    f"Trained on texts of at most 40 bits and asked at places 200 to 400, an LSTM of 16 units is right in "
                    f"{numbers['lstm_last_200']:.1%} of the cases, two layers of softmax attention in "
                    f"{numbers['softmax_last_200']:.1%}, of linear attention in {numbers['linear_last_200']:.1%}: chance. "
                    "Small networks, 200 steps of training, no search for better settings.")


def the_matrix_is_read_once() -> Measured:
    """Count the bytes of R for an LSTM of 12 heads x 64 over 1 024 tokens, beside the inputs and states of one text."""
    from tutor.attention.methods.flash_rnn import largest_head, traffic

    steps, heads, width = 1024, 12, 64
    streams = steps * heads * width * 2 * (4 + 2)                          # bf16: four pre-activations in, two states out
    alternating, fused = (traffic(steps, 4, heads, width, fused=f) for f in (False, True))
    numbers = {"ratio_of_R": alternating / fused, "all_bytes_ratio_1_text": (streams + alternating) / (streams + fused),
               "all_bytes_ratio_64_texts": (64 * streams + alternating) / (64 * streams + fused),
               "largest_head_lstm_a100": float(largest_head().width)}
    return Measured("in_part", numbers,
                    f"Over 1024 tokens the recurrent matrix is read {numbers['ratio_of_R']:.0f} times less often. Counting "
                    f"inputs and states, one text moves {numbers['all_bytes_ratio_1_text']:.0f} times fewer bytes, 64 texts "
                    f"at once {numbers['all_bytes_ratio_64_texts']:.1f} times. By the rules of the paper's solver an A100 "
                    f"holds a head of up to {numbers['largest_head_lstm_a100']:.0f} units. Bytes, not seconds: no GPU was here.")


CLAIMS = (
    Claim("flash_rnn.state-tracking", "attention", "flash_rnn",
          "Traditional recurrent networks can track state, which Transformers and state-space models cannot.",
          "Pöppel et al. 2024 (FlashRNN), abstract and introduction", a_state_follows_parity,
          Expected("holds", {
              "lstm_first_40": Number(0.99, 1, "of the answers"),
              "lstm_last_200": Number(0.99, 1, "of the answers"),
              "softmax_first_40": Number(0.45, 0.75, "of the answers"),
              "softmax_last_200": Number(0.45, 0.55, "of the answers"),
              "linear_first_40": Number(0.45, 0.8, "of the answers"),
              "linear_last_200": Number(0.45, 0.55, "of the answers")}, "2026-11-23", machine=MACHINE),
          headline="lstm_last_200",
          stops="A recurrent step waits for the one before, so a text cannot be cut into parallel pieces. With longer training, "
                "more layers or an answer written out step by step, attention does better than here.",
          needs=""),
    Claim("flash_rnn.resident-matrix", "attention", "flash_rnn",
          "Keeping the recurrent matrix on the chip through all steps is 2 to 5 times as fast as reading it at each step.",
          "Pöppel et al. 2024 (FlashRNN), abstract and section 3", the_matrix_is_read_once,
          Expected("in_part", {
              "ratio_of_R": Number(1024, 1024, "times"),
              "all_bytes_ratio_1_text": Number(41.8, 42.0, "times"),
              "all_bytes_ratio_64_texts": Number(1.6, 1.7, "times"),
              "largest_head_lstm_a100": Number(1344, 1344, "units")}, "2026-11-23", machine=MACHINE),
          stops="Counted bytes, no seconds. The saving shrinks with the batch, since inputs and states grow with it and the "
                "matrix does not; and a head must fit on the chip.",
          needs=""),
)
