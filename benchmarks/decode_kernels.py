"""How close do the decode kernels come to the memory's speed, and to what torch would do?

    python benchmarks/decode_kernels.py          # no GPU: the counted floor only, nobody's seconds
    python benchmarks/decode_kernels.py --gpu    # the same with times, beside torch's scaled_dot_product_attention

Nothing is printed about speed before both kernels are within the tolerance of tests/kernels/tolerance.py on every dtype that
is timed. One query row a head. Times are medians of CUDA events after warm-up. torch has no lengths: for ragged requests it is
given the padded batch with a mask, which is what a user would write.
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

RESULTS = ROOT / "benchmarks" / "results" / "decode_kernels.json"
#          Hq Hkv    S    D   lengths, one a request
SHAPES = [(32, 8, 32768, 128, [32768]), (32, 8, 131072, 128, [131072]), (32, 8, 8192, 128, [8192] * 8),
          (32, 32, 8192, 64, [8192] * 4), (9, 3, 8192, 64, [8192]),
          (32, 8, 65536, 128, [65536, 1024, 30000, 5000, 512, 16000, 2048, 9000])]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def gate(device: str) -> None:
    """Raise `AssertionError` unless both kernels are right on small odd shapes, in every dtype that is timed."""
    from tutor.kernels.lean_decode import lean_decode
    from tutor.kernels.split_decode import split_decode

    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES.values():
        for hq, hkv, s, d, lengths in ((6, 2, 75, 64, [75]), (4, 1, 50, 128, [50, 1, 33])):
            q, k, v = (torch.randn(len(lengths), h, n, d, generator=generator).to(device, dtype)
                       for h, n in ((hq, 1), (hkv, s), (hkv, s)))
            for part in (lean_decode(q, k, v, lengths=lengths, workers=5), split_decode(q, k, v, lengths=lengths, splits=3)):
                for b, n in enumerate(lengths):
                    x = q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n]
                    truth, eager = attend(*x), attend(*x, dtype=dtype)
                    assert_within(part.o[b:b + 1], eager.o, truth.o, dtype)
                    assert_within(part.lse[b:b + 1], eager.lse, truth.lse, dtype, "lse")


def counted(shape: tuple, dtype: str, card: str) -> dict:
    """The floor of one shape: every key and value read once."""
    from tutor.kernels.split_decode import roofline

    hq, hkv, s, d, lengths = shape
    floor = roofline(len(lengths), hq, hkv, s, d, lengths=lengths, dtype=dtype, on=card)
    return {"Hq": hq, "Hkv": hkv, "D": d, "lengths": lengths, "dtype": dtype, "bytes": floor.bytes, "flops": floor.flops,
            "floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by}


def timed(shape: tuple, dtype: str) -> dict:
    """Both kernels and torch's best, in milliseconds."""
    import torch.nn.functional as F

    from tutor.kernels.lean_decode import lean_decode
    from tutor.kernels.split_decode import split_decode

    hq, hkv, s, d, lengths = shape
    q, k, v = (torch.randn(len(lengths), h, n, d, device="cuda", dtype=DTYPES[dtype]) for h, n in ((hq, 1), (hkv, s), (hkv, s)))
    sizes = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    mask = None if len(set(lengths)) == 1 else (torch.arange(s, device="cuda") < sizes[:, None])[:, None, None]
    found = {"split_ms": median_ms(lambda: split_decode(q, k, v, lengths=sizes)),
             "lean_ms": median_ms(lambda: lean_decode(q, k, v, lengths=sizes)),
             "sdpa_ms": median_ms(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True))}
    best = min(found["split_ms"], found["lean_ms"])
    return found | {"best_over_sdpa_speed": found["sdpa_ms"] / best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="fail where there is no CUDA device")
    wants_gpu, has_gpu = parser.parse_args().gpu, torch.cuda.is_available()
    if wants_gpu and not has_gpu:
        raise SystemExit("no CUDA device here; run without --gpu for the counted floor")
    kernels.require()
    gate("cuda" if has_gpu else "cpu")
    device = torch.cuda.get_device_name() if has_gpu else "none: counted for an H100 SXM"
    card = card_of(device) if has_gpu else "H100 SXM"
    print(f"both kernels within tolerance; device: {device}; floor of {card}")
    print(f"{'Hq/Hkv':>7}{'D':>5}{'requests':>9}{'keys':>8}  dtype     {'GB':>8}{'floor ms':>10}  bound by", end="")
    print(f"{'split ms':>10}{'lean ms':>9}{'SDPA ms':>9}{'of floor':>10}{'of SDPA':>9}" if has_gpu else "")
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            row = counted(shape, dtype, card) | (timed(shape, dtype) if has_gpu else {})
            rows.append(row)
            print(f"{row['Hq']:>4}/{row['Hkv']:<2}{row['D']:>5}{len(row['lengths']):>9}{sum(row['lengths']):>8}  {dtype:<9}"
                  f"{row['bytes'] / 1e9:>9.4f}{row['floor_ms']:>10.4f}  {row['bound_by']:<8}", end="")
            print(f"{row['split_ms']:>10.3f}{row['lean_ms']:>9.3f}{row['sdpa_ms']:>9.3f}"
                  f"{row['floor_ms'] / min(row['split_ms'], row['lean_ms']):>9.0%}{row['best_over_sdpa_speed']:>9.2f}"
                  if has_gpu else "", flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    save(RESULTS, "decoding one query row against the memory's speed and torch SDPA", device, card, rows)


if __name__ == "__main__":
    main()
