"""Claims about inverted files."""

from __future__ import annotations

import numpy as np

from tutor.ann import bench, corpus
from tutor.ann.ivf import IVF
from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"
HEADS = ((2, 0), (2, 5), (20, 1), (20, 6), (25, 0), (25, 7))
PROBES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 222)


def _price(c: corpus.Corpus, k: int, recall: float = 0.9) -> float:
    """Share of all distances, centroids included, that recall@k of `recall` costs."""
    index = IVF().build(c.X, c.metric)
    return bench.sweep(index, c.Q, k, bench.truth(c.X, c.Q, k, c.metric), PROBES, stop=recall).share_at(recall)


def _real_queries() -> Measured:
    share = [_price(corpus.attention(layer, head, nq=50), 100) for layer, head in HEADS]
    verdict = "holds" if min(share) > 0.15 and np.median(share) > 0.2 else "not_here"
    return Measured(verdict, {"least": min(share), "median": float(np.median(share)), "most": max(share)},
                    f"For recall@100 of 0.9 on real queries, IVF measures {min(share):.0%} to {max(share):.0%} of the "
                    f"keys, {np.median(share):.0%} in the median of six heads; its 222 centroids alone are 7 %.")


def _keys_are_easier() -> Measured:
    ratio = []
    for layer, head in HEADS:
        queries, keys = (_price(corpus.attention(layer, head, asked=asked, nq=50, centre=True), 10)
                         for asked in ("queries", "keys"))
        ratio.append(queries / keys)
    dearer = sum(r > 1 for r in ratio)
    verdict = "holds" if dearer == len(HEADS) else "in_part" if dearer > len(HEADS) / 2 else "not_here"
    return Measured(verdict, {"median_ratio": float(np.median(ratio)), "heads_dearer": float(dearer)},
                    f"recall@10 of 0.9 costs {np.median(ratio):.1f} times as much for queries as for later keys "
                    f"(median), and more in {dearer} of {len(HEADS)} heads.")


def _texts() -> Measured:
    c = corpus.docstrings()
    share = _price(c, 10)
    return Measured("holds" if share < 0.5 else "not_here", {"share": share},
                    f"recall@10 of 0.9 on 2 000 docstrings costs {share:.0%} of the distances of exact search.")


def _expect(verdict: str, **numbers: Number) -> Expected:
    return Expected(verdict, numbers, DATE, machine=MACHINE)


CLAIMS = (
    Claim("ivf.real-queries-need-many-lists", "ann", "ivf",
          "On queries of a language model, ordinary indexes must scan a large part of the keys to be accurate: 30 %.",
          "RetrievalAttention, introduction and figure on scanned keys (figure number unverified)", _real_queries,
          _expect("holds", least=Number(0.15, 0.28, "of the keys"), median=Number(0.18, 0.32, "of the keys"),
                  most=Number(0.33, 0.5, "of the keys")),
          "Fractions shrink as texts grow: centroids and cells weigh less at 128 000 tokens than at 3 072.", "capture"),
    Claim("ivf.queries-are-dearer-than-keys", "ann", "ivf",
          "Queries come from another distribution than keys, so an index costs more for them than for keys.",
          "RetrievalAttention, section on out-of-distribution queries (number unverified)", _keys_are_easier,
          _expect("in_part", median_ratio=Number(1.2, 2.5, "times"), heads_dearer=Number(4, 5, "of 6 heads")),
          "A head whose queries all want the same few keys is cheaper to ask with queries than with keys.", "capture"),
    Claim("ivf.saves-most-distances-on-texts", "ann", "ivf",
          "Scanning only the lists nearest to the query finds most neighbours for a fraction of the distances.",
          "Jégou et al. 2011, section IV", _texts,
          _expect("holds", share=Number(0.12, 0.26, "of the distances")),
          "In 384 dimensions cells overlap; halves of the corpus must be read for the last few neighbours.", "capture"),
)
