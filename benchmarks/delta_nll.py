"""What does the model's loss say? Every selector inside the real model, over 1 024 tokens, in nats a token.

    python benchmarks/delta_nll.py                           # every selector, three budgets: an hour or more on a laptop
    python benchmarks/delta_nll.py --methods window h2       # names that begin so
    python benchmarks/delta_nll.py --again                   # forget what was measured before

Each method stands once in all 30 layers and once in all but the first two, whose heads are diffuse. Its three budgets are
the parameter sets of its grid that read nearest to a sixteenth, an eighth and a quarter of the allowed pairs of the
recorded layer 20. Each run is written when it is done, so an interrupted one goes on where it stopped. Weights are 4-bit
quantised ones, dequantised, computed in float32; the intervals are 95 % bootstrap ones over blocks of 32 tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm.auto import tqdm

from tutor.attention.frontier import selectors
from tutor.attention.patch import delta_nll
from tutor.catalog import Method
from tutor.data import capture

RESULTS = Path(__file__).resolve().parent / "results" / "attention-delta-nll.json"
TOKENS, LAYER, TARGETS = 1024, 20, (1 / 16, 1 / 8, 1 / 4)
PLACES = {"all layers": None, "all but the first two": range(2, 30)}


def budgets(entry: Method) -> list[tuple[dict, float]]:
    """The parameter sets nearest to the targets, with the share of pairs that they read, each once and cheapest first."""
    recorded = capture("reference_4096")
    q, k, v = (x[:, :, :TOKENS] for x in (recorded.q(LAYER), recorded.k(LAYER), recorded.v(LAYER)))
    read = []
    for params in entry.grid:
        _, cost = entry.build(**params).select(q, k, v=v)
        read.append(cost["loaded"] / cost["pairs"])
    best = {min(range(len(read)), key=lambda i: abs(math.log(read[i] / target))) for target in TARGETS}
    return sorted(((dict(entry.grid[i]), read[i]) for i in best), key=lambda pair: pair[1])


def write(rows: list[dict], chosen: dict[str, list]) -> None:
    content = {"question": __doc__.splitlines()[0], "text": f"Python language reference, {TOKENS} tokens",
               "date": datetime.now(UTC).date().isoformat(), "machine": f"{os.cpu_count()}-core laptop-class CPU",
               "torch": torch.__version__, "dtype": "float32", "block": 32, "budgets": chosen, "rows": rows}
    partial = RESULTS.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=[""], help="names of methods, or how they begin")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    import tutor

    model = tutor.load(dtype=torch.float32)
    ids = capture("reference_4096").ids[:TOKENS].long()
    exact = model.nll(ids)
    known = {} if options.again or not RESULTS.exists() else json.loads(RESULTS.read_text(encoding="utf-8"))
    entries = {entry.name: entry for entry in selectors()}
    rows = [row for row in known.get("rows", []) if row["method"] in entries and row["params"] in entries[row["method"]].grid]
    chosen = {name: pairs for name, pairs in known.get("budgets", {}).items()
              if name in entries and all(pair[0] in entries[name].grid for pair in pairs)}
    wanted = [name for name in entries if name.startswith(tuple(options.methods))]
    for name in tqdm(wanted, desc="methods"):
        if name not in chosen:
            chosen[name] = [list(pair) for pair in budgets(entries[name])]
        for params, load in tqdm(chosen[name], desc=name, leave=False):
            for place, layers in PLACES.items():
                if any((row["method"], row["params"], row["layers"]) == (name, params, place) for row in rows):
                    continue
                start = time.perf_counter()
                found = delta_nll(model, ids, entries[name].build(**params), layers=layers, exact=exact)
                rows.append({"method": name, "params": params, "layers": place, "load": load, "delta": found.delta,
                             "low": found.low, "high": found.high, "dense": found.dense, "sparse": found.sparse,
                             "seconds": round(time.perf_counter() - start, 1)})
                write(rows, chosen)
    for row in sorted(rows, key=lambda row: (row["layers"], row["method"], row["load"])):
        print(f"{row['layers']:<22}{row['method']:<16}{str(row['params']):<44} read {row['load']:6.1%} "
              f"loss {row['delta']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] nats a token")


if __name__ == "__main__":
    main()
