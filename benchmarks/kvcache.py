"""What does forgetting cost? Perplexity against measured bytes, on a real text and the real model.

    python benchmarks/kvcache.py            # measures what is missing, writes results and the trace for the pages
    python benchmarks/kvcache.py --again    # measures everything again

2 048 tokens of the Python language reference: 1 024 are prefilled and compressed once, the rest is teacher-forced in
calls of 16 rows, each followed by eviction down to the budget (so a row sees the budget and up to 15 rows more); the
losses of the second half count. Weights bf16, attention in float32, positions as each policy has them.

Calls of 16 rows flatter small budgets a little; how much is measured beside it (`chunk_check`): the same policies at the
smallest budget on a shorter text, token by token and in calls of 4 and 16.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

import tutor
from tutor import texts
from tutor.kvcache import evaluate, make
from tutor.kvcache.metrics import claimed_nbytes, row_bytes
from tutor.model.llama import Model
from tutor.trace import Recorder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "kvcache-perplexity.json"
TRACE = ROOT / "data" / "kvcache" / "perplexity.safetensors"
TOKENS, PREFIX, CHUNK = 2048, 1024, 16
BUDGETS = (64, 128, 256, 512, 1024)
CHECK = {"tokens": 769, "prefix": 512, "budget": 64, "chunks": (1, 4, 16), "labels": ("H2O", "4 sinks + window")}
POLICIES = {
    "full cache": make("full"),
    "H2O": make("h2o"),
    "4 sinks + window": make("sinks_window"),
    "4 sinks + window, original positions": make("sinks_window", rerotate=False),
    "window, no sinks": make("window"),
    "random": make("random"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    again = parser.parse_args().again
    model = tutor.load()
    ids = model.encode(texts.reference())[0, :TOKENS]
    old = {} if again or not RESULTS.exists() else json.loads(RESULTS.read_text(encoding="utf-8"))
    found = {(p["label"], p["budget"]): p for p in old.get("points", ())}
    checked = {(p["label"], p["chunk"]): p for p in old.get("chunk_check", ())}
    jobs = [(label, budget) for label, policy in POLICIES.items() for budget in (BUDGETS if policy.evicts else (None,))]
    for label, budget in tqdm([job for job in jobs if job not in found], unit="point"):
        start = time.perf_counter()
        point = evaluate.measure(model, ids, POLICIES[label], budget, prefix=PREFIX, chunk=CHUNK)
        shared = not POLICIES[label].evicts or "layer_shared" in tutor.catalog.get("kvcache", point.policy).flags
        claimed = claimed_nbytes(model.config, budget or TOKENS - 1, 2, shared=shared)
        found[label, budget] = {"label": label, **asdict(point), "claimed_nbytes": claimed,
                                "seconds": round(time.perf_counter() - start, 1)}
        save(model, [found[job] for job in jobs if job in found], list(checked.values()))
    checks = [(label, chunk) for label in CHECK["labels"] for chunk in CHECK["chunks"]]
    for label, chunk in tqdm([check for check in checks if check not in checked], unit="check"):
        point = evaluate.measure(model, ids[:CHECK["tokens"]], POLICIES[label], CHECK["budget"], prefix=CHECK["prefix"],
                                 chunk=chunk)
        checked[label, chunk] = {"label": label, "chunk": chunk, "budget": CHECK["budget"], "tokens": point.tokens,
                                 "perplexity": point.perplexity}
        save(model, [found[job] for job in jobs], list(checked.values()))
    frontier([found[job] for job in jobs]).save(TRACE)


def save(model: Model, points: list[dict], checks: list[dict]) -> None:
    head = {
        "question": __doc__.splitlines()[0], "model": repr(model), "text": "Python language reference, first tokens",
        "tokens": TOKENS, "prefix": PREFIX, "chunk": CHUNK, "bytes_per_token": row_bytes(model.config, 2),
        "date": datetime.now(UTC).date().isoformat(), "machine": "2-core laptop-class CPU", "torch": torch.__version__,
        "python": platform.python_version(), "tutor": tutor.__version__, "points": points,
        "chunk_check": checks,
    }
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, RESULTS)


def frontier(points: list[dict]) -> tutor.Trace:
    """The trace of the results: one series per policy, megabytes against perplexity."""
    names = list(dict.fromkeys(p["label"] for p in points))
    subject = {"names": names, "x_label": "measured cache (MB)", "y_label": "perplexity", "better": "low",
               "title": "What forgetting costs: perplexity against measured bytes",
               "budgets": [p["budget"] or TOKENS for p in points]}
    params = {"tokens": TOKENS, "prefix": PREFIX, "chunk": CHUNK}
    recorder = Recorder("frontier/1", method="kvcache", params=params, subject=subject)
    for step, name in enumerate(names):
        recorder.step = step
        for p in (p for p in points if p["label"] == name):
            recorder.event("measured", budget=p["budget"] or TOKENS)
    recorder.next_step()
    column = lambda key, scale=1.0: np.array([p[key] * scale for p in points], np.float32)
    series = np.array([names.index(p["label"]) for p in points], np.int32)
    return recorder.finish(series=series, x=column("nbytes", 1e-6), y=column("perplexity"), lo=column("low"),
                           hi=column("high"))


if __name__ == "__main__":
    main()
