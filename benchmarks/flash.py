"""How close is the flash kernel to its roofline, and to what torch would do?

    python benchmarks/flash.py          # no GPU: the counted roofline only, nobody's seconds
    python benchmarks/flash.py --gpu    # the same with times, beside torch's scaled_dot_product_attention

Nothing is printed about speed before the kernel's result is within the tolerance of tests/kernels/tolerance.py on
every dtype that is timed. Times are medians of CUDA events after warm-up, causal forward, batch 1.
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
from tutor.attention.dense import attend  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "flash.json"
#          Hq Hkv     T      S    D
SHAPES = [(32, 8, 4096, 4096, 64), (32, 8, 4096, 4096, 128), (32, 8, 16384, 16384, 64), (32, 8, 16384, 16384, 128),
          (32, 8, 32768, 32768, 128), (9, 3, 4096, 4096, 64), (32, 8, 1, 32768, 128)]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def gate(device: str) -> None:
    """Raise `AssertionError` unless the kernel is right on small odd shapes, in every dtype that is timed."""
    from tutor.kernels.flash import flash_attention

    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES.values():
        for b, hq, hkv, t, s, d in ((1, 4, 2, 63, 63, 64), (2, 2, 1, 17, 50, 128)):
            q, k, v = (torch.randn(b, h, n, d, generator=generator).to(device, dtype)
                       for h, n in ((hq, t), (hkv, s), (hkv, s)))
            part, truth, eager = flash_attention(q, k, v), attend(q, k, v), attend(q, k, v, dtype=dtype)
            assert_within(part.o, eager.o, truth.o, dtype)
            assert_within(part.lse, eager.lse, truth.lse, dtype, "lse")


def counted(shape: tuple[int, ...], dtype: str, card: str) -> dict:
    """The roofline of one shape."""
    from tutor.kernels.flash import roofline

    hq, hkv, t, s, d = shape
    floor = roofline(1, hq, hkv, t, s, d, dtype=dtype, on=card)
    return {"Hq": hq, "Hkv": hkv, "T": t, "S": s, "D": d, "dtype": dtype, "bytes": floor.bytes, "flops": floor.flops,
            "floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by}


def timed(shape: tuple[int, ...], dtype: str) -> dict:
    """Ours and torch's best, in milliseconds. torch aligns its causal mask top-left, so T < S is compared at T = 1 only."""
    import torch.nn.functional as F

    from tutor.kernels.flash import flash_attention

    hq, hkv, t, s, d = shape
    q, k, v = (torch.randn(1, h, n, d, device="cuda", dtype=DTYPES[dtype]) for h, n in ((hq, t), (hkv, s), (hkv, s)))
    ours = median_ms(lambda: flash_attention(q, k, v))
    peer = median_ms(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=t > 1, enable_gqa=True))
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
    print(f"kernel within tolerance; device: {device}; floor of {card}")
    print(f"{'Hq/Hkv':>7}{'T':>7}{'S':>7}{'D':>5}  dtype     {'GB':>8}{'TFLOP':>8}{'floor ms':>10}  bound by", end="")
    print(f"{'ours ms':>9}{'SDPA ms':>9}{'of floor':>10}{'of SDPA':>9}" if has_gpu else "")
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            row = counted(shape, dtype, card) | (timed(shape, dtype) if has_gpu else {})
            rows.append(row)
            print(f"{row['Hq']:>4}/{row['Hkv']:<2}{row['T']:>7}{row['S']:>7}{row['D']:>5}  {dtype:<9}"
                  f"{row['bytes'] / 1e9:>9.4f}{row['flops'] / 1e12:>8.3f}{row['floor_ms']:>10.4f}  {row['bound_by']:<8}", end="")
            print(f"{row['ours_ms']:>9.3f}{row['sdpa_ms']:>9.3f}{row['floor_ms'] / row['ours_ms']:>9.0%}"
                  f"{row['ours_over_sdpa_speed']:>9.2f}" if has_gpu else "", flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    save(RESULTS, "flash forward against its roofline and torch SDPA", device, card, rows)


if __name__ == "__main__":
    main()
