"""Claims about kernelized attention: the FFT is exact, the variance is in the exponent, and what normalising cures."""

from __future__ import annotations

import math

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def fft_equals_direct() -> Measured:
    """One layer of real heads, 512 tokens, a bias per head: the FFT form against the sum over pairs; and count both."""
    import torch

    import tutor
    from tutor.attention.methods.kernelized import Kernelized, directions

    capture, n = tutor.data.capture("reference_4096"), 512
    q, k, v = (x[:, :, :n] for x in (capture.q(20), capture.k(20), capture.v(20)[..., :16]))
    b = torch.randn(q.shape[1], 2 * n - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method, w, gap = Kernelized(16), directions(16, q.shape[3], generator=torch.Generator().manual_seed(1)), 0.0
    for causal in (True, False):
        fft, direct = (method.attend(q, k, v, b, causal=causal, w=w, how=how).o for how in ("fft", "direct"))
        gap = max(gap, float((fft - direct).abs().max() / direct.abs().max()))

    def spent(length, how, m=64):
        x = torch.empty(1, 1, length, 64, device="meta")
        return Kernelized(m).cost(x, x, x, how=how)["flops"] / length

    crossing = next(2**i for i in range(6, 30) if spent(2**i, "fft") < spent(2**i, "direct"))
    numbers = {"error": gap, "crossing_length": crossing, "growth_fft": spent(65536, "fft") / spent(4096, "fft"),
               "growth_direct": spent(65536, "direct") / spent(4096, "direct")}
    holds = gap < 1e-10 and numbers["growth_fft"] < 1.5 and numbers["growth_direct"] > 10
    return Measured(("in_part" if crossing > 4096 else "holds") if holds else "not_here", numbers,
                    f"The FFT differs from the sum over pairs by {gap:.0e}. From 4 096 to 65 536 tokens its operations per "
                    f"token grow {numbers['growth_fft']:.2f}-fold, those of the pairs {numbers['growth_direct']:.0f}-fold; "
                    f"with 64 features and values 64 wide it needs fewer from {crossing} tokens on.")


def normalising_cures_the_variance() -> Measured:
    """Estimator error at R = 0.5, 1, 1.5 against theory; on real heads the output error of PRF and NPRF with 64 features."""
    import torch

    import tutor
    from tutor.attention.dense import attend
    from tutor.attention.methods.kernelized import Kernelized, directions, exact, features_needed, prf

    g = torch.Generator().manual_seed(0)
    numbers = {}
    for radius in (0.5, 1.0, 1.5):
        x = torch.zeros(2, 16, dtype=torch.float64)
        x[0, 0] = x[1, 1] = radius                                               # at a right angle: exp(x·y) = 1
        w = directions(256 * 400, 16, generator=g)
        phi = prf(x, w).reshape(2, 400, 256) * 20                                # 400 estimates with 256 features each
        spread = float(((phi[0] * phi[1]).sum(-1) - 1).square().mean().sqrt())
        numbers[f"error_over_theory_at_{radius:g}"] = spread / math.sqrt(math.expm1(2 * radius**2) / 256)
    capture, n = tutor.data.capture("reference_4096"), 256
    error = lambda o, truth: float(((o - truth).norm(dim=-1) / truth.norm(dim=-1)).mean())
    plain, unit, distance, squares = [], [], [], []
    for layer in capture.layers:
        q, k, v = (x[:, :, :n].double() for x in (capture.q(layer), capture.k(layer), capture.v(layer)))
        truth, unit_truth, w = attend(q, k, v).o, exact(q, k, v).o, directions(64, q.shape[3], generator=g)
        plain.append(error(Kernelized(64, False).attend(q, k, v, w=w).o, truth))
        unit.append(error(Kernelized(64).attend(q, k, v, w=w).o, unit_truth))
        distance.append(error(unit_truth, truth))
        squares += [float((x.square().sum(-1) / 8).mean()) for x in (q, k)]
    radius = math.sqrt(sum(squares) / len(squares))
    numbers |= {"mean_squared_norm": radius**2, "log10_features_for_a_tenth": math.log10(features_needed(radius, 0.1)),
                "error_plain": sum(plain) / 3, "error_normalised_to_its_own_target": sum(unit) / 3,
                "its_target_to_the_head": sum(distance) / 3}
    theory = all(0.5 < x < 1.6 for name, x in numbers.items() if name.startswith("error_over"))
    cured = numbers["error_plain"] > 0.5 and numbers["error_normalised_to_its_own_target"] < 0.15
    replaces = numbers["its_target_to_the_head"] < 0.3
    return Measured(("holds" if replaces else "in_part") if theory and cured else "not_here", numbers,
                    f"Real queries and keys have a mean squared norm of {radius**2:.0f}: the formula asks for "
                    f"10^{numbers['log10_features_for_a_tenth']:.0f} features. With 64 the plain ones miss the head's output by "
                    f"{numbers['error_plain']:.0%}, the normalised ones their own target by "
                    f"{numbers['error_normalised_to_its_own_target']:.0%}; but that target is "
                    f"{numbers['its_target_to_the_head']:.0%} away from the head, which was trained without it.")


def train(kind: str, seed: int, *, steps: int = 150, length: int = 96, width: int = 48, m: int = 16, rate: float = 0.02):
    """A byte model of one layer and two heads on the Python reference: losses of training, and the loss on text kept aside.

    Args:
        kind: "prf", "nprf" or "nprf+rpe".
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from tutor import texts
    from tutor.attention.methods.kernelized import Kernelized, directions

    data = torch.tensor(list(texts.reference().encode()))
    split, g = len(data) * 9 // 10, torch.Generator().manual_seed(seed)
    method, w = Kernelized(m, kind != "prf"), directions(m, width // 2, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = nn.ModuleDict({"embed": nn.Embedding(256, width), "qkv": nn.Linear(width, 3 * width),
                               "out": nn.Linear(width, width), "norm": nn.LayerNorm(width), "read": nn.LayerNorm(width),
                               "wide": nn.Linear(width, 2 * width), "back": nn.Linear(2 * width, width),
                               "head": nn.Linear(width, 256)})
        place = nn.Parameter(0.02 * torch.randn(length, width))
    bias = nn.Parameter(torch.zeros(2, 2 * length - 1))

    def loss(x):
        h = parts["embed"](x[:, :-1]) + place
        q, k, v = (z.unflatten(-1, (2, -1)).transpose(1, 2) for z in parts["qkv"](parts["norm"](h)).chunk(3, -1))
        part = method.attend(q, k, v, bias if kind == "nprf+rpe" else None, w=w, how="direct", dtype=torch.float32)
        h = h + parts["out"](part.o.transpose(1, 2).flatten(2))
        h = h + parts["back"](F.gelu(parts["wide"](parts["read"](h))))
        return F.cross_entropy(parts["head"](h).flatten(0, 1), x[:, 1:].flatten())

    optimiser, losses = torch.optim.Adam([*parts.parameters(), place, bias], lr=rate), []
    for _ in range(steps):
        starts = torch.randint(split - length - 1, (8,), generator=g)
        now = loss(data[starts[:, None] + torch.arange(length + 1)])
        optimiser.zero_grad()
        now.backward()
        optimiser.step()
        losses.append(now.item())
    aside = split + length * torch.arange(64)[:, None] + torch.arange(length + 1)
    with torch.no_grad():
        return losses, loss(data[aside]).item()


def trained_from_scratch() -> Measured:
    """Three variants of one tiny model, three seeds each, 150 steps at a large learning rate."""
    found = {kind: [train(kind, seed) for seed in range(3)] for kind in ("prf", "nprf", "nprf+rpe")}
    mean = {kind: sum(loss for _, loss in runs) / 3 for kind, runs in found.items()}
    worst = {kind: max(max(losses[20:]) for losses, _ in runs) for kind, runs in found.items()}
    numbers = {"loss_prf": mean["prf"], "loss_nprf": mean["nprf"], "loss_nprf_rpe": mean["nprf+rpe"],
               "worst_batch_prf": worst["prf"], "worst_batch_nprf_rpe": worst["nprf+rpe"]}
    best = all(a < min(b, c) for (_, a), (_, b), (_, c) in zip(found["nprf+rpe"], found["prf"], found["nprf"]))
    diverged = not all(math.isfinite(x) and x < math.log(256) for x in (mean["prf"], worst["prf"]))
    return Measured(("holds" if diverged else "in_part") if best else "not_here", numbers,
                    f"Loss per byte on text kept aside, mean of three seeds: {mean['prf']:.2f} plain, {mean['nprf']:.2f} "
                    f"normalised, {mean['nprf+rpe']:.2f} normalised with a bias of the distance (best with every seed). "
                    f"The plain one {'diverged' if diverged else 'did not diverge at this size'}.")


CLAIMS = (
    Claim("kernelized.fft-equals-direct", "attention", "kernelized",
          "With relative positions, kernelized attention still costs n log n: the Toeplitz product is an FFT, exactly.",
          "Luo et al. 2021, abstract and section 3.1 (number unverified)", fft_equals_direct,
          Expected("holds", {
              "error": Number(0, 1e-10, "of the largest output"),
              "crossing_length": Number(4096, 4096, "tokens"),
              "growth_fft": Number(1.25, 1.31, "fold"),
              "growth_direct": Number(15.5, 16, "fold")}, "2026-11-23", machine=MACHINE),
          headline="crossing_length",
          stops="Operations, not seconds; and one FFT for each feature and each column of v, so the crossing lies far beyond "
                "short texts.",
          needs="capture"),
    Claim("kernelized.normalisation-cures-the-variance", "attention", "kernelized",
          "The variance of the features is exponential in the norm of queries and keys; normalising them cures it.",
          "Luo et al. 2021, section 3.2 (number unverified)", normalising_cures_the_variance,
          Expected("in_part", {
              "error_over_theory_at_0.5": Number(0.85, 1.1, "times"),
              "error_over_theory_at_1": Number(0.75, 1.25, "times"),
              "error_over_theory_at_1.5": Number(0.6, 1.55, "times"),
              "mean_squared_norm": Number(32, 33.5, ""),
              "log10_features_for_a_tenth": Number(30, 31, ""),
              "error_plain": Number(0.9, 1.3, "of the output"),
              "error_normalised_to_its_own_target": Number(0.05, 0.075, "of the output"),
              "its_target_to_the_head": Number(1.5, 1.75, "of the output")}, "2026-11-23", machine=MACHINE),
          headline="error_normalised_to_its_own_target",
          stops="What is estimated well is another attention: unit vectors have scores between -1 and 1, and a head trained "
                "with softmax needs more. The cure is for models trained with it.",
          needs="capture"),
    Claim("kernelized.trains-from-scratch", "attention", "kernelized",
          "Normalised features with relative positions train stably from scratch where plain ones diverge, and do best.",
          "Luo et al. 2021, abstract and section 4", trained_from_scratch,
          Expected("in_part", {
              "loss_prf": Number(2.6, 2.85, "nats per byte"),
              "loss_nprf": Number(2.6, 2.8, "nats per byte"),
              "loss_nprf_rpe": Number(2.25, 2.55, "nats per byte"),
              "worst_batch_prf": Number(2.8, 3.6, "nats per byte"),
              "worst_batch_nprf_rpe": Number(2.7, 3.2, "nats per byte")}, "2026-11-23", machine=MACHINE),
          headline="loss_nprf_rpe",
          stops="One layer of width 48, 150 steps, bytes: enough for the order of the three, too small for plain features to "
                "diverge.",
          needs=""),
)
