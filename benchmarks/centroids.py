"""How close is the centroid look-up of Squeezed Attention to its roofline, and to plain torch?

    python benchmarks/centroids.py          # no GPU: the counted roofline only, nobody's seconds
    python benchmarks/centroids.py --gpu    # the same with times, beside torch's matmul + logsumexp + comparison

Nothing is printed about speed before the kernel's result is within the tolerance of tests/kernels/tolerance.py in every
dtype that is timed. Times are medians of CUDA events after warm-up. There are a twentieth as many centroids as keys in the
prefix, whose bytes stand beside: what dense decoding reads, and the look-up tries to save.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._gpu import card_of, median_ms, save  # noqa: E402
from tests.kernels.tolerance import assert_within  # noqa: E402
from tutor import kernels  # noqa: E402
from tutor.attention.dense import logits  # noqa: E402
from tutor.kernels.roofline import BYTES  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "centroids.json"
#          Hq Hkv   T   prefix    D
SHAPES = [(32, 8, 1, 32768, 128), (32, 8, 1, 131072, 128), (32, 8, 128, 32768, 128), (32, 8, 128, 131072, 128),
          (9, 3, 1, 8192, 64)]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FRAC = 0.05


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """q, centroids and counts of one text."""
    hq, hkv, t, prefix, d = shape
    g, c = torch.Generator(device).manual_seed(seed), int(FRAC * prefix)
    return (torch.randn(1, hq, t, d, generator=g, device=device).to(dtype),
            torch.randn(1, hkv, c, d, generator=g, device=device).to(dtype),
            torch.randint(0, 40, (1, hkv, c), generator=g, device=device))


def plainly(q, centroids, counts, threshold: float, together: bool, dtype=None):
    """The rule in torch: what a user would write."""
    dtype = dtype or q.dtype
    s = logits(q, centroids, causal=False, dtype=dtype)
    n = counts.repeat_interleave(q.shape[1] // counts.shape[1], 1)[:, :, None].to(dtype)
    lse = torch.logsumexp(s + n.log(), -1)
    e = torch.where(n > 0, torch.exp(s - lse[..., None]), 0.0)
    return (e.mean(2, keepdim=True) if together else e) > threshold, lse, e


def gate(device: str) -> None:
    """Raise `AssertionError` unless the kernel is right in every dtype that is timed."""
    from tutor.kernels.centroids import centroid_select

    for dtype in DTYPES.values():
        q, centroids, counts = inputs((6, 2, 17, 1300, 64), dtype, device)
        (_, truth, e), (_, eager, low) = (plainly(q, centroids, counts, 0.02, False, kind) for kind in (torch.float64, dtype))
        assert_within(centroid_select(q, centroids, counts, 0.02).lse, eager, truth, dtype, "lse")
        share = centroid_select(q, centroids, counts, 0.02, together=True).share
        assert_within(share, low.mean(2, keepdim=True), e.mean(2, keepdim=True), dtype, "share")


def counted(shape: tuple[int, ...], dtype: str, card: str) -> dict:
    """The roofline of one shape, and the bytes of the prefix's keys and values."""
    from tutor.kernels.centroids import roofline

    hq, hkv, t, prefix, d = shape
    floor = roofline(1, hq, hkv, t, int(FRAC * prefix), d, together=t > 1, dtype=dtype, on=card)
    return {"Hq": hq, "Hkv": hkv, "T": t, "prefix": prefix, "D": d, "dtype": dtype, "bytes": floor.bytes, "flops": floor.flops,
            "floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by, "prefix_bytes": 2 * hkv * prefix * d * BYTES[dtype]}


def timed(shape: tuple[int, ...], dtype: str) -> dict:
    """Ours and plain torch, in milliseconds; a question of several tokens asks together."""
    from tutor.kernels.centroids import centroid_select

    given = inputs(shape, DTYPES[dtype], "cuda")
    threshold, together = 1 / (math.e * shape[3]), shape[2] > 1
    ours = median_ms(lambda: centroid_select(*given, threshold, together=together))
    peer = median_ms(lambda: plainly(*given, threshold, together))
    return {"ours_ms": ours, "torch_ms": peer, "ours_over_torch_speed": peer / ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="fail where there is no CUDA device")
    wants_gpu, has_gpu = parser.parse_args().gpu, torch.cuda.is_available()
    if wants_gpu and not has_gpu:
        raise SystemExit("no CUDA device here; run without --gpu for the counted roofline")
    kernels.require()
    gate("cuda" if has_gpu else "cpu")
    device = torch.cuda.get_device_name() if has_gpu else "none: counted for an H100 SXM"
    card = card_of(device) if has_gpu else "H100 SXM"
    print(f"kernel within tolerance; device: {device}; floor of {card}; {FRAC:.0%} centroids")
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            row = counted(shape, dtype, card) | (timed(shape, dtype) if has_gpu else {})
            rows.append(row)
            print(f"Hq/Hkv {row['Hq']:>2}/{row['Hkv']} T {row['T']:>3} prefix {row['prefix']:>6} D {row['D']:>3} {dtype:<9} MB: "
                  f"look-up {row['bytes'] / 1e6:7.2f}, prefix {row['prefix_bytes'] / 1e6:7.1f}; floor {row['floor_ms']:.4f} ms, "
                  f"{row['bound_by']}", end="")
            print(f"; ours {row['ours_ms']:.4f} ms, torch {row['torch_ms']:.4f} ms" if has_gpu else "", flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    save(RESULTS, "centroid look-up against its roofline and plain torch", device, card, rows)


if __name__ == "__main__":
    main()
