"""Which keys are worth reading? Every selector on real heads: mass and output error against keys scored and read.

    python benchmarks/frontier.py                 # the recorded layers; no model needed
    python benchmarks/frontier.py --all-layers    # all 270 heads of the real model at 4 096 tokens
    python benchmarks/frontier.py --again         # forget what was measured before

64 seeded query rows a head, from the last three quarters of the text. Each layer is written when it is done, so an
interrupted run goes on where it stopped. Weights are 4-bit quantised ones, dequantised; queries and keys in float32.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from tutor.attention.frontier import frontier, selectors
from tutor.data import capture

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "attention-frontier.json"
ROWS, SEED = 64, 0


def inputs(all_layers: bool):
    """A capture of the layers to be judged."""
    recorded = capture("reference_4096")
    if not all_layers:
        return recorded
    import tutor
    from tutor.model.capture import capture as record

    model = tutor.load(dtype=torch.float32)
    return record(model, recorded.ids.long(), range(model.config.n_layers))


def complete(points: list[dict]) -> bool:
    """Whether these points are of every registered selector at every parameter set, and of no other."""
    wanted = [(entry.name, dict(params)) for entry in selectors() for params in entry.grid]
    return [(p["method"], p["params"]) for p in points] == wanted


def joined(layers: dict[str, list[dict]]) -> list[dict]:
    """Means over all heads of all layers, one point for each method and parameter set."""
    points = []
    for per_layer in zip(*layers.values()):
        first = per_layer[0]
        point = {name: first[name] for name in ("method", "params")}
        point |= {name: sum(p[name] for p in per_layer) for name in ("pairs", "scored", "loaded")}
        point |= {name: float(np.mean([p[name] for p in per_layer])) for name in ("scan", "mass", "error", "regret")}
        heads = np.concatenate([p["heads"] for p in per_layer])
        draws = np.random.default_rng(SEED).choice(heads, (1000, len(heads))).mean(1)
        low, high = np.quantile(draws, (0.025, 0.975))
        point |= {"load": point["loaded"] / point["pairs"], "mass_lo": float(low), "mass_hi": float(high),
                  "heads": heads.tolist()}
        points.append(point)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all-layers", action="store_true", help="run the real model for every layer")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    recorded = inputs(options.all_layers)
    kept = {} if options.again or not RESULTS.exists() else json.loads(RESULTS.read_text(encoding="utf-8"))["layers"]
    kept = {layer: points for layer, points in kept.items() if complete(points)}
    for layer in tqdm([layer for layer in recorded.layers if str(layer) not in kept], unit="layer"):
        kept[str(layer)] = frontier(recorded, layers=[layer], rows=ROWS, seed=SEED).points
        kept = dict(sorted(kept.items(), key=lambda item: int(item[0])))
        content = {"question": "mass and error of every selector against keys scored and read",
                   "text": "Python language reference, 4 096 tokens", "rows": ROWS, "seed": SEED,
                   "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "layers": kept,
                   "points": joined(kept)}
        partial = RESULTS.with_suffix(".part")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, RESULTS)
    for point in joined(kept):
        print(f"{point['method']:<12} {str(point['params']):<28} read {point['load']:6.1%} scored {point['scan']:6.1%} "
              f"mass {point['mass']:.3f} [{point['mass_lo']:.3f}, {point['mass_hi']:.3f}] error {point['error']:.3f}")


if __name__ == "__main__":
    main()
