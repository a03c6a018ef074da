"""Does vertical-slash attention save what its lines promise? Tiles counted on real heads, and times where there is a GPU.

    python benchmarks/vertical_slash.py          # no GPU: tiles and roofline only, nobody's seconds
    python benchmarks/vertical_slash.py --gpu    # the same with times, beside dense SDPA and FlexAttention with the same mask

Queries and keys are the recorded layers of the real model at 4 096 tokens. Nothing is printed about speed before the
kernel's result is within the tolerance of tests/kernels/tolerance.py on every dtype that is timed. Times are medians of
CUDA events after warm-up, of the attention alone: finding the lines is done in torch and not timed.
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
from tests.kernels.tolerance import assert_within  # noqa: E402
from tutor import kernels  # noqa: E402
from tutor.attention.dense import attend  # noqa: E402
from tutor.attention.methods.vertical_slash import Plan, VerticalSlash  # noqa: E402
from tutor.data import capture  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "vertical-slash.json"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
#          k_v  k_s  tile
BUDGETS = [(32, 64, 16), (32, 64, 64), (128, 256, 16), (128, 256, 64)]


def gate(device: str) -> None:
    """Raise `AssertionError` unless the kernel is right on small odd shapes, in every dtype that is timed."""
    from tutor.kernels.vertical_slash import vertical_slash_attention

    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES.values():
        for b, hq, hkv, t, s, d, tile in ((1, 4, 2, 63, 63, 64, 16), (2, 2, 1, 17, 90, 128, 32)):
            q, k, v = (torch.randn(b, h, n, d, generator=generator).to(dtype) for h, n in ((hq, t), (hkv, s), (hkv, s)))
            todo = VerticalSlash(7, 9, tile, near=2).plan(q, k)
            q, k, v, mask = (x.to(device) for x in (q, k, v, todo.mask(t, s)))
            part = vertical_slash_attention(q, k, v, todo=todo)
            truth, eager = attend(q, k, v, mask=mask), attend(q, k, v, mask=mask, dtype=dtype)
            assert_within(part.o, eager.o, truth.o, dtype)
            assert_within(part.lse, eager.lse, truth.lse, dtype, "lse")


def counted(todo: Plan, lines: int, shape: tuple[int, int, int], dtype: str, card: str) -> dict:
    """Shares of dense attention that the lines promise and that the tiles run, and the roofline."""
    from tutor.kernels.vertical_slash import roofline

    hkv, t, d = shape
    blocks = -(-t // todo.tile)
    floor, heads = roofline(todo, hkv, t, t, d, dtype=dtype, on=card), todo.starts.shape[0] * todo.starts.shape[1]
    return {"lines_share": lines / (heads * t * (t + 1) / 2),
            "tiles_share": int(todo.tiles().sum()) / (heads * blocks * (blocks + 1) / 2), "dtype": dtype,
            "bytes": floor.bytes, "gathered_bytes": roofline(todo, hkv, t, t, d, dtype=dtype, on=card, cached=False).bytes,
            "flops": floor.flops, "floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by}


def timed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, todo: Plan, dtype: str) -> dict:
    """Ours, dense SDPA, and FlexAttention under the same mask, in milliseconds."""
    import torch.nn.functional as F
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from tutor.kernels.vertical_slash import vertical_slash_attention

    q, k, v = (x.to("cuda", DTYPES[dtype]) for x in (q, k, v))
    t, mask = q.shape[2], todo.mask(q.shape[2], q.shape[2]).cuda()
    blocks = create_block_mask(lambda b, h, i, j: mask[b, h, i, j] & (i >= j), *mask.shape, device="cuda")
    flex = torch.compile(flex_attention)
    todo = Plan(todo.tile, todo.starts.cuda(), todo.columns.cuda())
    ours = median_ms(lambda: vertical_slash_attention(q, k, v, todo=todo))
    dense = median_ms(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=t > 1, enable_gqa=True))
    peer = median_ms(lambda: flex(q, k, v, block_mask=blocks, enable_gqa=True))
    return {"ours_ms": ours, "sdpa_ms": dense, "flex_ms": peer, "speed_over_sdpa": dense / ours, "speed_over_flex": peer / ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="fail where there is no CUDA device")
    parser.add_argument("--tokens", type=int, default=4096)
    given, has_gpu = parser.parse_args(), torch.cuda.is_available()
    if given.gpu and not has_gpu:
        raise SystemExit("no CUDA device here; run without --gpu for the counted tiles and roofline")
    kernels.require()
    gate("cuda" if has_gpu else "cpu")
    device = torch.cuda.get_device_name() if has_gpu else "none: counted for an H100 SXM"
    card = card_of(device) if has_gpu else "H100 SXM"
    print(f"kernel within tolerance; device: {device}; floor of {card}")
    print(f"{'layer':>5}{'k_v':>5}{'k_s':>5}{'tile':>5}  dtype     {'lines':>7}{'tiles':>7}{'MB':>8}{'gathered':>9}{'GFLOP':>7}"
          f"{'floor ms':>10}" + (f"{'ours ms':>9}{'SDPA ms':>9}{'Flex ms':>9}" if has_gpu else ""))
    recorded, rows = capture("reference_4096").first(given.tokens), []
    for layer in recorded.layers:
        q, k, v = recorded.q(layer), recorded.k(layer), recorded.v(layer)
        lines = {}                                                     # pairs on the bare lines, whatever the tile
        for k_v, k_s, tile in BUDGETS:
            if (k_v, k_s) not in lines:
                lines[k_v, k_s] = pairs_on_lines(*VerticalSlash(k_v, k_s).choose(q, k))
            todo = VerticalSlash(k_v, k_s, tile).plan(q, k)
            for dtype in DTYPES:
                row = {"layer": layer, "k_v": k_v, "k_s": k_s, "tile": tile}
                row |= counted(todo, lines[k_v, k_s], (k.shape[1], q.shape[2], q.shape[3]), dtype, card)
                row |= timed(q, k, v, todo, dtype) if has_gpu else {}
                rows.append(row)
                print(f"{layer:>5}{k_v:>5}{k_s:>5}{tile:>5}  {dtype:<9}{row['lines_share']:>8.1%}{row['tiles_share']:>7.1%}"
                      f"{row['bytes'] / 1e6:>8.2f}{row['gathered_bytes'] / 1e6:>9.1f}{row['flops'] / 1e9:>7.2f}"
                      f"{row['floor_ms']:>10.5f}"
                      + (f"{row['ours_ms']:>9.3f}{row['sdpa_ms']:>9.3f}{row['flex_ms']:>9.3f}" if has_gpu else ""), flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    import triton

    RESULTS.write_text(json.dumps({
        "question": "vertical-slash attention against dense SDPA and FlexAttention with the same mask", "device": device,
        "floor_of": card, "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__,
        "triton": triton.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def pairs_on_lines(columns: torch.Tensor, slashes: torch.Tensor) -> int:
    """Pairs on kept columns or diagonals of a whole text, over all heads: on columns + on diagonals - on both."""
    keys = columns.shape[-1]
    length = torch.arange(keys, 0, -1)                                 # column j and diagonal o have keys - j, keys - o pairs
    alone = int((columns * length).sum() + (slashes * length).sum())
    kept = columns.flatten(0, -2).any(0).nonzero()[:, 0].tolist()
    both = sum(int((columns[..., j:j + 1] & slashes[..., : keys - j]).sum()) for j in kept)
    return alone - both


if __name__ == "__main__":
    main()
