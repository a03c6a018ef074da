"""Planted bugs in the atlas of heads and its browser."""

from tests.mutants.mutant import Mutant

PY, JS = "tutor/attention/heads.py", "tutor/widgets/head_browser.js"
ATLAS, FIGURE = "tests/attention/test_heads.py", "tests/widgets/test_head_browser.py -k 'hand or javascript'"

MUTANTS = [
    Mutant("heads: a cell is the sum of its pairs, dimmed by the whole map", PY, "cell.amax(-1, keepdim=True)",
           "cell.amax((-1, -2), keepdim=True)", ATLAS),
    Mutant("heads: a cell counts as read only if all of its pairs are", PY,
           "pool(kept).any(4).any(2)", "pool(kept).all(4).all(2)", ATLAS),
    Mutant("heads: queries and keys change places", PY, "pool(a).mean((2, 4))", "pool(a).mean((2, 4)).mT", ATLAS),
    Mutant("heads: layers share the first layer's place", PY, "slice(i * heads, (i + 1) * heads)", "slice(0, heads)", ATLAS),
    Mutant("head browser: bits are read from the low end", JS, ">> (7 - (bit & 7))", ">> (bit & 7)", FIGURE),
    Mutant("head browser: tiles are counted over the whole square", JS,
           "all: (across * (across + 1)) / 2", "all: across * across", FIGURE),
    Mutant("head browser: pooling averages over keys", JS, "+= cells[i * n + j] / c;", "+= cells[i * n + j] / (c * c);", FIGURE),
]
