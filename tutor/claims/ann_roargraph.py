"""Claims about graphs wired by queries, on real heads and on rows made for the purpose."""

from __future__ import annotations

import numpy as np

from tutor import data
from tutor.ann import bench
from tutor.ann.base import Index
from tutor.ann.roargraph import RoarGraph
from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"
HEADS = tuple((layer, head) for layer in (2, 20, 25) for head in (0, 4, 8))
SINKS, LATE, WINDOW = 128, 3072, 512


def head(layer: int, h: int, *, nq: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys `(2944, 64)` between the first 128 and position 3072, the queries of the same positions to learn from, and `nq`
    queries of the last 512 positions, for whom all these keys lie outside of sinks and window."""
    recorded = data.capture("reference_4096")
    q, k = recorded.q(layer)[0, h].float().numpy(), recorded.k(layer)[0]
    keys = k[h // (recorded.q(layer).shape[1] // len(k)), SINKS:LATE].float().numpy()
    spots = np.linspace(LATE + WINDOW, len(recorded) - 1, nq).round().astype(int)
    return np.ascontiguousarray(keys), q[SINKS:LATE], q[spots]


def wired(keys: np.ndarray, queries: np.ndarray | None, metric: str = "ip") -> RoarGraph:
    return RoarGraph(neighbours=32, M=16, fast=True).build(keys, metric, queries=queries)


def price(index: Index, Q: np.ndarray, truth: np.ndarray, recall: float = 0.95) -> float:
    """Share of the rows that must be measured for `recall`; inf if no beam up to half of the rows reaches it."""
    grid = bench.beams(truth.shape[1], len(index.X) // 2)
    return bench.sweep(index, Q, truth.shape[1], truth, grid, stop=recall).share_at(recall)


def _elsewhere() -> Measured:
    """Queries that point along four directions in which the rows hardly differ, and queries like the rows."""
    rng, wide = np.random.default_rng(0), np.r_[np.full(4, 0.3), np.full(20, 1.5)]
    draw = lambda n, scale: (rng.standard_normal((n, 24)) * scale).astype(np.float32)
    X, numbers = draw(3000, wide), {}
    for metric in ("ip", "l2"):
        for name, scale in (("elsewhere", 3 * (1.8 - wide)), ("alike", wide)):
            asked, Q = draw(6000, scale), draw(100, scale)
            truth = bench.truth(X, Q, 10, metric)
            numbers[f"{metric}_{name}"] = (price(wired(X, None, metric), Q, truth) / price(wired(X, asked, metric), Q, truth))
    by_product = min(numbers["ip_elsewhere"], numbers["ip_alike"])
    verdict = "not_here" if by_product < 1.5 else "holds" if numbers["l2_elsewhere"] > 1.5 else "in_part"
    return Measured(verdict, numbers,
                    "recall@10 of 0.95 costs the same graph without queries "
                    f"{numbers['ip_elsewhere']:.1f} times as many distances for inner products when queries come from elsewhere, "
                    f"{numbers['ip_alike']:.1f} times when they are like the rows; for L2 {numbers['l2_elsewhere']:.1f} and "
                    f"{numbers['l2_alike']:.1f} times.")


def _real() -> Measured:
    ratio = {10: [], 100: []}
    for layer, h in HEADS:
        keys, asked, Q = head(layer, h)
        with_queries, without = wired(keys, asked), wired(keys, None)
        for k, found in ratio.items():
            truth = bench.truth(keys, Q, k, "ip")
            found.append(price(without, Q, truth) / price(with_queries, Q, truth))
    ten, hundred = np.asarray(ratio[10]), np.asarray(ratio[100])
    numbers = {"median_top_10": float(np.median(ten)), "best_top_10": float(ten.max()), "least_top_10": float(ten.min()),
               "median_top_100": float(np.median(hundred))}
    verdict = "holds" if ten.min() > 1 and np.median(ten) > 1.5 else "in_part" if ten.max() > 1.5 else "not_here"
    return Measured(verdict, numbers,
                    f"Without queries the same graph needs {np.median(ten):.2f} times the distances for recall@10 of 0.95 in the "
                    f"median head ({ten.min():.2f} to {ten.max():.2f}), and {np.median(hundred):.2f} times for recall@100.")


def _few_queries() -> Measured:
    ratio = []
    for layer, h in HEADS:
        keys, asked, Q = head(layer, h)
        truth = bench.truth(keys, Q, 10, "ip")
        ratio.append(price(wired(keys, asked[::10]), Q, truth) / price(wired(keys, asked), Q, truth))
    median, worst = float(np.median(ratio)), max(ratio)
    return Measured("holds" if median < 1.2 else "not_here", {"median": median, "worst": worst},
                    f"With a tenth of the training queries recall@10 of 0.95 costs {median:.2f} times the distances in the "
                    f"median head, {worst:.2f} times in the worst.")


def _expect(verdict: str, **numbers: Number) -> Expected:
    return Expected(verdict, numbers, DATE, machine=MACHINE)


CLAIMS = (
    Claim("roargraph.queries-from-elsewhere", "ann", "roargraph",
          "Wiring rows by what queries want makes searches for queries from another distribution faster, up to 3.56 times.",
          "Chen et al. 2024, abstract and section on results", _elsewhere,
          _expect("in_part", ip_elsewhere=Number(1.7, 3, "times"), ip_alike=Number(2, 4, "times"),
                  l2_elsewhere=Number(0.8, 1.2, "times"), l2_alike=Number(0.8, 1.2, "times")),
          "It is the inner product more than the distribution that makes queries foreign: by L2 these rows are as cheap without "
          "them, wherever the queries lie.", ""),
    Claim("roargraph.real-heads", "ann", "roargraph",
          "Queries of attention come from another distribution than keys, so a graph wired by queries needs fewer distances.",
          "Liu et al. 2024, section on attention-aware vector search", _real,
          _expect("in_part", median_top_10=Number(0.9, 1.1, "times"), best_top_10=Number(2.2, 3.7, "times"),
                  least_top_10=Number(0.7, 0.95, "times"), median_top_100=Number(0.83, 1.02, "times")),
          "With 3 000 keys a graph that compares keys by L2 is nearly as good without queries, and better for the best 100.",
          "capture"),
    Claim("roargraph.a-tenth-of-the-queries", "ann", "roargraph",
          "A tenth of the training queries is enough.", "RoarGraph, notes of the authors' code", _few_queries,
          _expect("holds", median=Number(0.85, 1.1, "times"), worst=Number(1.2, 1.9, "times")),
          "A tenth means 294 queries for 2 944 keys here; in the worst head it shows.", "capture"),
)
