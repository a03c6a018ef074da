"""What does recall cost? Distances against recall@10 for four indexes, on texts, and on real keys asked by keys and queries.

    python benchmarks/ann.py        # a few minutes on two cores; writes results and the traces for the pages

Counted, not timed: the share of all rows whose distance is computed, centroids included, so the numbers are the same on
every machine. Text: 2 000 docstring embeddings, cosine, 200 held-out sentences. Attention: 3 072 keys of layer 20, the
mean key subtracted, inner product, 100 later positions asking with keys (K to K) or with queries of head 6 (Q to K);
and the same queries on keys as they are, where the graphs fail.
"""

from __future__ import annotations

import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
from tqdm.auto import tqdm

from tutor.ann import bench, corpus
from tutor.ann.faiss_replay import FaissHNSW
from tutor.ann.flat import Flat
from tutor.ann.hnsw import HNSW
from tutor.ann.ivf import IVF
from tutor.trace import Recorder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ann-recall.json"
TRACES = ROOT / "data" / "ann"
K = 10
PROBES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
CORPORA = {
    "docstrings": ("Docstrings asked by sentences", lambda: corpus.docstrings()),
    "keys": ("Keys asked by keys", lambda: corpus.attention(asked="keys", centre=True)),
    "queries": ("Keys asked by queries", lambda: corpus.attention(centre=True)),
    "raw_queries": ("Keys as they are, asked by queries", lambda: corpus.attention()),
}
INDEXES = {
    "exact": lambda: Flat(exact=True),
    "IVF": lambda: IVF(),
    "HNSW": lambda: HNSW(M=16, ef_construction=100),
    "faiss's HNSW, replayed": lambda: FaissHNSW(M=16, ef_construction=100),
}


def main() -> None:
    points, prices = [], []
    bar = tqdm(total=len(CORPORA) * len(INDEXES), unit="index")
    for key, (title, make) in CORPORA.items():
        c = make()
        ids = bench.truth(c.X, c.Q, K, c.metric)
        runs: dict[str, bench.Sweep] = {}
        for name, build in INDEXES.items():
            start = time.perf_counter()
            index = build().build(c.X, c.metric)
            seconds = time.perf_counter() - start
            grid = PROBES if index.effort == "nprobe" else bench.beams(K, 640)
            run = runs[name] = bench.sweep(index, c.Q, K, ids, grid, stop=0.998)
            low, high = run.interval()
            points += [{"corpus": key, "index": name, "effort": int(e), "share": round(float(x), 5),
                        "recall": round(float(y), 5), "low": round(float(a), 5), "high": round(float(b), 5)}
                       for e, x, y, a, b in zip(run.effort, run.share, run.recall, low, high)]
            share = run.share_at(0.9)
            prices.append({"corpus": key, "index": name, "share_at_90": round(share, 4) if np.isfinite(share) else None,
                           "build_seconds": round(seconds, 2), "build_dots": index.build_cost["build_dots"],
                           "repaired": getattr(index, "repaired", 0)})
            tqdm.write(f"{title}, {name}: recall 0.9 at {share:.1%} of the distances, built in {seconds:.1f} s")
            bar.update()
        trace(title, runs, len(c.X)).save(TRACES / f"frontier{'' if key == 'docstrings' else '_' + key}.safetensors")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({
        "question": f"share of distances against recall@{K}", "date": datetime.now(UTC).date().isoformat(),
        "device": f"{platform.machine()} CPU", "python": platform.python_version(), "numpy": np.__version__,
        "faiss": faiss.__version__, "prices": prices, "points": points}, indent=1) + "\n", encoding="utf-8")


def trace(title: str, runs: dict[str, bench.Sweep], N: int):
    """A frontier: one series per index, effort growing along it."""
    recorder = Recorder("frontier/1", method="ann", params={"k": K}, subject={
        "names": list(runs), "x_label": f"distances computed, share of {N} rows", "y_label": f"recall@{K}",
        "better": "high", "title": title})
    for run in runs.values():
        for _ in run.share:
            recorder.event("measured")
        recorder.next_step()
    low, high = zip(*(run.interval() for run in runs.values()))
    column = lambda parts: np.concatenate(list(parts)).astype(np.float32)
    return recorder.finish(series=np.repeat(np.arange(len(runs)), [len(r.share) for r in runs.values()]).astype(np.int32),
                           x=column(r.share for r in runs.values()), y=column(r.recall for r in runs.values()),
                           lo=column(low), hi=column(high), effort=column(r.effort for r in runs.values()))


if __name__ == "__main__":
    main()
