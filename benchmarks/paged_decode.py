"""How close is a paged TokenSelect step to its roofline, and to dense decoding?

    python benchmarks/paged_decode.py          # no GPU: the counted roofline only, nobody's seconds
    python benchmarks/paged_decode.py --gpu    # the same with times, beside torch's dense attention over unpaged keys

Nothing is printed about speed before the kernels' result is within the tolerance of tests/kernels/tolerance.py in every
dtype that is timed. Times are medians of CUDA events after warm-up; the vote, which a selection cache saves, is timed apart.
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

RESULTS = ROOT / "benchmarks" / "results" / "paged-decode.json"
SIZES = {"k_top": 2048, "n_init": 128, "n_local": 512}                   # the paper's
#          B  Hq Hkv      S    D
SHAPES = [(1, 32, 8, 32768, 128), (1, 32, 8, 131072, 128), (8, 32, 8, 32768, 128), (1, 9, 3, 8192, 64)]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PAGE = 16


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """q, pools, table, lengths of B texts of S keys, pages in random order."""
    b, hq, hkv, s, d = shape
    g = torch.Generator(device).manual_seed(seed)
    pages = b * (-(-s // PAGE))
    pool = lambda: torch.randn(pages, PAGE, hkv, d, generator=g, device=device, dtype=dtype)
    table = torch.randperm(pages, generator=g, device=device).int().reshape(b, -1)
    return (torch.randn(b, hq, 1, d, generator=g, device=device, dtype=dtype), pool(), pool(), table,
            torch.full((b,), s, dtype=torch.int32, device=device))


def in_order(pool: torch.Tensor, table: torch.Tensor, s: int) -> torch.Tensor:
    """The rows of each text, `(B, Hkv, S, D)`."""
    return pool[table.long()].flatten(1, 2)[:, :s].transpose(1, 2)


def gate(device: str) -> None:
    """Raise `AssertionError` unless the kernels are right in every dtype that is timed."""
    from tutor.kernels.paged_decode import paged_decode

    for dtype in DTYPES.values():
        q, k, v, table, lengths = inputs((2, 6, 2, 75, 64), dtype, device)
        part, keys = paged_decode(q, k, v, table, lengths, k_top=20, n_init=3, n_local=10)
        laid = [in_order(x, table, 75) for x in (k, v)]
        mask = torch.zeros(2, 1, 1, 75, dtype=torch.bool, device=device).scatter_(3, keys[:, None, None], True)
        truth, eager = attend(q, *laid, mask=mask), attend(q, *laid, mask=mask, dtype=dtype)
        assert_within(part.o, eager.o, truth.o, dtype)
        assert_within(part.lse, eager.lse, truth.lse, dtype, "lse")


def counted(shape: tuple[int, ...], dtype: str, card: str) -> dict:
    """The roofline of one shape: with its vote, with a vote reused, and of dense decoding."""
    from tutor.kernels.paged_decode import roofline

    b, hq, hkv, s, d = shape
    read = min(sum(SIZES.values()), s)
    floors = {"step": roofline(b, hq, hkv, s, read, d, dtype=dtype, on=card),
              "reused": roofline(b, hq, hkv, s, read, d, vote=False, dtype=dtype, on=card),
              "dense": roofline(b, hq, hkv, s, s, d, vote=False, dtype=dtype, on=card)}
    return {"B": b, "Hq": hq, "Hkv": hkv, "S": s, "D": d, "dtype": dtype, "read": read} | {
        f"{name}_{key}": value for name, floor in floors.items()
        for key, value in (("bytes", floor.bytes), ("floor_ms", 1e3 * floor.seconds))}


def timed(shape: tuple[int, ...], dtype: str) -> dict:
    """Ours with and without the vote, and torch's dense attention over keys that lie in order, in milliseconds."""
    import torch.nn.functional as F

    from tutor.kernels.paged_decode import paged_attend, paged_decode, paged_scores

    q, k, v, table, lengths = inputs(shape, DTYPES[dtype], "cuda")
    laid = [in_order(x, table, shape[3]).contiguous() for x in (k, v)]
    _, keys = paged_decode(q, k, v, table, lengths, **SIZES)
    return {"step_ms": median_ms(lambda: paged_decode(q, k, v, table, lengths, **SIZES)),
            "scores_ms": median_ms(lambda: paged_scores(q, k, table, lengths)),
            "reused_ms": median_ms(lambda: paged_attend(q, k, v, table, keys)),
            "sdpa_ms": median_ms(lambda: F.scaled_dot_product_attention(q, *laid, enable_gqa=True))}


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
    print(f"kernels within tolerance; device: {device}; floor of {card}; {sum(SIZES.values())} keys read")
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            row = counted(shape, dtype, card) | (timed(shape, dtype) if has_gpu else {})
            rows.append(row)
            print(f"B {row['B']} Hq {row['Hq']:>2} Hkv {row['Hkv']} S {row['S']:>6} D {row['D']:>3} {dtype:<9} MB moved: "
                  f"dense {row['dense_bytes'] / 1e6:8.1f}, with a vote {row['step_bytes'] / 1e6:8.1f}, "
                  f"vote reused {row['reused_bytes'] / 1e6:6.1f}", end="")
            print(f"; ms: SDPA {row['sdpa_ms']:.3f}, step {row['step_ms']:.3f} (scores {row['scores_ms']:.3f}), reused "
                  f"{row['reused_ms']:.3f}; floors {row['step_floor_ms']:.3f}, {row['reused_floor_ms']:.3f}" if has_gpu else "",
                  flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    save(RESULTS, "paged TokenSelect decoding against its roofline and torch SDPA", device, card, rows)


if __name__ == "__main__":
    main()
