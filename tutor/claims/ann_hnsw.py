"""Claims about HNSW."""

from __future__ import annotations

import numpy as np

from tutor.ann import bench, corpus, metrics
from tutor.ann.hnsw import HNSW
from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def _texts() -> Measured:
    c = corpus.docstrings()
    index = HNSW(M=12, ef_construction=60).build(c.X, c.metric)
    run = bench.sweep(index, c.Q, 10, bench.truth(c.X, c.Q, 10, c.metric), bench.beams(10, 400), stop=0.95)
    share = run.share_at(0.95)
    return Measured("holds" if share < 0.3 else "not_here", {"share_at_95": share, "recall_at_k": float(run.recall[0])},
                    f"recall@10 of 0.95 on 2 000 docstrings costs {share:.1%} of the distances of exact search; the "
                    f"smallest beam already finds {run.recall[0]:.2f}.")


def _growth() -> Measured:
    sizes, heads = (384, 1088, 3072), ((2, 5), (20, 6))
    spent = np.empty((len(heads), len(sizes)))
    for row, (layer, head) in enumerate(heads):
        for column, n in enumerate(sizes):
            c = corpus.attention(layer, head, asked="keys", keys=n, nq=60, centre=True)
            index = HNSW(M=8, ef_construction=40).build(c.X, c.metric)
            run = bench.sweep(index, c.Q, 10, bench.truth(c.X, c.Q, 10, c.metric), bench.beams(10, 300), stop=0.9)
            spent[row, column] = run.share_at(0.9) * n
    exponent = float(np.polyfit(np.log(sizes), np.log(spent).mean(0), 1)[0])
    times = float((spent[:, -1] / spent[:, 0]).mean())
    return Measured("holds" if exponent < 0.6 else "not_here", {"exponent": exponent, "times": times},
                    f"From {sizes[0]} to {sizes[-1]} keys, 8 times as many, recall@10 of 0.9 costs {times:.1f} times "
                    f"as many distances (mean of {len(heads)} heads): growth like N^{exponent:.2f}.")


def _clusters() -> Measured:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 32))
    X = (centres[rng.integers(60, size=2000)] + 0.05 * rng.standard_normal((2000, 32))).astype(np.float32)
    Q = (centres[rng.integers(60, size=200)] + 0.05 * rng.standard_normal((200, 32))).astype(np.float32)
    ids = bench.truth(X, Q, 10, "l2")
    numbers = {}
    for name, heuristic in (("diverse", True), ("nearest", False)):
        index = HNSW(M=8, ef_construction=60, heuristic=heuristic, repair=False).build(X)
        numbers[f"reachable_{name}"] = float(index.reachable().mean())
        numbers[f"recall_{name}"] = metrics.recall(index.search(Q, 10, ef=160).ids, ids)
    holds = numbers["recall_diverse"] > 0.98 and numbers["recall_nearest"] < numbers["recall_diverse"] - 0.05
    return Measured("holds" if holds else "not_here", numbers,
                    f"On 60 tight clusters a beam of 160 has recall@10 {numbers['recall_diverse']:.2f} with diverse "
                    f"neighbours and {numbers['recall_nearest']:.2f} with the nearest ones, which leave "
                    f"{1 - numbers['reachable_nearest']:.0%} of the rows out of reach.")


def _expect(verdict: str, **numbers: Number) -> Expected:
    return Expected(verdict, numbers, DATE, machine=MACHINE)


CLAIMS = (
    Claim("hnsw.few-distances-for-high-recall", "ann", "hnsw",
          "High recall is reached while a small part of the rows is measured.",
          "Malkov and Yashunin 2020, section 5", _texts,
          _expect("holds", share_at_95=Number(0.08, 0.18, "of the distances"),
                  recall_at_k=Number(0.8, 0.95, "recall@10")),
          "At 2 000 rows a few percent are already a hundred distances; the share falls as N grows.", "capture"),
    Claim("hnsw.cost-grows-slowly", "ann", "hnsw",
          "The cost of a search grows like the logarithm of the number of rows.",
          "Malkov and Yashunin 2020, section 4.2", _growth,
          _expect("holds", exponent=Number(0.15, 0.5), times=Number(1.3, 3, "times")),
          "Over one decade of rows a logarithm cannot be told from a small power.", "capture"),
    Claim("hnsw.diverse-neighbours-join-clusters", "ann", "hnsw",
          "Choosing diverse neighbours instead of the nearest keeps clustered data connected and recall high.",
          "Malkov and Yashunin 2020, algorithm 4 and section 4.1", _clusters,
          _expect("holds", reachable_diverse=Number(0.98, 1), recall_diverse=Number(0.98, 1, "recall@10"),
                  reachable_nearest=Number(0.7, 0.93), recall_nearest=Number(0.7, 0.93, "recall@10")),
          "On isotropic data both choices do equally well; and rows inserted cluster by cluster hurt both.", ""),
)
