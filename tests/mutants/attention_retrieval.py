"""Planted bugs of RoarGraph, its compiled twin and RetrievalAttention."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

ROAR, FAST, METHOD = "tutor/ann/roargraph.py", "tutor/kernels/graph_search.py", "tutor/attention/methods/retrieval.py"
INDEX, TWIN, UNIT = "tests/ann/test_roargraph.py", "tests/kernels/test_graph_search.py", "tests/attention/test_retrieval.py"

MUTANTS = [
    Mutant("roargraph: free places are not filled", ROAR, "others, X, M, fill=True)", "others, X, M)",
           INDEX + " -k pencil"),
    Mutant("roargraph: the pivot is forgotten by those it names", ROAR,
           "            dots += _link(X, table, lists, c, pivot, M)\n", "            pass\n", INDEX + " -k pencil"),
    Mutant("roargraph: the worst answer is the pivot", ROAR,
           "pivot, others = int(answer[0]), answer[1:]", "pivot, others = int(answer[-1]), answer[:-1]", INDEX + " -k pencil"),
    Mutant("roargraph: a shared pivot forgets", ROAR,
           "np.append(others, lists[pivot]) if merge else others", "others", INDEX + " -k 'pencil or shared'"),
    Mutant("roargraph: a row links to itself", ROAR, "walk.expanded[walk.expanded != p]", "walk.expanded",
           INDEX + " -k 'pencil or clean'"),
    Mutant("roargraph: connecting edges point one way", ROAR, " + _link(X, table, lists, c, p, M)", "",
           INDEX + " -k 'pencil'"),
    Mutant("roargraph: an edge is written twice", ROAR, "    if b in table[a]:\n        return 0\n", "",
           INDEX + " -k 'pencil or clean'"),
    Mutant("roargraph: the entry is the row farthest from the mean", ROAR, ".sum(1).argmin())", ".sum(1).argmax())",
           INDEX + " -k pencil"),
    Mutant("graph search: ties go to the higher id", FAST,
           "if len(held) < L or (d, v) < (-held[0][0], -held[0][1]):", "if len(held) < L or d < -held[0][0]:", TWIN),
    Mutant("graph search: the entry is not counted", FAST, "ndist, nhops = 1, 0", "ndist, nhops = 0, 0", TWIN),
    Mutant("graph search: an equally near neighbour survives pruning", FAST,
           "_exact(X[ids[j]], X[ids[v]]) <= gap[v]", "_exact(X[ids[j]], X[ids[v]]) < gap[v]", TWIN),
    Mutant("graph search: a full list drops its newest edge unseen", FAST,
           "ids[:M], ids[M] = table[a, first:first + M], b", "ids[:M], ids[M] = table[a, first:first + M], table[a, first]",
           TWIN),
    Mutant("retrieval: the window misses a key that the index holds not yet", METHOD,
           "np.maximum(p - self.window - self.sinks + 1, 0)", "np.maximum(p - self.window - self.sinks, 0)",
           UNIT + " -k 'could_retrieve or pencil'"),
    Mutant("retrieval: a query learns from itself", METHOD, "pos, p // self.refresh * self.refresh)", "pos, p + 1)",
           UNIT + " -k itself"),
    Mutant("retrieval: queries learn about keys of their future", METHOD,
           ">= torch.from_numpy(room)[:, None]", ">= torch.from_numpy(room)[:, None] + 10 ** 6",
           UNIT + " -k names"),
    Mutant("retrieval: ids are not shifted by the sinks", METHOD, "row, self.sinks + found]", "row, found]",
           UNIT + " -k pencil"),
    Mutant("retrieval: the static part takes the retrieved keys, too", METHOD, "(mask & near, mask & ~near)",
           "(mask, mask & ~near)", UNIT + " -k 'merge_of_both or static'"),
    Mutant("retrieval: rows are asked as they come", METHOD, "torch.argsort(pos, stable=True).tolist()",
           "torch.argsort(-pos, stable=True).tolist()", UNIT + " -k 'pencil or turn'"),
    Mutant("retrieval: distances ignore the shape of the keys", METHOD,
           "sigma = torch.cov(fitted.T)", "sigma = torch.eye(fitted.shape[1], dtype=fitted.dtype)", UNIT + " -k scale"),
]
