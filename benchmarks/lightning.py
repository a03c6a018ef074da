"""How near is the lightning kernel to its roofline, and where does it pass softmax attention?

    python benchmarks/lightning.py          # no GPU: the counted roofline only, nobody's seconds
    python benchmarks/lightning.py --gpu    # times, beside torch's scaled_dot_product_attention and, if installed, fla

Nothing is printed about speed before the kernel's result is within the tolerance of tests/kernels/tolerance.py. Times are
medians of CUDA events after warm-up, bf16, batch 1; forward, and forward with backward.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._gpu import median_ms  # noqa: E402
from tests.kernels.tolerance import assert_within  # noqa: E402
from tutor import kernels  # noqa: E402
from tutor.attention.methods.lightning import naive, slopes  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "lightning.json"
SHAPES = [(16, n, d) for d in (64, 128) for n in (2048, 4096, 16384, 65536)]      # heads, tokens, width
FLA = "fla.ops.simple_gla"


def gate(device: str) -> None:
    """Raise `AssertionError` unless the kernel is right on a small odd shape."""
    from tutor.kernels.lightning import lightning

    g = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (torch.randn(1, 2, 70, 64, generator=g).to(device, dtype) for _ in range(3))
        s = slopes(2).to(device)
        truth, rounded = naive(*(x.double() for x in (q, k, v)), s).o, naive(q, k, v, s).o
        assert_within(lightning(q, k, v, s).o, rounded, truth, dtype)


def counted(shape: tuple[int, int, int], card: str) -> dict:
    from tutor.kernels.lightning import roofline

    heads, n, d = shape
    floor = roofline(1, heads, heads, n, d, on=card)
    return {"heads": heads, "T": n, "D": d, "bytes": floor.bytes, "flops": floor.flops, "floor_ms": 1e3 * floor.seconds,
            "bound_by": floor.bound_by}


def timed(shape: tuple[int, int, int]) -> dict:
    import torch.nn.functional as F

    from tutor.kernels.lightning import lightning

    heads, n, d = shape
    q, k, v = (torch.randn(1, heads, n, d, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    do, s = torch.randn_like(q), slopes(heads).cuda()
    runs = {"ours": lambda: lightning(q, k, v, s).o, "sdpa": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)}
    if importlib.util.find_spec("fla"):
        peer = importlib.import_module(FLA).chunk_simple_gla
        by_time = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        decay = (-s.float()).expand(1, n, heads).contiguous()
        runs["fla"] = lambda: peer(*by_time, g=decay, scale=1.0)[0].transpose(1, 2)
    row = {}
    for name, run in runs.items():
        with torch.no_grad():
            row[f"{name}_ms"] = median_ms(run)
        row[f"{name}_both_ms"] = median_ms(lambda: run().backward(do))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="time the kernel; needs a CUDA device")
    options = parser.parse_args()
    if options.gpu and not torch.cuda.is_available():
        raise SystemExit("benchmarks/lightning.py --gpu needs a CUDA device, and torch sees none; run it without --gpu")
    kernels.require()
    gate("cuda" if options.gpu else "cpu")
    card = "H100 SXM"
    rows = [counted(shape, card) | (timed(shape) if options.gpu else {}) for shape in SHAPES]
    for row in rows:
        print({name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()})
    if options.gpu:
        content = {"question": "the lightning kernel beside softmax attention and fla", "device": torch.cuda.get_device_name(),
                   "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "floor_of": card, "rows": rows}
        partial = RESULTS.with_suffix(".part")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(RESULTS)


if __name__ == "__main__":
    main()
