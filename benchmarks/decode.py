"""How fast does the model write? Greedy decoding, ours beside Hugging Face `generate`, with the floor that memory sets.

    python benchmarks/decode.py             # two minutes; writes benchmarks/results/decode-cpu.json

One token needs every weight once, so a token cannot take less than bytes of weights / memory bandwidth. The runs
alternate (ours, theirs, ours, ...), so that a machine that slows down or is shared slows both. Prompt and length are
the same, the end-of-text token stops nobody, and the prefill is timed apart and taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

import tutor
from tutor import texts
from tutor.model.load import find

RESULTS = Path(__file__).resolve().parent / "results" / "decode-cpu.json"


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bandwidth(megabytes: int = 512, repeats: int = 7) -> float:
    """Bytes a second of a big read: the sum of an array that no cache holds, best of some."""
    array = torch.ones(megabytes * 250_000)
    return array.numel() * 4 / min(seconds(array.sum) for _ in range(repeats))


def ours(model: tutor.model.llama.Model, ids: torch.Tensor) -> Callable[[int], object]:
    return lambda n: model.generate(ids, max_new=n, stop_at_eos=False)


def theirs(model, ids: torch.Tensor) -> Callable[[int], object]:
    return lambda n: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n,
                                    do_sample=False, pad_token_id=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--to", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    import transformers

    start = time.perf_counter()
    bf16 = tutor.load()
    first_load, load_s = time.perf_counter() - start, seconds(tutor.load)
    ids = bf16.encode(texts.reference()[:2000])[:, : given.prompt]
    runs: dict[str, Callable[[int], object]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        runs[f"ours {name}"] = ours(tutor.load(dtype=dtype), ids)
        peer = transformers.AutoModelForCausalLM.from_pretrained(str(find()), dtype=dtype).eval()
        runs[f"transformers {name}"] = theirs(peer, ids)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(8)                                                       # warm
    for _ in range(given.rounds):
        for name, run in runs.items():
            one = seconds(lambda run=run: run(1))
            times[name].append((seconds(lambda run=run: run(given.tokens)) - one) / (given.tokens - 1))
    speed, weights = bandwidth(), sum(p.numel() for p in peer.parameters())
    rows, ratio = {}, {}
    for name, t in times.items():
        rows[name] = {"ms_per_token_median": round(1e3 * statistics.median(t), 2),
                      "ms_per_token_best": round(1e3 * min(t), 2)}
    for d in ("bfloat16", "float32"):
        a, b = times[f"ours {d}"], times[f"transformers {d}"]
        ratio[d] = {"median_of_pairs": round(statistics.median(y / x for x, y in zip(a, b)), 2),
                    "best_of_each": round(min(b) / min(a), 2)}
    floor = {d: round(1e3 * weights * size / speed, 2) for d, size in (("bfloat16", 2), ("float32", 4))}
    print(f"{bf16}\n{given.prompt} tokens of prompt, {given.tokens} written, {given.rounds} rounds, "
          f"{given.threads} threads; load {first_load:.2f} s first, {load_s:.2f} s warm\n")
    for name, row in rows.items():
        dtype = name.split()[1]
        print(f"{name:24s} {row['ms_per_token_median']:7.2f} ms/token (best {row['ms_per_token_best']:.2f}, "
              f"floor {floor[dtype]:.2f})")
    print(f"\nours is {ratio['bfloat16']['median_of_pairs']}x as fast as transformers in bf16, "
          f"{ratio['float32']['median_of_pairs']}x in float32; memory reads at {speed / 1e9:.1f} GB/s")
    report = {
        "question": __doc__.splitlines()[0], "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()}-core laptop-class CPU", "threads": given.threads, "prompt": given.prompt,
        "tokens": given.tokens, "rounds": given.rounds, "model": repr(bf16), "results": rows,
        "times_faster_than_transformers": ratio, "floor_ms_per_token": floor, "read_gb_per_s": round(speed / 1e9, 1),
        "load_s": {"first": round(first_load, 3), "warm": round(load_s, 3)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "tutor": tutor.__version__},
    }
    given.to.parent.mkdir(parents=True, exist_ok=True)
    temporary = given.to.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, given.to)


if __name__ == "__main__":
    main()
