"""How much does it save to keep the recurrent matrix on the chip, and how fast is the fused kernel beside cuDNN?

    python benchmarks/rnn.py          # no GPU: counted bytes and the roofline only, nobody's seconds
    python benchmarks/rnn.py --gpu    # the same with times, beside torch.nn.LSTM (cuDNN, one head of the same width)

Nothing is printed about speed before the kernel's result is within the tolerance of tests/kernels/tolerance.py.
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

from benchmarks._gpu import median_ms  # noqa: E402
from tests.kernels.tolerance import assert_within  # noqa: E402
from tutor import kernels  # noqa: E402
from tutor.attention.methods import flash_rnn  # noqa: E402
from tutor.attention.methods.flash_rnn import traffic  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "rnn.json"
SHAPES = [(16, 1024, 12, 64), (64, 1024, 12, 64), (16, 4096, 12, 64), (16, 1024, 24, 32)]      # B, T, Nh, Dh


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Pre-activations, matrices and biases of an LSTM, seeded."""
    batch, steps, heads, width = shape
    g = torch.Generator().manual_seed(0)
    sizes = ((batch, steps, 4, heads, width), (4, heads, width, width), (4, heads, width))
    scales = (1, width**-0.5, 1)
    return [(s * torch.randn(*size, generator=g)).to(dtype).to(device) for s, size in zip(scales, sizes)]


def gate(device: str) -> None:
    """Raise `AssertionError` unless the kernel is right on a small odd shape."""
    from tutor.kernels.rnn import rnn

    for dtype in (torch.float32, torch.bfloat16):
        given = draw((17, 5, 3, 32), dtype, device)
        found, eager = rnn(*given), flash_rnn.rnn(*given)
        truth = flash_rnn.rnn(*[x.double() for x in given])
        assert_within(found.states[0], eager.states[0], truth.states[0], dtype)


def counted(shape: tuple[int, ...], card: str) -> dict:
    from tutor.kernels.rnn import roofline

    batch, steps, heads, width = shape
    floor = roofline(*shape, on=card)
    return {"B": batch, "T": steps, "Nh": heads, "Dh": width, "bytes": floor.bytes, "floor_ms": 1e3 * floor.seconds,
            "R_bytes_fused": traffic(steps, 4, heads, width, fused=True), "R_bytes_alternating": traffic(steps, 4, heads, width)}


def timed(shape: tuple[int, ...]) -> dict:
    from tutor.kernels.rnn import rnn

    batch, steps, heads, width = shape
    wx, R, b = draw(shape, torch.bfloat16, "cuda")
    peer = torch.nn.LSTM(heads * width, heads * width, batch_first=True, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(batch, steps, heads * width, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        return {"ours_ms": median_ms(lambda: rnn(wx, R, b)), "cudnn_lstm_ms": median_ms(lambda: peer(x)),
                "note": "cuDNN's LSTM has one dense head of width Nh * Dh and multiplies its input too: more work, not the same"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="time the kernel; needs a CUDA device")
    options = parser.parse_args()
    if options.gpu and not torch.cuda.is_available():
        raise SystemExit("benchmarks/rnn.py --gpu needs a CUDA device, and torch sees none; run it without --gpu for the counts")
    kernels.require()
    gate("cuda" if options.gpu else "cpu")
    card = "H100 SXM"
    rows = [counted(shape, card) | (timed(shape) if options.gpu else {}) for shape in SHAPES]
    for row in rows:
        print({name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()})
    if options.gpu:
        content = {"question": "the fused recurrent kernel beside cuDNN", "device": torch.cuda.get_device_name(),
                   "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "floor_of": card, "rows": rows}
        partial = RESULTS.with_suffix(".part")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(RESULTS)


if __name__ == "__main__":
    main()
