"""Does guessing pay on this machine? Tokens per step, and time against our own plain decoding, by kind of text.

    python benchmarks/speculative.py            # some minutes; writes benchmarks/results/speculative-cpu.json

Plain decoding and every drafter take turns on each prompt, greedy, in one process. Tokens per step belong to the model;
times belong to the machine: wall seconds, and CPU seconds, which other programs disturb less. The cost of a verification
is measured beside them, so that a ratio can be explained: tokens per step / (relative cost of its rows + drafting).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

import tutor
from tutor.speculative.bench import SELF_DRAFT, TASKS, compare
from tutor.speculative.cost import calibrate_verify_cost, speedup
from tutor.speculative.draft.autoregressive import Autoregressive
from tutor.speculative.draft.model_chain import ModelChain
from tutor.speculative.draft.model_tree import ModelTree
from tutor.speculative.draft.prompt_lookup import PromptLookup
from tutor.speculative.warp import Warp

RESULTS = Path(__file__).resolve().parent / "results" / "speculative-cpu.json"


def processor() -> str:
    """What the system calls this processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=20, help="forward passes per row count in the calibration")
    parser.add_argument("--to", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    model = tutor.load(dtype=getattr(torch, given.dtype))
    layers = SELF_DRAFT[model.config.name]
    drafters = {
        "autoregressive": Autoregressive,
        "prompt_lookup, 10 tokens": PromptLookup,
        "prompt_lookup, 4 tokens": lambda: PromptLookup(length=4),
        f"model_chain, 3 tokens, {len(layers)} layers": lambda: ModelChain(model, 3, layers=layers),
        f"model_tree, 2x2, {len(layers)} layers": lambda: ModelTree(model, (2, 2), layers=layers, warp=Warp(1.0)),
    }
    cost = calibrate_verify_cost(model, (1, 2, 4, 5, 8, 11, 16, 32), 256, repeats=given.repeats)
    rows = compare(model, drafters, kinds=tuple(TASKS), max_new=given.tokens)
    for row in rows:
        per_step = row["rows"] / row["steps"]
        draft = row["draft_s"] / row["verify_s"] * cost.ratio(per_step)            # in plain steps, as measured here
        row["modelled_ratio"] = speedup(row["tokens_per_step"], draft=draft, verify=cost.ratio(per_step), single=1.0)
        print(f"{row['kind']:8} {row['drafter']:32} {row['tokens_per_step']:5.2f} tokens/step   wall x{row['ratio']:.2f}   "
              f"cpu x{row['cpu_ratio']:.2f}   modelled x{row['modelled_ratio']:.2f}   {row['differing']} of {row['texts']} "
              "texts differ")
    print("verification cost, in plain steps:", {n: round(cost.ratio(n), 2) for n in cost.rows})
    report = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": processor(), "cores": os.cpu_count(),
        "threads": given.threads, "load_before": load_before, "torch": torch.__version__, "dtype": given.dtype,
        "model": model.config.name, "weights": model.config.source, "max_new": given.tokens,
        "verify_cost": {"context": cost.length, "rows": cost.rows, "seconds": cost.seconds}, "rows": rows,
    }
    given.to.parent.mkdir(parents=True, exist_ok=True)
    given.to.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
