"""Small made-up traces for the tests of the figures: real words, seeded numbers, every array that a schema names."""

from __future__ import annotations

import heapq
import re

import numpy as np

from tutor.timeline import KINDS, Timeline
from tutor.trace import Recorder, Trace

TEXT = """The lighthouse keeper wrote one line a day. On the first of March he wrote that the lamp was clean and the \
sea was quiet. On the second he wrote that a ship had passed, far out, and had not answered his signal. The \
harbour below him slept under snow. He had a cat, a stove, and a shelf of books that he knew by heart, so he \
read the water instead. When the storm came in April the ship came with it, and this time it answered: three \
long flashes, then three short. He counted them twice. He climbed down to the harbour with a rope and a \
lantern, and the cat watched from the window. Nobody in the village believed that a ship could live in that \
sea. In the morning there were eleven men asleep around his stove, and the line for that day said only that \
the lamp was clean."""


def words(text: str = TEXT) -> list[str]:
    """Tokens that join to the text: words and marks, each with the space before it."""
    return re.findall(r"\s?\w+|\s?[^\w\s]|\s", text)


# ------------------------------------------------------------------------------------------------------ kvcache.evict/1
POLICIES = ("window", "sinks_window", "h2o", "random")


def shelf_trace(
    policy: str = "sinks_window",
    budget: int = 40,
    layers: tuple[int, ...] = (4, 17),
    heads: int = 3,
    prefill: int = 8,
    seed: int = 0,
) -> Trace:
    """A cache of `budget` rows per head that reads TEXT: first `prefill` tokens at once, then one token a step."""
    tokens = words()
    S = len(tokens)
    rng = np.random.default_rng(seed)
    weight = np.exp(rng.normal(0, 1.2, (len(layers), heads, S)))
    weight[..., 0] = 1e4
    record = Recorder(
        "kvcache.evict/1",
        method=policy,
        params={"budget": budget},
        subject={"tokens": tokens, "budget": budget, "policy": policy},
    )
    appended_at = np.maximum(np.arange(S) - prefill + 1, 0)
    steps = S - prefill + 1
    evicted_at = np.full((len(layers), heads, S), -1)
    nbytes = np.zeros(steps, np.int64)
    for step in range(steps):
        new = np.flatnonzero(appended_at == step)
        for i, layer in enumerate(layers):
            for h in range(heads):
                for pos in new:
                    record.event("appended", layer=layer, head=h, pos=int(pos), score=float("nan"))
                held = np.flatnonzero((appended_at <= step) & (evicted_at[i, h] < 0))
                score = {
                    "window": held.astype(float),
                    "sinks_window": np.where(held < 4, np.inf, held),
                    "h2o": np.where(held > held[-1] - budget // 3, np.inf, weight[i, h, held]),
                    "random": np.where(held == held[-1], np.inf, rng.random(len(held))),
                }[policy]
                for pos in held[np.argsort(score, kind="stable")[: max(len(held) - budget, 0)]]:
                    evicted_at[i, h, pos] = step
                    record.event("evicted", layer=layer, head=h, pos=int(pos), score=float(score[held == pos][0]))
        rows = ((appended_at <= step) & (evicted_at < 0)).sum()
        nbytes[step] = rows * 2 * 64 * 2 * 15
        record.next_step()
    nll = (
        3.2
        - 1.6 * np.minimum(np.arange(steps) / 60, 1)
        + rng.gamma(2, 0.5, steps)
        + (policy == "window") * np.linspace(0, 2, steps)
    )
    return record.finish(
        layers=np.asarray(layers, np.int32),
        appended_at=appended_at.astype(np.int32),
        evicted_at=evicted_at.astype(np.int32),
        nbytes=nbytes,
        nll=nll.astype(np.float32),
    )


# ---------------------------------------------------------------------------------------------------- speculative.run/1
def tree_trace(steps: int = 9, widths: tuple[int, ...] = (3, 2, 2, 1), seed: int = 3, sampled: bool = True) -> Trace:
    """Draft trees over TEXT: at each level the true next word is usually among the children."""
    rng = np.random.default_rng(seed)
    tokens = words()
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(tokens))}
    pieces = {str(i): piece for piece, i in ids.items()}
    vocabulary = list(ids)
    start, token, parent, q, p, state, follow = [0], [], [], [], [], [], []
    at = 12  # the root of step 0: the last token of the prompt
    record = Recorder(
        "speculative.run/1",
        method="recursive",
        params={"widths": list(widths)},
        subject={
            "pieces": pieces,
            "prompt": "".join(tokens[: at + 1]),
            "drafter": "small model, tree",
            "verifier": "recursive",
            "output": "",
        },
    )
    for _ in range(steps):
        base, rows = len(token), [(ids[tokens[at]], -1, np.nan, np.nan, 0)]
        level, true_path, accepted = [0], [0], 0
        for depth, width in enumerate(widths, start=1):
            following = []
            for node in level:
                on_path = node == true_path[-1] and len(true_path) == depth
                choices = [vocabulary[i] for i in rng.permutation(len(vocabulary))[:width]]
                if on_path and rng.random() < 0.72 and at + depth < len(tokens):
                    choices[int(rng.integers(min(2, width)))] = tokens[at + depth]
                mass = np.sort(rng.dirichlet(np.full(width + 2, 0.7)))[::-1]
                alive = on_path and accepted == depth - 1
                for rank, word in enumerate(dict.fromkeys(choices)):
                    right = on_path and word == tokens[at + depth]
                    reached = alive and accepted == depth - 1
                    rows.append(
                        (
                            ids[word],
                            node,
                            mass[rank],
                            0.35 + 0.6 * rng.random() if right else 0.25 * rng.random() ** 2,
                            (1 if right else 2) if reached else 3,
                        )
                    )
                    following.append(len(rows) - 1)
                    if right and reached:
                        accepted = depth
                        true_path.append(len(rows) - 1)
            level = [n for n in following if n == true_path[-1] or rng.random() < 0.45][:5]
        for row in rows:
            for column, value in zip((token, parent, q, p, state), row):
                column.append(value)
        assert len(token) - base == len(rows)
        start.append(len(token))
        at += accepted + 1
        follow.append(ids[tokens[at]])
        record.event("emitted", n=accepted + 1)
        record.next_step()
    record.subject["output"] = "".join(tokens[12 + 1 : at + 1])
    q = np.asarray(q, np.float32) if sampled else np.full(len(q), np.nan, np.float32)
    return record.finish(
        node_start=np.asarray(start, np.int32),
        token=np.asarray(token, np.int32),
        parent=np.asarray(parent, np.int32),
        q=q,
        p=np.asarray(p, np.float32),
        state=np.asarray(state, np.int8),
        next_token=np.asarray(follow, np.int32),
    )


# --------------------------------------------------------------------------------------------------------- ann.search/1
TOPICS = {
    "lists": "append extend insert sort reverse copy",
    "paths": "join split exists resolve glob rename",
    "numbers": "round floor gcd sqrt hypot comb",
    "threads": "lock wait notify start join acquire",
    "text": "strip encode format title casefold splitlines",
    "time": "sleep monotonic strftime replace weekday utcnow",
    "files": "open read seek truncate flush close",
    "sets": "union add discard difference update pop",
}


def points(n: int = 480, d: int = 12, seed: int = 1) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Clustered rows with names, and a query near one of the clusters."""
    rng = np.random.default_rng(seed)
    topics = list(TOPICS)
    centres = rng.normal(0, 1.0, (len(topics), d))
    of = np.arange(n) % len(topics)
    X = (centres[of] + rng.normal(0, 0.62, (n, d))).astype(np.float32)
    labels = [f"{topics[t]}.{rng.choice(TOPICS[topics[t]].split())} {i}" for i, t in enumerate(of)]
    return X, labels, (centres[2] + rng.normal(0, 0.5, d)).astype(np.float32)


def _frame(X: np.ndarray, q: np.ndarray, k: int) -> dict[str, np.ndarray]:
    mean = X.mean(0)
    axes = np.linalg.svd(X - mean, full_matrices=False)[2][:2]
    dist = ((X - q) ** 2).sum(1)
    return {
        "xy": ((X - mean) @ axes.T).astype(np.float32),
        "query_xy": ((q - mean) @ axes.T).astype(np.float32),
        "truth": np.argsort(dist, kind="stable")[:k].astype(np.int32),
        "true_dist": dist.astype(np.float32),
    }


def search_trace(ef: int = 12, k: int = 8, seed: int = 1) -> tuple[Trace, list[dict]]:
    """A beam search written here with plain heaps, and what the two heaps held after each step: the yardstick."""
    X, labels, q = points(seed=seed)
    arrays = _frame(X, q, k)
    dist, truth = arrays["true_dist"].astype(np.float64), set(arrays["truth"].tolist())
    rng = np.random.default_rng(seed)
    gaps = ((X[:, None] - X[None]) ** 2).sum(-1)
    near = np.argsort(gaps, axis=1)[:, 1:7]
    adj = [sorted({*near[i].tolist(), *rng.integers(0, len(X), 2).tolist()} - {i}) for i in range(len(X))]
    record = Recorder(
        "ann.search/1",
        method="hnsw",
        params={"ef": ef, "k": k},
        subject={"labels": labels, "k": k, "metric": "l2", "ef": ef},
    )
    C, W, seen, snapshots = [], [], set(), []

    def offer(v: int, src: int) -> None:
        d = float(dist[v])
        accepted = len(W) < ef or (d, v) < (-W[0][0], -W[0][1])
        if accepted:
            heapq.heappush(C, (d, v))
            heapq.heappush(W, (-d, -v))
            if len(W) > ef:
                heapq.heappop(W)
        seen.add(v)
        record.event(
            "evaluated",
            level=0,
            src=src,
            dst=v,
            dist=d,
            accepted=accepted,
            frontier_size=len(C),
            best_k_worst=-W[0][0] if len(W) == ef else float("nan"),
            n_correct=len(truth & {-w for _, w in W}),
        )

    def snapshot(candidates: list) -> None:
        snapshots.append(
            {
                "C": [v for _, v in sorted(candidates)],
                "W": [-v for _, v in sorted(W, reverse=True)],
                "evaluated": len(seen),
            }
        )

    offer(int(np.argmax(gaps[int(arrays["truth"][0])])), -1)
    while C:
        snapshot(C)
        record.next_step()
        d, c = heapq.heappop(C)
        if len(W) == ef and (d, c) > (-W[0][0], -W[0][1]):
            record.event("stopped", level=0, dst=c, dist=d, frontier_size=len(C) + 1, best_k_worst=-W[0][0])
            C.append((d, c))
            break
        record.event("expanded", level=0, dst=c, dist=d, frontier_size=len(C))
        for v in adj[c]:
            if v in seen:
                record.event("skipped", level=0, src=c, dst=v)
            else:
                offer(v, c)
    snapshot(C)
    found = [-v for _, v in sorted(W, reverse=True)][:k]
    edges = np.asarray([(i, j) for i in range(len(X)) for j in adj[i]], np.int32)
    return record.finish(result=np.asarray(found, np.int32), edges=edges, **arrays), snapshots


def lists_trace(nprobe: int = 3, k: int = 8, cells: int = 12, seed: int = 1) -> tuple[Trace, list[dict]]:
    """An inverted file: every centroid is measured, then the nearest `nprobe` lists are read whole."""
    X, labels, q = points(seed=seed)
    arrays = _frame(X, q, k)
    dist, truth = arrays["true_dist"].astype(np.float64), set(arrays["truth"].tolist())
    rng = np.random.default_rng(seed)
    centres = X[rng.choice(len(X), cells, replace=False)].astype(np.float64)
    for _ in range(8):
        cell = ((X[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        centres = np.stack([X[cell == c].mean(0) if (cell == c).any() else centres[c] for c in range(cells)])
    mean = X.mean(0)
    axes = np.linalg.svd(X - mean, full_matrices=False)[2][:2]
    order = np.argsort(((centres - q) ** 2).sum(1), kind="stable")[:nprobe]
    record = Recorder(
        "ann.search/1",
        method="ivf_flat",
        params={"nprobe": nprobe, "k": k},
        subject={"labels": labels, "k": k, "metric": "l2", "nprobe": nprobe},
    )
    W, snapshots, evaluated = [], [], 0
    for c in order.tolist():
        record.event("opened_list", level=0, dst=c, dist=float(((centres[c] - q) ** 2).sum()))
        for v in np.flatnonzero(cell == c).tolist():
            accepted = len(W) < k or (dist[v], v) < W[-1]
            if accepted:
                W = sorted([*W, (float(dist[v]), v)])[:k]
            evaluated += 1
            record.event(
                "evaluated",
                level=0,
                src=c,
                dst=v,
                dist=float(dist[v]),
                accepted=accepted,
                n_correct=len(truth & {w for _, w in W}),
            )
        snapshots.append({"C": [], "W": [v for _, v in W], "evaluated": evaluated})
        record.next_step()
    result = np.full(k, -1, np.int32)
    result[: len(W)] = [v for _, v in W]
    return record.finish(
        result=result, cell=cell.astype(np.int32), centroid_xy=((centres - mean) @ axes.T).astype(np.float32), **arrays
    ), snapshots


# ------------------------------------------------------------------------------------------------------------ timeline/1
def memory_trace(rows: int = 4, columns: int = 4, words: int = 32, capacity: int = 144) -> Trace:
    """A blocked product in a fast memory: for each row block Q and O come, for each column block K and V pass through."""
    line = Timeline("flash", ["Q", "K", "V", "S", "O"], unit="moves", lane_word="buffer", capacity=capacity, group_word="tile")
    level = moved = 0

    def go(event: str, lane: str, label: str = "", i: int = -1) -> None:
        nonlocal level, moved
        level += {"loaded": words, "made": words // 2, "freed": -(words // 2 if lane == "S" else words), "stored": 0}[event]
        moved += words * (event in ("loaded", "stored"))
        told = 0 if event == "freed" else words // 2 if event == "made" else words
        line.move(event, lane, told, level=level, moved=moved, label=label, group=i)

    for i in range(rows):
        go("loaded", "Q", f"Q{i}", i)
        go("loaded", "O", f"O{i}", i)
        for j in range(columns):
            go("loaded", "K", f"K{j}", rows + j)
            go("made", "S", f"S{i}{j}", i)
            go("freed", "K")
            go("loaded", "V", f"V{j}", rows + j)
            go("freed", "S")
            go("freed", "V")
        go("stored", "O")
        go("freed", "O")
        go("freed", "Q")
    return line.finish()


def busy_trace(intervals: int = 16_384, lanes: int = 132, seed: int = 0) -> Trace:
    """Many short intervals of every kind on many lanes, each lane nearly always busy."""
    rng = np.random.default_rng(seed)
    line = Timeline("lean", [f"worker {w}" for w in range(lanes)], unit="tiles")
    times = np.zeros(lanes)
    for i in range(intervals):
        lane, long = i % lanes, float(rng.integers(1, 5))
        line.interval(lane, times[lane], times[lane] + long, KINDS[int(rng.integers(0, 4))], group=int(times[lane] // 20))
        times[lane] += long + float(rng.random() < 0.1)
    return line.finish()
