"""Graph search and graph building for the CPU, compiled by Numba: the twins of `tutor.ann.graph` and `.roargraph`.

What moves  A step of a walk reads one line of the table (2 M ids, 4 bytes each) and then up to 2 M rows of d numbers,
            scattered over memory. Nothing is read twice and the next step depends on this one, so the time is that of
            random reads of 64 to 256 bytes in a chain: a job for a CPU's caches, and none for a GPU's bandwidth.

                table[c] : | id id id . | id id . . |          X : ----- row id -----
                             projected    connecting               read, one dot product, maybe pushed on two heaps

The functions have the names and arguments of the references and write the same edges. Rows are taken in single precision.
A walk adds in another order than NumPy does, so that rows at nearly equal distance may be visited in another order.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit

from tutor.ann.base import check_metric

FREE = -1


def beam_search(table: np.ndarray, X: np.ndarray, Q: np.ndarray, entry: int, L: int, *,
                metric: str = "l2") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Walk from `entry` with a beam of `L`, once for each query of `Q (nq, d)`.

    Returns:
        ids `(nq, L)`, nearest first, -1 where fewer were found; distances `(nq, L)`, +inf there; distances measured
        `(nq,)`; nodes expanded `(nq,)`.
    """
    if L < 1:
        raise ValueError(f"a walk needs a beam L >= 1; got L={L}")
    if not 0 <= entry < len(X):
        raise ValueError(f"entry must be a row of X, in [0, {len(X)}); got {entry}")
    if check_metric(metric) == "cosine":
        raise ValueError("metric 'cosine' is 'l2' on rows of length 1; normalise X and Q, and pass metric='l2'")
    return _search(table, _rows(X), _rows(Q), entry, min(L, len(X)), metric == "ip")


def project(X: np.ndarray, top: np.ndarray, table: np.ndarray, M: int, *, merge: bool = True) -> int:
    """As `tutor.ann.roargraph.project`."""
    return _project(_rows(X), np.ascontiguousarray(top, np.int64), table, M, merge)


def connect(X: np.ndarray, table: np.ndarray, entry: int, M: int, beam: int, start: int, stop: int, *,
            progress: bool = False) -> int:
    """As `tutor.ann.roargraph.connect`; too fast to show progress."""
    return _connect(_rows(X), table, entry, M, beam, start, stop)


def reachable(table: np.ndarray, entry: int, N: int) -> np.ndarray:
    """Which of the first `N` rows a walk from `entry` can arrive at, `(N,)` bool."""
    return _reachable(table, entry, N)


def _rows(X: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(X, np.float32)


# --------------------------------------------------------------------------------------------------------- compiled code

@njit(cache=True, fastmath=True)
def _distance(a, b, ip):
    total = np.float32(0)
    if ip:
        for i in range(len(a)):
            total -= a[i] * b[i]
    else:
        for i in range(len(a)):
            gap = a[i] - b[i]
            total += gap * gap
    return total


@njit(cache=True, fastmath=True)
def _exact(a, b):
    """Squared distance in double precision: what pruning compares."""
    total = 0.0
    for i in range(len(a)):
        gap = np.float64(a[i]) - np.float64(b[i])
        total += gap * gap
    return total


@njit(cache=True)
def _walk(table, X, q, entry, L, ip, seen, mark, expanded):
    """One walk. `seen` holds the mark of the last walk that met a node; `expanded` is filled. Returns beam and counts."""
    entry = np.int64(entry)
    d = _distance(q, X[entry], ip)
    candidates, held = [(d, entry)], [(-d, -entry)]
    seen[entry] = mark
    ndist, nhops = 1, 0
    while len(candidates):
        d, c = heapq.heappop(candidates)
        if len(held) == L and (d, c) > (-held[0][0], -held[0][1]):
            break
        if len(expanded):
            expanded[nhops] = c
        nhops += 1
        for place in range(table.shape[1]):
            v = np.int64(table[c, place])
            if v == FREE or seen[v] == mark:
                continue
            seen[v] = mark
            d = _distance(q, X[v], ip)
            ndist += 1
            if len(held) < L or (d, v) < (-held[0][0], -held[0][1]):
                heapq.heappush(candidates, (d, v))
                heapq.heappush(held, (-d, -v))
                if len(held) > L:
                    heapq.heappop(held)
    return held, ndist, nhops


@njit(cache=True)
def _search(table, X, Q, entry, L, ip):
    ids, dist = np.full((len(Q), L), FREE, np.int64), np.full((len(Q), L), np.inf, np.float32)
    ndist, nhops = np.zeros(len(Q), np.int64), np.zeros(len(Q), np.int64)
    seen, nothing = np.zeros(len(X), np.int64), np.zeros(0, np.int64)
    for i in range(len(Q)):
        held, ndist[i], nhops[i] = _walk(table, X, Q[i], entry, L, ip, seen, i + 1, nothing)
        for j in range(len(held) - 1, -1, -1):                   # the worst one leaves the heap first
            d, v = heapq.heappop(held)
            dist[i, j], ids[i, j] = -d, -v
    return ids, dist, ndist, nhops


@njit(cache=True)
def _prune(X, p, ids, M, fill):
    """`robust_prune` of ascending distinct `ids` for row p, by L2; also the number of distances."""
    gap = np.empty(len(ids), np.float64)
    for i in range(len(ids)):
        gap[i] = _exact(X[p], X[ids[i]])
    order = np.argsort(gap, kind="mergesort")                    # stable: equal distances stay in order of id
    alive, taken = np.ones(len(ids), np.bool_), np.zeros(len(ids), np.bool_)
    chosen = np.empty(M, np.int64)
    n = 0
    for at in range(len(ids)):
        j = order[at]
        if n == M:
            break
        if not alive[j]:
            continue
        chosen[n], taken[j] = ids[j], True
        n += 1
        for other in range(at + 1, len(ids)):
            v = order[other]
            if alive[v] and _exact(X[ids[j]], X[ids[v]]) <= gap[v]:
                alive[v] = False
    if fill:
        for at in range(len(ids)):
            if n < M and not taken[order[at]]:
                chosen[n] = ids[order[at]]
                n += 1
    return chosen[:n], len(ids) * (1 + n)


@njit(cache=True)
def _link(X, table, first, a, b, M):
    """The edge a -> b in places `first` to `first + M - 1`, unless a has it; a full list is pruned."""
    for place in range(table.shape[1]):
        if table[a, place] == b:
            return 0
    for place in range(first, first + M):
        if table[a, place] == FREE:
            table[a, place] = b
            return 0
    ids = np.empty(M + 1, np.int64)
    ids[:M], ids[M] = table[a, first:first + M], b
    chosen, dots = _prune(X, a, np.sort(ids), M, False)
    _write(table, first, a, chosen, M)
    return dots


@njit(cache=True)
def _write(table, first, a, row, M):
    table[a, first:first + M] = FREE
    table[a, first:first + len(row)] = row


@njit(cache=True)
def _project(X, top, table, M, merge):
    dots = 0
    for t in range(len(top)):
        pivot = top[t, 0]
        if pivot == FREE:
            continue
        others = top[t, 1:]
        if merge:
            others = np.concatenate((others, table[pivot, :M].astype(np.int64)))
        others = np.unique(others[(others != FREE) & (others != pivot)])
        new = np.ones(len(others), np.bool_)
        for place in range(M, table.shape[1]):
            new &= others != table[pivot, place]
        others = others[new]
        chosen, spent = _prune(X, pivot, others, M, True)
        dots += spent
        _write(table, 0, pivot, chosen, M)
        for c in chosen:
            dots += _link(X, table, 0, c, pivot, M)
    return dots


@njit(cache=True)
def _connect(X, table, entry, M, beam, start, stop):
    dots = 0
    seen, expanded = np.zeros(len(X), np.int64), np.zeros(len(X), np.int64)
    for p in range(start, stop):
        _, ndist, nhops = _walk(table, X, X[p], entry, beam, False, seen, p + 1, expanded)
        met = np.sort(expanded[:nhops])
        met = met[met != p]
        chosen, spent = _prune(X, p, met, M, False)
        dots += ndist + spent
        for c in chosen:
            dots += _link(X, table, M, p, c, M) + _link(X, table, M, c, p, M)
    return dots


@njit(cache=True)
def _reachable(table, entry, N):
    mask, stack = np.zeros(N, np.bool_), np.empty(N, np.int64)
    mask[entry], stack[0], height = True, entry, 1
    while height:
        height -= 1
        c = stack[height]
        for place in range(table.shape[1]):
            v = table[c, place]
            if v != FREE and not mask[v]:
                mask[v], stack[height] = True, v
                height += 1
    return mask
