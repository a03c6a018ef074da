"""What the kernel benchmarks share: a median of CUDA events, the card's row of the hardware table, and saving by rename."""

from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime
from pathlib import Path

import torch


def median_ms(run, repeats: int = 20) -> float:
    """Median milliseconds of `run()` by CUDA events, after three runs to warm up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def card_of(name: str) -> str:
    """The row of the hardware table that a device name belongs to."""
    from tutor.kernels.roofline import HARDWARE

    for card in HARDWARE:
        if card.split()[0] in name:
            return card
    raise SystemExit(f"no roofline for {name!r}: add its data-sheet figures in tutor/kernels/roofline.py")


def save(path: Path, question: str, device: str, card: str, rows: list[dict]) -> None:
    """Write what was measured, with device, date and versions; a half-written file is never visible."""
    import triton

    content = {"question": question, "device": device, "floor_of": card, "date": datetime.now(UTC).date().isoformat(),
               "torch": torch.__version__, "triton": triton.__version__, "rows": rows}
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
