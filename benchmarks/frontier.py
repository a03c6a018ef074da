"""Which keys are worth reading? Every selector on every head: mass and output error against keys scored and read.

    python benchmarks/frontier.py                 # all 270 heads of the real model at 4 096 tokens, resumable
    python benchmarks/frontier.py --captured      # the recorded layers only; no model needed
    python benchmarks/frontier.py --only hip      # measure one method again
    python benchmarks/frontier.py --again         # forget what was measured before

64 seeded query rows a head, from the last three quarters of the text, and three budgets a method (the cheapest, the
middle and the dearest of its grid). Each method and layer is written when it is done, so an interrupted run goes on where
it stopped. Methods whose index is dear to build are judged on one seeded head of each layer, and say so. The weights are
4-bit quantised ones, dequantised; queries and keys in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from tutor import catalog
from tutor.attention.frontier import by_layer, frontier, selectors
from tutor.data import capture

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "attention-frontier.json"
ROWS, SEED, BUDGETS = 64, 0, 3
ONE_HEAD = ("retrieval",)   # dear to build: judged on one seeded head of each layer


def inputs(captured: bool):
    """A capture of the layers to be judged."""
    recorded = capture("reference_4096")
    if captured:
        return recorded
    import tutor
    from tutor.model.capture import capture as record

    model = tutor.load(dtype=torch.float32)
    return record(model, recorded.ids.long(), range(model.config.n_layers))


def budgets(entry: catalog.Method) -> list[dict]:
    """Three of a method's parameter sets: first, middle and last of its grid, which runs from cheap to dear."""
    grid = list(entry.grid)
    places = dict.fromkeys(round(x) for x in np.linspace(0, len(grid) - 1, min(BUDGETS, len(grid))))
    return [dict(grid[i]) for i in places]


def measure(recorded, layer: int, entry: catalog.Method) -> dict:
    """The points of one method on one layer, the heads they are of and the seconds they took."""
    q, k, v = by_layer(recorded, [layer])[layer]
    heads = list(range(q.shape[1]))
    if entry.name in ONE_HEAD:
        heads = [int(torch.randint(len(heads), (1,), generator=torch.Generator().manual_seed(SEED + layer)))]
        mine = heads[0] // (q.shape[1] // k.shape[1])
        q, k, v = q[:, heads], k[:, [mine]], v[:, [mine]]
    started = time.perf_counter()
    points = frontier({layer: (q, k, v)}, [entry.name], rows=ROWS, seed=SEED, grids={entry.name: budgets(entry)}).points
    return {"heads": heads, "seconds": round(time.perf_counter() - started, 1), "points": [_short(p) for p in points]}


def _short(point: dict) -> dict:
    """What is kept of a point: counts, shares, and one number for each head, to four places."""
    rounded = lambda x: [round(v, 4) for v in x]
    return {name: point[name] for name in ("params", "pairs", "scored", "loaded")} | {
        "scan": round(point["scan"], 6), "regret": round(point["regret"], 5),
        "mass": rounded(point["heads"]), "error": rounded(point["head_errors"])}


def joined(measured: dict[str, dict[str, dict]]) -> list[dict]:
    """Means over all heads of all layers with 95 % bootstrap intervals over heads: a point for each method and budget."""
    points = []
    for name, layers in measured.items():
        for same in zip(*(found["points"] for found in layers.values())):
            point = {"method": name, "params": same[0]["params"]}
            point |= {count: sum(p[count] for p in same) for count in ("pairs", "scored", "loaded")}
            point |= {"load": point["loaded"] / point["pairs"], "n_heads": sum(len(p["mass"]) for p in same)}
            point |= {mean: float(np.mean([p[mean] for p in same])) for mean in ("scan", "regret")}
            for quality in ("mass", "error"):
                heads = np.concatenate([p[quality] for p in same])
                draws = np.random.default_rng(SEED).choice(heads, (1000, len(heads))).mean(1)
                low, high = np.quantile(draws, (0.025, 0.975))
                point |= {quality: float(heads.mean()), f"{quality}_lo": float(low), f"{quality}_hi": float(high)}
            points.append(point)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captured", action="store_true", help="the recorded layers only; no model needed")
    parser.add_argument("--only", nargs="*", default=[], help="measure these methods again")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    recorded, methods = inputs(options.captured), selectors()
    old = {} if options.again or not RESULTS.exists() else json.loads(RESULTS.read_text(encoding="utf-8")).get("methods", {})
    kept = {entry.name: {} if entry.name in options.only else _current(old.get(entry.name, {}), entry) for entry in methods}
    wanted = [(layer, entry) for layer in recorded.layers for entry in methods if str(layer) not in kept[entry.name]]
    for layer, entry in (bar := tqdm(wanted, unit="run")):
        bar.set_postfix_str(f"layer {layer}, {entry.name}")
        kept[entry.name][str(layer)] = measure(recorded, layer, entry)
        if (layer, entry) == wanted[-1] or entry is methods[-1]:
            write(kept)
    if not wanted:
        write(kept)
    for point in joined(kept):
        print(f"{point['method']:<18} {str(point['params']):<44} read {point['load']:6.1%} scored {point['scan']:6.1%} "
              f"mass {point['mass']:.3f} [{point['mass_lo']:.3f}, {point['mass_hi']:.3f}] error {point['error']:.3f} "
              f"({point['n_heads']} heads)")


def _current(found: dict, entry: catalog.Method) -> dict:
    """Earlier results of a method, unless its budgets have changed since."""
    now = json.loads(json.dumps(budgets(entry)))
    return {layer: run for layer, run in found.items() if [p["params"] for p in run["points"]] == now}


def write(kept: dict[str, dict]) -> None:
    """All results so far, by rename."""
    kept = {name: dict(sorted(layers.items(), key=lambda item: int(item[0]))) for name, layers in kept.items() if layers}
    content = {"question": "mass and error of every selector against keys scored and read",
               "text": "Python language reference, 4 096 tokens", "rows": ROWS, "seed": SEED,
               "layers": sorted({int(layer) for layers in kept.values() for layer in layers}),
               "date": datetime.now(UTC).date().isoformat(), "machine": "2-core laptop-class CPU", "torch": torch.__version__,
               "points": joined(kept), "methods": kept}
    partial = RESULTS.with_suffix(".part")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(partial, RESULTS)


if __name__ == "__main__":
    main()
