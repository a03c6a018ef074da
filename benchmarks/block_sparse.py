"""Is block-sparse attention faster by the share of tiles that it lists? Counted, and timed where there is a GPU.

    python benchmarks/block_sparse.py          # no GPU: tiles and roofline only, nobody's seconds
    python benchmarks/block_sparse.py --gpu    # the same with times, beside dense SDPA and FlexAttention with the same blocks

Random tiles besides the diagonal, of the causal ones the share that is told. Nothing is printed about speed before the
kernel's result is within the tolerance of tests/kernels/tolerance.py on every dtype that is timed. Times are medians of
CUDA events after warm-up, of the attention alone: the lists are made beforehand, and so is FlexAttention's block mask.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._gpu import card_of, median_ms  # noqa: E402
from benchmarks.flash import DTYPES  # noqa: E402
from tests.kernels.tolerance import assert_within  # noqa: E402
from tutor import kernels  # noqa: E402
from tutor.attention.dense import attend  # noqa: E402
from tutor.attention.methods.block_sparse_flash import Lists, block_lists  # noqa: E402
from tutor.attention.selection import Selection  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "block-sparse.json"
#          Hq Hkv     T    D  block
SHAPES = [(32, 8, 8192, 64, 64), (32, 8, 8192, 128, 64), (32, 8, 16384, 128, 64), (32, 8, 16384, 128, 128)]
SHARES = (0.1, 0.25, 0.5, 1.0)


def choose(heads: int, t: int, block: int, share: float, q: torch.Tensor, k: torch.Tensor, seed: int = 0) -> Selection:
    """The diagonal and random causal tiles, so that about `share` of all causal tiles are listed."""
    n = -(-t // block)
    i, j = torch.arange(n)[:, None], torch.arange(n)
    below = n * (n - 1) / 2
    rest = (share * (below + n) - n) / max(below, 1)
    drawn = torch.rand(1, heads, n, n, generator=torch.Generator().manual_seed(seed)) < rest
    return Selection.from_blocks((drawn | (i == j)) & (j <= i), q, k, bq=block, bk=block)


def gate(device: str) -> None:
    """Raise `AssertionError` unless the kernel is right on small odd shapes, in every dtype that is timed."""
    from tutor.kernels.block_sparse import block_sparse_attention

    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES.values():
        for hq, hkv, t, d, block in ((4, 2, 63, 64, 16), (2, 1, 90, 128, 32)):
            q, k, v = (torch.randn(1, h, t, d, generator=generator).to(dtype) for h in (hq, hkv, hkv))
            sel = choose(hq, t, block, 0.6, q, k)
            q, k, v, mask = (x.to(device) for x in (q, k, v, sel.mask()))
            part = block_sparse_attention(q, k, v, sel)
            truth, eager = attend(q, k, v, mask=mask), attend(q, k, v, mask=mask, dtype=dtype)
            assert_within(part.o, eager.o, truth.o, dtype)
            assert_within(part.lse, eager.lse, truth.lse, dtype, "lse")


def counted(sel: Selection, shape: tuple[int, ...], dtype: str, card: str) -> dict:
    """The share of causal tiles that is listed, and the roofline."""
    from tutor.kernels.block_sparse import roofline

    hq, hkv, t, d, block = shape
    floor, n = roofline(sel, hkv, d, dtype=dtype, on=card), sel.blocks.shape[2]
    return {"Hq": hq, "Hkv": hkv, "T": t, "D": d, "block": block, "dtype": dtype,
            "tiles_share": int(sel.blocks.sum()) / (hq * n * (n + 1) / 2), "bytes": floor.bytes, "flops": floor.flops,
            "floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by}


def timed(sel: Selection, shape: tuple[int, ...], dtype: str) -> dict:
    """Ours, dense SDPA, and FlexAttention with the same blocks, in milliseconds."""
    import torch.nn.functional as F
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from tutor.kernels.block_sparse import block_sparse_attention

    hq, hkv, t, d, block = shape
    q, k, v = (torch.randn(1, h, t, d, device="cuda", dtype=DTYPES[dtype]) for h in (hq, hkv, hkv))
    lists, listed = Lists(*(x.cuda() for x in block_lists(sel))), sel.blocks.cuda()
    rule = lambda b, h, i, j: listed[b, h, i // block, j // block] & (i >= j)
    mask = create_block_mask(rule, 1, hq, t, t, device="cuda", BLOCK_SIZE=block, _compile=True)
    flex = torch.compile(flex_attention)
    ours = median_ms(lambda: block_sparse_attention(q, k, v, sel, lists=lists))
    dense = median_ms(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    peer = median_ms(lambda: flex(q, k, v, block_mask=mask, enable_gqa=True))
    return {"ours_ms": ours, "sdpa_ms": dense, "flex_ms": peer, "speed_over_sdpa": dense / ours, "speed_over_flex": peer / ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="fail where there is no CUDA device")
    wants_gpu, has_gpu = parser.parse_args().gpu, torch.cuda.is_available()
    if wants_gpu and not has_gpu:
        raise SystemExit("no CUDA device here; run without --gpu for the counted tiles and roofline")
    kernels.require()
    gate("cuda" if has_gpu else "cpu")
    device = torch.cuda.get_device_name() if has_gpu else "none: counted for an H100 SXM"
    card = card_of(device) if has_gpu else "H100 SXM"
    print(f"kernel within tolerance; device: {device}; floor of {card}")
    print(f"{'Hq/Hkv':>7}{'T':>7}{'D':>5}{'block':>6}{'tiles':>7}  dtype     {'GB':>8}{'TFLOP':>8}{'floor ms':>10}"
          + (f"{'ours ms':>9}{'SDPA ms':>9}{'Flex ms':>9}{'of SDPA':>9}" if has_gpu else ""))
    rows = []
    for shape in SHAPES:
        like_q, like_k = (torch.empty(1, h, shape[2], 1) for h in shape[:2])       # shapes alone matter to a selection
        for share in SHARES:
            sel = choose(shape[0], shape[2], shape[4], share, like_q, like_k)
            for dtype in DTYPES:
                row = counted(sel, shape, dtype, card) | (timed(sel, shape, dtype) if has_gpu else {})
                rows.append(row)
                print(f"{row['Hq']:>4}/{row['Hkv']:<2}{row['T']:>7}{row['D']:>5}{row['block']:>6}{row['tiles_share']:>7.0%}  "
                      f"{dtype:<9}{row['bytes'] / 1e9:>9.4f}{row['flops'] / 1e12:>8.3f}{row['floor_ms']:>10.4f}"
                      + (f"{row['ours_ms']:>9.3f}{row['sdpa_ms']:>9.3f}{row['flex_ms']:>9.3f}{row['speed_over_sdpa']:>9.1f}"
                         if has_gpu else ""), flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    import triton

    RESULTS.write_text(json.dumps({
        "question": "block-sparse attention against dense SDPA and FlexAttention with the same blocks", "device": device,
        "floor_of": card, "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__,
        "triton": triton.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
