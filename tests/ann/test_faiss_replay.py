"""Walking faiss's own HNSW graph gives faiss's answers and faiss's distance count plus one."""

import faiss
import numpy as np
import pytest

from tests.ann.world import clustered, gaussian
from tutor.ann.faiss_replay import FaissHNSW, from_faiss

COVERS = ("ann.faiss_replay", "ann.hnsw")
EFS = (16, 32, 64, 128)


def answers(peer, Q, k, ef):
    """faiss's ids `(nq, k)` and its own count of distances for each query, one query at a time."""
    peer.hnsw.efSearch = ef
    ids, counts = [], []
    for q in Q:
        faiss.cvar.hnsw_stats.reset()
        ids.append(peer.search(q[None], k)[1][0])
        counts.append((faiss.cvar.hnsw_stats.ndis, faiss.cvar.hnsw_stats.nhops))
    return np.asarray(ids), counts


def assert_replayed(index, Q, k=10):
    for ef in EFS:
        ids, counts = answers(index.peer, Q, k, ef)
        for q, expected, (ndis, nhops) in zip(Q, ids, counts):
            found = index.search(q, k, ef=ef)
            assert found.ids[0].tolist() == expected.tolist()
            assert (found.cost["ndist"], found.cost["nhops"]) == (ndis + 1, nhops)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_ids_and_counts_equal_those_of_faiss(metric):
    """100 queries x 4 beams on 2 000 rows: every id, every distance, every hop."""
    X, Q = gaussian(N=2000, d=24, nq=100)
    index = FaissHNSW().build(X, metric)
    if metric == "cosine":
        Q = Q / np.linalg.norm(Q, axis=1, keepdims=True)
    assert_replayed(index, Q)


def test_clustered_rows_are_replayed_too():
    X, _ = clustered(N=1500, clusters=30)
    rng = np.random.default_rng(2)
    Q = X[rng.integers(1500, size=50)] + rng.normal(0, 0.1, (50, 32)).astype(np.float32)
    assert_replayed(FaissHNSW(M=8).build(X), Q)


@pytest.mark.slow
def test_eight_thousand_rows():
    X, Q = gaussian(N=8000, d=64, nq=100)
    assert_replayed(FaissHNSW().build(X), Q)


def test_an_index_built_elsewhere_and_read_from_a_file(tmp_path):
    X, Q = gaussian(N=500)
    peer = faiss.IndexHNSWFlat(12, 6)
    peer.hnsw.efConstruction = 50
    peer.add(X)
    faiss.write_index(peer, str(tmp_path / "index.faiss"))
    read = faiss.read_index(str(tmp_path / "index.faiss"))
    index = from_faiss(read)
    assert (index.M, index.ef_construction, index.repaired) == (6, 50, 0)
    ids, _ = answers(read, Q, 5, 20)
    np.testing.assert_array_equal(index.search(Q, 5, ef=20).ids, ids)


def test_what_cannot_be_replayed_is_refused():
    with pytest.raises(ValueError, match="must be a faiss.IndexHNSWFlat; got IndexFlatL2"):
        from_faiss(faiss.IndexFlatL2(4))
    with pytest.raises(ValueError, match="index is empty; add vectors"):
        from_faiss(faiss.IndexHNSWFlat(4, 8))
    odd = faiss.IndexHNSWFlat(4, 8, faiss.METRIC_L1)
    odd.add(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="L2 and inner product can be replayed"):
        from_faiss(odd)
