"""How close are the backward kernels to their roofline, and to what torch would do?

    python benchmarks/flash_backward.py          # no GPU: the counted roofline only, nobody's seconds
    python benchmarks/flash_backward.py --gpu    # the same with times, beside torch's scaled_dot_product_attention

Nothing is printed about speed before the gradients are within the tolerance of tests/kernels/tolerance.py on every
dtype that is timed. Times are medians of CUDA events after warm-up, causal, batch 1, of the backward pass alone; of torch
the faster of grouped heads and copied ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._gpu import card_of, median_ms, save  # noqa: E402
from benchmarks.flash import DTYPES  # noqa: E402
from tests.kernels.tolerance import assert_within  # noqa: E402
from tutor import kernels  # noqa: E402
from tutor.attention.dense import attend  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "flash-backward.json"
#          Hq Hkv     T    D
SHAPES = [(32, 8, 4096, 64), (32, 8, 4096, 128), (32, 8, 16384, 64), (32, 8, 16384, 128), (9, 3, 4096, 64)]


def make(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, `(1, H, T, D)`."""
    hq, hkv, t, d = shape
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, h, t, d, generator=generator).to(device, dtype) for h in (hq, hkv, hkv, hq)]


def gate(device: str) -> None:
    """Raise `AssertionError` unless the gradients are right on small odd shapes, in every dtype that is timed."""
    from tutor.kernels.flash import flash_attention
    from tutor.kernels.flash_backward import flash_backward

    for dtype in DTYPES.values():
        for shape in ((4, 2, 63, 64), (2, 1, 40, 128)):
            q, k, v, do = make(shape, dtype, device)
            part = flash_attention(q, k, v)
            found, wanted = flash_backward(q, k, v, part.o, part.lse, do), []
            for kind in (dtype, torch.float64):
                inputs = [x.to(kind).requires_grad_() for x in (q, k, v)]
                wanted.append(torch.autograd.grad((attend(*inputs, dtype=kind).o * do.to(kind)).sum(), inputs))
            for name, *three in zip("qkv", found, *wanted):
                assert_within(*three, dtype, "gradient of " + name)


def counted(shape: tuple[int, ...], dtype: str, card: str) -> dict:
    """The roofline of one shape."""
    from tutor.kernels.flash_backward import roofline

    hq, hkv, t, d = shape
    floor = roofline(1, hq, hkv, t, t, d, dtype=dtype, on=card)
    return {"Hq": hq, "Hkv": hkv, "T": t, "D": d, "dtype": dtype, "bytes": floor.bytes, "flops": floor.flops,
            "floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by}


def timed(shape: tuple[int, ...], dtype: str) -> dict:
    """Ours and torch's best, in milliseconds."""
    import torch.nn.functional as F

    from tutor.kernels.flash import flash_attention
    from tutor.kernels.flash_backward import flash_backward

    q, k, v, do = make(shape, DTYPES[dtype], "cuda")
    part = flash_attention(q, k, v)
    ours = median_ms(lambda: flash_backward(q, k, v, part.o, part.lse, do))

    def of_torch(copies: int) -> float:
        inputs = [q, *(x.repeat_interleave(copies, 1) for x in (k, v))]
        inputs = [x.detach().requires_grad_() for x in inputs]
        o = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=copies == 1)
        return median_ms(lambda: torch.autograd.grad(o, inputs, do, retain_graph=True))

    peer = min(of_torch(1), of_torch(shape[0] // shape[1]))
    return {"ours_ms": ours, "sdpa_ms": peer, "ours_over_sdpa_speed": peer / ours}


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
    print(f"gradients within tolerance; device: {device}; floor of {card} (five products; these kernels do seven)")
    print(f"{'Hq/Hkv':>7}{'T':>7}{'D':>5}  dtype     {'GB':>8}{'TFLOP':>8}{'floor ms':>10}  bound by", end="")
    print(f"{'ours ms':>9}{'SDPA ms':>9}{'of floor':>10}{'of SDPA':>9}" if has_gpu else "")
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            row = counted(shape, dtype, card) | (timed(shape, dtype) if has_gpu else {})
            rows.append(row)
            print(f"{row['Hq']:>4}/{row['Hkv']:<2}{row['T']:>7}{row['D']:>5}  {dtype:<9}{row['bytes'] / 1e9:>9.4f}"
                  f"{row['flops'] / 1e12:>8.3f}{row['floor_ms']:>10.4f}  {row['bound_by']:<8}", end="")
            print(f"{row['ours_ms']:>9.3f}{row['sdpa_ms']:>9.3f}{row['floor_ms'] / row['ours_ms']:>9.0%}"
                  f"{row['ours_over_sdpa_speed']:>9.2f}" if has_gpu else "", flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    save(RESULTS, "flash backward against its roofline and torch SDPA", device, card, rows)


if __name__ == "__main__":
    main()
