"""Claims about exact search."""

from __future__ import annotations

import numpy as np

from tutor.ann import bench, corpus, metrics
from tutor.ann.flat import Flat
from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def _product_form() -> Measured:
    texts, keys = corpus.docstrings(), corpus.attention()
    agree = []
    for c in (texts, keys):
        agree.append(metrics.recall(Flat().build(c.X, "l2").search(c.Q, 10).ids, bench.truth(c.X, c.Q, 10, "l2")))
    rng = np.random.default_rng(0)
    X = (2500 + 0.1 * rng.standard_normal((1000, 16))).astype(np.float32)      # norm 1e4, gaps of a few tenths
    Q = X[:100] + rng.normal(0, 0.02, (100, 16)).astype(np.float32)
    far = metrics.recall(Flat().build(X).search(Q, 10).ids, bench.truth(X, Q, 10, "l2"))
    verdict = "in_part" if min(agree) > 0.99 and far < 0.9 else "holds" if far >= 0.9 else "not_here"
    return Measured(verdict, {"recall_docstrings": agree[0], "recall_keys": agree[1], "recall_far_from_origin": far},
                    f"In float32 the product form finds {agree[0]:.3f} and {agree[1]:.3f} of the true neighbours on "
                    f"text embeddings and keys, but only {far:.2f} of them on rows of norm 10 000 with gaps of tenths.")


CLAIMS = (
    Claim("flat.product-form-is-exact-enough", "ann", "flat",
          "Exhaustive search may compute squared distances by one matrix product, ||q||² - 2 q·x + ||x||².",
          "The Faiss library, section on exhaustive search (unverified: read in secondary sources)",
          _product_form,
          Expected("in_part", {"recall_docstrings": Number(0.99, 1, "recall@10"),
                               "recall_keys": Number(0.99, 1, "recall@10"),
                               "recall_far_from_origin": Number(0, 0.2, "recall@10")}, DATE, machine=MACHINE),
          "Where norms exceed the gaps by more than three digits, float32 has none left; subtract first.", "capture"),
)
