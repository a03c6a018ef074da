"""What does a compressed prefix cost on a GPU, and how soon is it cheaper than its rows?

    python benchmarks/prefix.py          # no GPU: the counted roofline only, nobody's seconds
    python benchmarks/prefix.py --gpu    # times: in one pass, in two passes with a merge, and the prefix row by row

Nothing is printed about speed before the kernel's result is within the tolerance of tests/kernels/tolerance.py on every
dtype that is timed. Times are medians of CUDA events after warm-up, causal forward, batch 1. The peers: our flash kernel
merged with a summary that torch reads, our flash kernel over prefix and own rows, and torch's own attention over the same.
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
from tutor.attention.methods.ntk import Summary, ntk_attend, read, summarise  # noqa: E402
from tutor.attention.partial import merge  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "prefix.json"
#          Hq Hkv     T      S    D    M      M: rows of the prefix
SHAPES = [(32, 8, 4096, 4096, 128, 512), (32, 8, 4096, 4096, 128, 4096), (32, 8, 4096, 4096, 128, 65536),
          (32, 8, 4096, 4096, 64, 4096), (9, 3, 1024, 1024, 64, 4096), (32, 8, 1, 1024, 128, 65536)]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def cast(summary: Summary, like: torch.Tensor) -> Summary:
    return Summary(*(x.to(like) for x in (summary.z, summary.k, summary.shift)))


def gate(device: str) -> None:
    """Raise `AssertionError` unless the kernel is right on small odd shapes, in every dtype that is timed."""
    from tutor.kernels.prefix import prefix_attention

    g = torch.Generator().manual_seed(0)
    for dtype in DTYPES.values():
        for b, hq, hkv, t, s, d, m in ((1, 4, 2, 63, 63, 64, 40), (2, 2, 1, 17, 50, 128, 9)):
            q, k, v, kp, vp = (torch.randn(b, h, n, d, generator=g).to(device, dtype)
                               for h, n in ((hq, t), (hkv, s), (hkv, s), (hkv, m), (hkv, m)))
            summary = summarise(kp, vp)
            part, eager = prefix_attention(q, k, v, summary), ntk_attend(q, k, v, summary)
            truth = ntk_attend(q.double(), k.double(), v.double(), cast(summary, q.double()))
            assert_within(part.o, eager.o, truth.o, dtype)
            assert_within(part.lse, eager.lse, truth.lse, dtype, "lse")


def counted(shape: tuple[int, ...], dtype: str, card: str) -> dict:
    """The roofline of one shape, with the prefix as a summary and as rows."""
    from tutor.kernels import flash, prefix

    hq, hkv, t, s, d, m = shape
    floor = prefix.roofline(1, hq, hkv, t, s, d, dtype=dtype, on=card)
    rows = flash.roofline(1, hq, hkv, t, s + m, d, dtype=dtype, on=card)
    return {"Hq": hq, "Hkv": hkv, "T": t, "S": s, "D": d, "M": m, "dtype": dtype, "bytes": floor.bytes, "flops": floor.flops,
            "floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by, "rows_floor_ms": 1e3 * rows.seconds}


def timed(shape: tuple[int, ...], dtype: str) -> dict:
    """One pass, two passes, and the prefix as rows, in milliseconds; torch's mask is aligned bottom-right, as ours."""
    import torch.nn.functional as F
    from torch.nn.attention.bias import causal_lower_right

    from tutor.kernels.flash import flash_attention
    from tutor.kernels.prefix import prefix_attention

    hq, hkv, t, s, d, m = shape
    draw = lambda h, n: torch.randn(1, h, n, d, device="cuda", dtype=DTYPES[dtype])
    q, k, v = draw(hq, t), draw(hkv, m + s), draw(hkv, m + s)
    own, summary = (k[:, :, m:], v[:, :, m:]), cast(summarise(k[:, :, :m].float(), v[:, :, :m].float()), q.float())
    wide_k, wide_v = (x.repeat_interleave(hq // hkv, 1) for x in (k, v))               # this mask knows no groups
    bias = causal_lower_right(t, m + s)
    half = Summary((summary.z / m).to(q), (summary.k / m).to(q), summary.shift + math.log(m))      # long sums pass float16
    return {"ours_ms": median_ms(lambda: prefix_attention(q, *own, summary)),
            "two_passes_ms": median_ms(lambda: merge(flash_attention(q, *own), read(q, half))),
            "no_prefix_ms": median_ms(lambda: flash_attention(q, *own)),
            "rows_ms": median_ms(lambda: flash_attention(q, k, v)),
            "sdpa_rows_ms": median_ms(lambda: F.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=bias))}


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
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            row = counted(shape, dtype, card) | (timed(shape, dtype) if has_gpu else {})
            rows.append(row)
            print(f"{row['Hq']:>3}/{row['Hkv']:<2} T {row['T']:>5} S {row['S']:>5} D {row['D']:>4} M {row['M']:>6} {dtype:<9}"
                  f"floor {row['floor_ms']:.4f} ms ({row['bound_by']}), of the rows {row['rows_floor_ms']:.4f} ms", end="")
            print(f"; one pass {row['ours_ms']:.3f}, two {row['two_passes_ms']:.3f}, no prefix {row['no_prefix_ms']:.3f}, rows "
                  f"{row['rows_ms']:.3f}, SDPA {row['sdpa_rows_ms']:.3f} ms" if has_gpu else "", flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    save(RESULTS, "attention with a compressed prefix in one pass, and with its rows", device, card, rows)


if __name__ == "__main__":
    main()
