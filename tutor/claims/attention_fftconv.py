"""Claims about FlashFFTConv: exact, chosen by counting, and what may be left out of a filter."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def exact_at_every_length() -> Measured:
    """Causal convolutions of 128 to 8 192 entries in orders 1 to 3 against torch.fft in float64; matrix units' precision, too."""
    import torch

    from tutor.attention.methods.fftconv import FFTConv, operations

    g, gap, half = torch.Generator().manual_seed(0), 0.0, 0.0
    for length in (128, 500, 1024, 2048, 8192):
        u, h = (torch.randn(*shape, length, generator=g, dtype=torch.float64) for shape in ((1, 2), (2,)))
        n = 4 * length
        truth = torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(h, n), n)[..., :length]
        for order in (None, 1, 2, 3) if length <= 500 else (None, 2, 3):
            gap = max(gap, float((FFTConv(order).conv(u, h) - truth).abs().max() / truth.abs().max()))
        half = max(half, float((FFTConv().conv(u.float(), h.float()) - truth).abs().max() / truth.abs().max()))
    chosen = FFTConv().plan(2048, 2048)
    numbers = {"error": gap, "error_float32": half, "skipped_by_padding": operations(chosen, 2048).skipped}
    return Measured("holds" if gap < 1e-12 and half < 1e-5 else "not_here", numbers,
                    f"All orders agree with torch.fft to {gap:.0e} (float32: {half:.0e}); of a causal convolution of 2 048 "
                    f"entries {numbers['skipped_by_padding']:.0%} of the products are padding and never run.")


def more_operations_may_be_faster() -> Measured:
    """Count the products for p = 1, 2, 3 and a classic FFT, and ask the cost model for the best order at every length."""
    import math

    from tutor.attention.methods.fftconv import INNER, MACHINES, Plan, best_order, factorise, operations, seconds

    a100 = next(m for name, m in MACHINES.items() if name.startswith("A100"))
    flat, n = MACHINES["no matrix units"], 4096
    full = {p: operations(Plan(n, factorise(n, p))).full for p in (1, 2, 3)}
    butterfly = Plan(n, factorise(n, 12))
    numbers = {f"operations_over_fft_p{p}": x / (10 * n * math.log2(n)) for p, x in full.items()}
    numbers["table_orders_found"] = sum(best_order(m, a100) == len(f) for m, f in INNER.items()) / len(INNER)
    numbers["orders_found_without_matrix_units"] = sum(best_order(m, flat) == len(f) for m, f in INNER.items()) / len(INNER)
    numbers["time_of_radix_2_over_p3"] = seconds(butterfly, a100) / seconds(Plan(n, factorise(n, 3)), a100)
    holds = numbers["table_orders_found"] == 1 and numbers["operations_over_fft_p3"] > 1 < numbers["time_of_radix_2_over_p3"]
    times = ", ".join(f"{value:.1f}" for name, value in numbers.items() if name.startswith("operations"))
    return Measured("holds" if holds else "not_here", numbers,
                    f"At 4 096 entries orders 1, 2, 3 do {times} times the operations of a classic FFT; yet in the model p = 3 "
                    f"is {numbers['time_of_radix_2_over_p3']:.1f} times as fast as radix 2, and its orders are those of the "
                    f"published code at {numbers['table_orders_found']:.0%} of the lengths.")


def trained_filters(*, steps: int = 200, length: int = 256, width: int = 48, seed: int = 0):
    """Train a byte model of two gated long convolutions on the Python reference; return its loss as a function of the filters.

    Returns:
        `loss(change)`, with `change(h (H, L)) -> (H, n)` taps (beyond L: negative times), on text kept aside; and the filters.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from tutor import texts

    data = torch.tensor(list(texts.reference().encode()))
    split, g = len(data) * 9 // 10, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embed, head = nn.Embedding(256, width), nn.Linear(width, 256)
        layers = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(width), "gates": nn.Linear(width, 3 * width),
                                              "out": nn.Linear(width, width)}) for _ in range(2))
        fade = torch.exp(-torch.logspace(0, -1.8, width)[:, None] * torch.arange(length))
        filters = nn.ParameterList(nn.Parameter(0.5 * fade * torch.randn(width, length)) for _ in range(2))

    def loss(x, change=lambda h: h):
        y = embed(x[:, :-1])
        for layer, h in zip(layers, filters):
            u, pre, post = layer["gates"](layer["norm"](y)).transpose(1, 2).chunk(3, 1)
            n = 2 * length                                                        # the circle of a causal convolution
            spread = torch.fft.irfft(torch.fft.rfft(u * pre, n) * torch.fft.rfft(change(h), n), n)[..., :length]
            y = y + layer["out"]((post * spread).transpose(1, 2))
        return F.cross_entropy(head(y).flatten(0, 1), x[:, 1:].flatten())

    optimiser = torch.optim.Adam([*embed.parameters(), *head.parameters(), *layers.parameters(), *filters], lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(split - length - 1, (8,), generator=g)
        now = loss(data[starts[:, None] + torch.arange(length + 1)])
        optimiser.zero_grad()
        now.backward()
        optimiser.step()
    aside = data[split + length * torch.arange(48)[:, None] + torch.arange(length + 1)]

    def measured(change=lambda h: h) -> float:
        with torch.no_grad():
            return loss(aside, change).item()

    return measured, [h.detach() for h in filters]


def what_may_be_left_out() -> Measured:
    """A small long-convolution model on real text: its loss with fewer taps, with fewer frequencies, without training again."""
    import torch

    from tutor.attention.methods.fftconv import low_pass

    loss, filters = trained_filters()
    length = filters[0].shape[1]
    full = loss()
    numbers = {"loss_full": full, "rise_with_an_eighth_of_the_taps": loss(lambda h: h[:, :length // 8]) - full,
               "rise_with_one_tap": loss(lambda h: h[:, :1]) - full,
               "rise_with_three_quarters_of_the_frequencies": loss(lambda h: low_pass(h, 2 * length, 3 * length // 4)) - full,
               "rise_with_half_of_the_frequencies": loss(lambda h: low_pass(h, 2 * length, length // 2)) - full}
    rung = torch.stack([low_pass(h, 2 * length, length // 2) for h in filters])
    numbers["filter_energy_at_negative_times"] = float(rung[..., length:].square().sum() / rung.square().sum())
    t = torch.arange(length).float()
    smooth = torch.exp(-0.5 * ((t - 64) / 16) ** 2)[None]                         # a smoothing filter, for comparison
    numbers["smoothing_filter_lost_at_an_eighth_of_the_frequencies"] = float(
        (low_pass(smooth, 2 * length, length // 8)[:, :length] - smooth).norm() / smooth.norm())
    partial = numbers["rise_with_an_eighth_of_the_taps"] < 0.05 < numbers["rise_with_one_tap"]
    sparse = numbers["rise_with_half_of_the_frequencies"] < 0.05
    return Measured(("holds" if sparse else "in_part") if partial else "not_here", numbers,
                    f"With an eighth of the taps the loss of {full:.2f} per byte changes by "
                    f"{numbers['rise_with_an_eighth_of_the_taps']:+.3f}; with half of the frequencies by "
                    f"{numbers['rise_with_half_of_the_frequencies']:+.2f}, and "
                    f"{numbers['filter_energy_at_negative_times']:.0%} of the filters' energy moves to negative times: outputs "
                    "see what follows them. A smoothing filter loses "
                    f"{numbers['smoothing_filter_lost_at_an_eighth_of_the_frequencies']:.0e} of its norm with an eighth.")


CLAIMS = (
    Claim("fftconv.exact-at-every-length", "attention", "fftconv",
          "The Monarch decomposition computes the FFT convolution exactly.",
          "Fu et al. 2024, section 3.1 (number unverified)", exact_at_every_length,
          Expected("holds", {"error": Number(0, 1e-12, "of the largest output"),
                             "error_float32": Number(0, 1e-5, "of the largest output"),
                             "skipped_by_padding": Number(0.16, 0.17, "of the products")}, "2026-11-23", machine=MACHINE),
          stops="float64 and float32 here; the published kernels multiply in half precision.", needs=""),
    Claim("fftconv.more-operations-may-be-faster", "attention", "fftconv",
          "An order chosen by a cost model runs fastest, though it does more operations than a classic FFT.",
          "Fu et al. 2024, section 3.2 (number unverified)", more_operations_may_be_faster,
          Expected("holds", {
              "operations_over_fft_p1": Number(546, 547, "times"),
              "operations_over_fft_p2": Number(17, 17.2, "times"),
              "operations_over_fft_p3": Number(6.3, 6.5, "times"),
              "table_orders_found": Number(1, 1, "of the lengths"),
              "orders_found_without_matrix_units": Number(0, 0, "of the lengths"),
              "time_of_radix_2_over_p3": Number(5.8, 6, "times")}, "2026-11-23", machine=MACHINE),
          headline="time_of_radix_2_over_p3",
          stops="Counted and modelled, not timed: without matrix units higher orders win, and none of the table's is best.",
          needs=""),
    Claim("fftconv.filters-can-be-thinned", "attention", "fftconv",
          "Most taps of a long filter (partial convolution) or most of its frequencies can be dropped at little loss.",
          "Fu et al. 2024, section 3.3 and its tables (unverified)", what_may_be_left_out,
          Expected("in_part", {
              "loss_full": Number(2.05, 2.3, "nats per byte"),
              "rise_with_an_eighth_of_the_taps": Number(-0.05, 0.03, "nats"),
              "rise_with_one_tap": Number(0.6, 1.1, "nats"),
              "rise_with_three_quarters_of_the_frequencies": Number(0.06, 0.18, "nats"),
              "rise_with_half_of_the_frequencies": Number(0.25, 0.48, "nats"),
              "filter_energy_at_negative_times": Number(0.03, 0.06, "of the energy"),
              "smoothing_filter_lost_at_an_eighth_of_the_frequencies": Number(0, 1e-4, "of the norm")},
              "2026-11-23", machine=MACHINE),
          headline="rise_with_an_eighth_of_the_taps",
          stops="A filter short in time is wide in frequency: thinning one or the other, not both. Nothing is trained again "
                "after thinning, and the model is tiny.",
          needs=""),
)
