"""Inner product to distance: one more coordinate makes every row the same length.

Idea        The largest inner product is not the smallest distance, because long rows win the first and lose the second.
            Pad every row to the length of the longest with one coordinate that no query touches, and the two agree.
Rule        L = max ||x||;  x' = [x, sqrt(L² - ||x||²)];  q' = [q, 0];  then ||q' - x'||² = ||q||² + L² - 2 q·x.
Cost        one coordinate; and contrast: a large constant under every distance makes rows look equally far.
Paper       Bachrach et al. 2014 (unverified: read in secondary sources).
Differs     the query keeps its length: for one query the order does not change.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tutor.ann.base import as_rows, distances


def lift(X: Any) -> np.ndarray:
    """Rows `(N, d)` to `(N, d + 1)`, all of one length. Their L2 order for `lift_query(q)` is that of q·x."""
    X = as_rows(X, "X")
    squares = np.einsum("nd,nd->n", X, X, dtype=np.float64)
    return np.column_stack([X, np.sqrt(np.maximum(squares.max() - squares, 0))]).astype(X.dtype)


def lift_query(Q: Any) -> np.ndarray:
    """Queries `(nq, d)` to `(nq, d + 1)`: a zero is appended."""
    Q = as_rows(Q, "Q")
    return np.column_stack([Q, np.zeros(len(Q))]).astype(Q.dtype)


def relative_contrast(X: Any, Q: Any) -> float:
    """Mean over queries of (mean distance / nearest distance), true distances; near 1, distances say little."""
    X, Q = as_rows(X, "X"), as_rows(Q, "Q")
    D = np.sqrt([distances(q, X) for q in Q.astype(X.dtype)])                  # (nq, N)
    nearest = D.min(1)
    if (nearest == 0).any():
        raise ValueError("a query equals a row, so its contrast is infinite; ask with other queries")
    return float((D.mean(1) / nearest).mean())
