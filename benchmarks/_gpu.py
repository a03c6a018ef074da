"""The frame of the kernel benchmarks: check, count, time, save. A benchmark states only what is its own; see flash.py.

    python benchmarks/NAME.py          # checked here; without a GPU only counted: bytes, operations, floor, nobody's seconds
    python benchmarks/NAME.py --gpu    # fails where there is no CUDA device, so that nothing is left out unnoticed

Nothing is printed about speed before the kernel is within the tolerance of tests/kernels/tolerance.py on small odd shapes,
in every dtype that is timed. Times are medians of CUDA events after warm-up, and the cache is emptied before every run:
else a small job finds its inputs there and seems to beat the memory. What is timed beside the kernel and cannot run
(not installed, out of memory) is reported in its place. Results are saved for each device, with its name and the day.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.kernels.tolerance import assert_within  # noqa: E402
from tutor import kernels  # noqa: E402
from tutor.kernels.roofline import Roofline  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CARDS = {"NVIDIA A100-SXM4-80GB": "A100 SXM 80GB", "NVIDIA H100 80GB HBM3": "H100 SXM", "NVIDIA H200": "H200 SXM"}
Maker = Callable[..., Callable[[], object]]             # takes the inputs, prepares, and returns the call that is timed


@dataclass(frozen=True)
class Benchmark:
    """What one kernel benchmark states.

    Attributes:
        name: of the result file; question: what it answers.
        columns: names of the numbers that make a shape; shapes: to be timed; small: odd ones, to be checked.
        inputs: `(shape, dtype, device)` to what the makers and the rule are called with.
        ours: makers of calls that do the same job in our ways; the fastest is compared.
        rule: `(dtype, *inputs)` to what `ours` must give, computed by plain torch in that dtype.
        floor: `(shape, dtype=, on=)` to the roofline; beside: makers of what is timed beside ours.
        also: `(shape, dtype, card)` to other counted numbers of a row; notes: what all timed rows together say.
    """

    name: str
    question: str
    columns: tuple[str, ...]
    shapes: list[tuple]
    small: list[tuple]
    inputs: Callable[[tuple, torch.dtype, str], tuple]
    ours: dict[str, Maker]
    rule: Callable[..., object]
    floor: Callable[..., Roofline] | None = None
    beside: dict[str, Maker] = field(default_factory=dict)
    also: Callable[[tuple, str, str], dict] = lambda *_: {}
    notes: Callable[[list[dict]], list[str]] = lambda _: []
    dtypes: tuple[str, ...] = ("bfloat16", "float16")

    def main(self) -> None:
        parser = argparse.ArgumentParser(description=self.question)
        parser.add_argument("--gpu", action="store_true", help="fail where there is no CUDA device")
        wants_gpu, has_gpu = parser.parse_args().gpu, torch.cuda.is_available()
        if wants_gpu and not has_gpu:
            raise SystemExit("no CUDA device here; run without --gpu for what is counted")
        if has_gpu and kernels.interpreted():
            raise SystemExit("TRITON_INTERPRET is set: kernels would be interpreted beside a GPU; unset it")
        self.gate("cuda" if has_gpu else "cpu")
        device = torch.cuda.get_device_name() if has_gpu else "none"
        card = CARDS.get(device) if has_gpu else "H100 SXM"
        print(f"{self.name}: within tolerance; device: {device}; floor of: {card or 'no card, add it to CARDS and HARDWARE'}")
        rows, failed = [], {}
        for dtype in self.dtypes:
            for shape in self.shapes:
                row = self.counted(shape, dtype, card)
                if has_gpu:
                    row |= self.timed(shape, dtype, "cuda", median_ms, failed)
                    if "floor_ms" in row:
                        row["of_floor"] = row["floor_ms"] / row["ours_ms"]
                show(row, head=not rows)
                rows.append(row)
        if has_gpu:                                     # without one nothing was measured, and what a GPU wrote stays
            notes = [*self.notes(rows), *(f"{name} did not run: {why}" for name, why in failed.items())]
            print(*notes, sep="\n")
            save(self.name, self.question, device, card, rows, notes)

    def gate(self, device: str) -> None:
        """Raise `AssertionError` unless every call of ours is right on the small shapes; numbers are compared, not decisions."""
        for dtype in (getattr(torch, name) for name in self.dtypes):
            for shape in self.small:
                given = self.inputs(shape, dtype, device)
                eager, truth = (numbers(self.rule(kind, *given)) for kind in (dtype, torch.float64))
                for name, make in self.ours.items():
                    found = numbers(make(*given)())
                    if not len(found) == len(eager) == len(truth):
                        raise ValueError(f"{name} gives {len(found)} tensors of numbers, the rule {len(truth)}")
                    for i, three in enumerate(zip(found, eager, truth)):
                        assert_within(*three, dtype, f"{name}, result {i} of shape {shape}")

    def counted(self, shape: tuple, dtype: str, card: str | None) -> dict:
        """What must move and be done; the floor too, where the card's data sheet is known."""
        row = dict(zip(self.columns, shape, strict=True)) | {"dtype": dtype}
        if self.floor is not None:
            floor = self.floor(shape, dtype=dtype, on=card or "H100 SXM")
            row |= {"bytes": floor.bytes, "flops": floor.flops}
            row |= {"floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by} if card else {}
        return row | self.also(shape, dtype, card or "H100 SXM")

    def timed(self, shape: tuple, dtype: str, device: str, clock: Callable[[Callable], float], failed: dict[str, str]) -> dict:
        """Milliseconds of everything, and how many times as long as our fastest the others take."""
        given = self.inputs(shape, getattr(torch, dtype), device)
        row = {f"{name}_ms": clock(make(*given)) for name, make in self.ours.items()}
        best = row["ours_ms"] = min(row.values())
        for name, make in self.beside.items():
            try:
                ms = clock(make(*given))
            except Exception as error:                  # another's code: what it says is reported, and ours goes on
                failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                ms = None
            row |= {f"{name}_ms": ms, f"{name}_over_ours": None if ms is None else ms / best}
        return row


# ----------------------------------------------------------------------------------------------- inputs and peers of many

def normal(dtype: torch.dtype, device: str, *sizes: tuple[int, ...]) -> list[Tensor]:
    """Seeded normal numbers, one tensor for each size."""
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(*size, generator=generator, device=device, dtype=dtype) for size in sizes]


def qkv(b: int, hq: int, hkv: int, t: int, s: int, d: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    return normal(dtype, device, (b, hq, t, d), (b, hkv, s, d), (b, hkv, s, d))


def sdpa(q: Tensor, k: Tensor, v: Tensor, *_) -> Callable:
    """torch's best, causal. It aligns its mask top-left, so T < S is right at T = 1 only."""
    assert q.shape[2] in (1, k.shape[2])
    gqa = q.shape[1] != k.shape[1]
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=gqa)


def flex(q: Tensor, k: Tensor, v: Tensor, rule: Callable, side: int = 128) -> Callable:
    """FlexAttention, causal and where `rule(b, h, i, j)` says so, in blocks of `side`."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()                              # at its ninth mask torch would stop to compile, and say nothing
    (b, h, t), s = q.shape[:3], k.shape[2]
    mask = torch.compile(create_block_mask)(                                 # not compiled, it writes out all pairs
        lambda b, h, i, j: rule(b, h, i, j) & (i >= j), b, h, t, s, device=q.device.type, BLOCK_SIZE=side)
    tiles = {"BLOCK_M": 64, "BLOCK_N": 64} if side < 128 else {}             # must divide the blocks; its own choice may not
    call = torch.compile(flex_attention, dynamic=False)
    return lambda: call(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1], kernel_options=tiles)


# ------------------------------------------------------------------------------------------------------ time, print, save

def median_ms(run: Callable) -> float:
    """Median milliseconds of `run()` by CUDA events, warmed up, the cache emptied before each."""
    from triton.testing import do_bench

    return do_bench(run, warmup=50, rep=200, return_mode="median")


def numbers(answer: object) -> list[Tensor]:
    """The floating tensors of an answer, in order: a tensor, several, or an object that holds some."""
    if answer is None or isinstance(answer, Tensor):
        return [answer] if answer is not None and answer.is_floating_point() else []
    parts = answer if isinstance(answer, (tuple, list)) else vars(answer).values()
    return [x for part in parts for x in numbers(part)]


def show(row: dict, head: bool) -> None:
    """One line of the table, and before the first the names."""
    def told(x) -> str:
        if isinstance(x, (float, int)) and not isinstance(x, bool):
            return f"{x:.4g}" if isinstance(x, float) or x >= 10**7 else str(x)
        return "-" if x is None else str(x).replace(" ", "")

    wide = {name: max(len(name), 9) for name in row}
    if head:
        print(" ".join(f"{name:>{wide[name]}}" for name in row))
    print(" ".join(f"{told(x):>{wide[name]}}" for name, x in row.items()), flush=True)


def save(name: str, question: str, device: str, card: str | None, rows: list[dict], notes: list[str]) -> None:
    """Write what was measured, with device, date and versions; a half-written file is never visible."""
    import triton

    content = {"question": question, "device": device, "floor_of": card, "date": datetime.now(UTC).date().isoformat(),
               "torch": torch.__version__, "triton": triton.__version__, "rows": rows, "notes": notes}
    path = RESULTS / f"{name}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
