"""Claims measured on the graph of a production library."""

from __future__ import annotations

import numpy as np

from tutor.ann import bench, corpus
from tutor.ann.faiss_replay import FaissHNSW
from tutor.claim import Claim, Expected, Measured, Number
from tutor.claims.ann_ivf import HEADS

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def _replay() -> Measured:
    import faiss

    same, more = [], []
    for c in (corpus.docstrings(), corpus.attention(centre=True)):
        index = FaissHNSW().build(c.X, c.metric)
        Q = c.Q[:100]
        for ef in (16, 32, 64, 128):
            index.peer.hnsw.efSearch = ef
            for q in Q / np.linalg.norm(Q, axis=1, keepdims=True) if c.metric == "cosine" else Q:
                faiss.cvar.hnsw_stats.reset()
                theirs = index.peer.search(q[None], 10)[1][0]
                ours = index.search(q, 10, ef=ef)
                same.append(set(theirs.tolist()) == set(ours.ids[0].tolist()))
                more.append(ours.cost["ndist"] - faiss.cvar.hnsw_stats.ndis)
    share = float(np.mean(same))
    return Measured("holds" if share == 1 and set(more) == {1} else "not_here",
                    {"same_ids": share, "least_more": float(min(more)), "most_more": float(max(more))},
                    f"Of {len(same)} searches on faiss's graph {share:.2%} return the same ids as faiss, with "
                    f"{min(more)} to {max(more)} distances more than faiss counts (the entry point).")


def _centred() -> Measured:
    raw, centred = [], []
    for layer, head in HEADS:
        for shares, centre in ((raw, False), (centred, True)):
            c = corpus.attention(layer, head, nq=50, centre=centre)
            index = FaissHNSW(M=16, ef_construction=100).build(c.X, c.metric)
            run = bench.sweep(index, c.Q, 10, bench.truth(c.X, c.Q, 10, c.metric), bench.beams(10, 320), stop=0.9)
            shares.append(run.share_at(0.9))
    failed, reached = int(np.isinf(raw).sum()), int(np.isfinite(centred).sum())
    most = float(max(s for s in centred if np.isfinite(s)))
    return Measured("in_part" if failed >= 3 and reached == len(HEADS) else "holds" if failed >= 3 else "not_here",
                    {"raw_heads_never": float(failed), "centred_heads_reached": float(reached), "centred_most": most},
                    f"By inner product on keys as they are, a beam of 320 misses recall@10 of 0.9 in {failed} of "
                    f"{len(HEADS)} heads; with the mean key subtracted, which changes no attention, {reached} reach "
                    f"it, at {most:.0%} of the distances or less.")


def _expect(verdict: str, **numbers: Number) -> Expected:
    return Expected(verdict, numbers, DATE, machine=MACHINE)


CLAIMS = (
    Claim("faiss_replay.same-ids-and-counts", "ann", "faiss_replay",
          "The search is the published one: greedy on the upper floors, a beam of efSearch on the lowest.",
          "Malkov and Yashunin 2020, algorithms 2 and 5, as built in faiss", _replay,
          _expect("holds", same_ids=Number(1, 1), least_more=Number(1, 1, "distances"),
                  most_more=Number(1, 1, "distances")),
          "Equal distances may be ordered otherwise: sets differ if a tie falls on the border of the beam.", "capture"),
    Claim("faiss_replay.off-the-shelf-graphs-fail-on-keys", "ann", "faiss_replay",
          "Off-the-shelf graph indexes on attention keys fail, because queries come from elsewhere.",
          "RetrievalAttention, section on out-of-distribution queries (number unverified)", _centred,
          _expect("in_part", raw_heads_never=Number(4, 6, "of 6 heads"),
                  centred_heads_reached=Number(6, 6, "of 6 heads"), centred_most=Number(0.15, 0.3, "of the distances")),
          "Much of the failure is the common offset of all keys, which blinds inner product and which softmax ignores; "
          "what remains after centring is the distance between queries and keys.", "capture"),
)
