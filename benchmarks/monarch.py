"""How close is the Monarch kernel to its roofline, and to a convolution by torch.fft?

    python benchmarks/monarch.py          # no GPU: the counted roofline only, nobody's seconds
    python benchmarks/monarch.py --gpu    # the same with times, beside torch.fft (float32, which is all it takes)

Nothing is printed about speed before the kernel's result is within the tolerance of tests/kernels/tolerance.py on
every dtype that is timed. Times are medians of CUDA events after warm-up; the spectrum of the filter is made in both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._gpu import card_of, median_ms, save  # noqa: E402
from tests.kernels.tolerance import assert_within  # noqa: E402
from tutor import kernels  # noqa: E402
from tutor.attention.methods.fftconv import FFTConv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "monarch.json"
#          B   H    L     gates
SHAPES = [(64, 768, 512, 0), (64, 768, 512, 2), (64, 768, 2048, 0), (64, 768, 2048, 2), (8, 768, 2048, 2)]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def gate(device: str) -> None:
    """Raise `AssertionError` unless the kernel is right on odd shapes, in every dtype that is timed."""
    from tutor.kernels.monarch import fft_conv

    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES.values():
        for b, heads, length, taps in ((2, 3, 111, 90), (1, 2, 512, 512), (3, 1, 1999, 2000 - 1)):
            u, pre, post = (torch.randn(b, heads, length, generator=generator).to(dtype) for _ in range(3))
            h = torch.randn(heads, taps, generator=generator)
            y = fft_conv(*(x.to(device) for x in (u, h)), pre=pre.to(device), post=post.to(device), batch_tile=2)
            truth = FFTConv(2).conv(*(x.double() for x in (u, h)), pre=pre.double(), post=post.double())
            assert_within(y.cpu(), FFTConv(2).conv(u, h, pre=pre, post=post), truth, dtype)


def counted(shape: tuple[int, ...], dtype: str, card: str) -> dict:
    """The roofline of one shape."""
    from tutor.kernels.monarch import roofline

    b, heads, length, gates = shape
    floor = roofline(b, heads, length, gates=gates, dtype=dtype, on=card)
    return {"B": b, "H": heads, "L": length, "gates": gates, "dtype": dtype, "bytes": floor.bytes, "flops": floor.flops,
            "floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by}


def timed(shape: tuple[int, ...], dtype: str) -> dict:
    """Ours and torch.fft, in milliseconds."""
    from tutor.kernels.monarch import fft_conv

    b, heads, length, gates = shape
    u, pre, post = (torch.randn(b, heads, length, device="cuda", dtype=DTYPES[dtype]) for _ in range(3))
    h = torch.randn(heads, length, device="cuda")
    given = {"pre": pre, "post": post} if gates else {}

    def peer():
        x = u * pre if gates else u
        y = torch.fft.irfft(torch.fft.rfft(x.float(), 2 * length) * torch.fft.rfft(h, 2 * length), 2 * length)[..., :length]
        return y.to(u.dtype) * post if gates else y.to(u.dtype)

    tiles = {tile: median_ms(lambda: fft_conv(u, h, **given, batch_tile=tile)) for tile in (1, 2, 4, 8)}
    best = min(tiles, key=tiles.get)
    fft = median_ms(peer)
    return {"ours_ms": tiles[best], "batch_tile": best, "fft_ms": fft, "ours_over_fft_speed": fft / tiles[best]}


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
    print(f"kernel within tolerance; device: {device}; floor of {card}")
    print(f"{'B':>4}{'H':>5}{'L':>6}{'gates':>6}  dtype     {'GB':>8}{'TFLOP':>8}{'floor ms':>10}  bound by", end="")
    print(f"{'ours ms':>9}{'fft ms':>9}{'of floor':>10}{'of fft':>9}" if has_gpu else "")
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            row = counted(shape, dtype, card) | (timed(shape, dtype) if has_gpu else {})
            rows.append(row)
            print(f"{row['B']:>4}{row['H']:>5}{row['L']:>6}{row['gates']:>6}  {dtype:<9}{row['bytes'] / 1e9:>9.4f}"
                  f"{row['flops'] / 1e12:>8.3f}{row['floor_ms']:>10.4f}  {row['bound_by']:<8}", end="")
            print(f"{row['ours_ms']:>9.3f}{row['fft_ms']:>9.3f}{row['floor_ms'] / row['ours_ms']:>9.0%}"
                  f"{row['ours_over_fft_speed']:>9.2f}" if has_gpu else "", flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    save(RESULTS, "Monarch convolution against its roofline and torch.fft", device, card, rows)


if __name__ == "__main__":
    main()
