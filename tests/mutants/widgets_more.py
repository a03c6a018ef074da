"""Planted bugs in the figures cache_shelf, token_tree and vector_map."""

from tests.mutants.mutant import Mutant

SHELF, TREE, MAP = (
    f"tests/widgets/test_{name}.py -m 'not browser'" for name in ("cache_shelf", "token_tree", "vector_map")
)

MUTANTS = [
    Mutant(
        "shelf-row-lives-one-step-too-long",
        "tutor/widgets/cache_shelf.js",
        "if (evictedAt[i] >= 0 && evictedAt[i] <= step) return",
        "if (evictedAt[i] >= 0 && evictedAt[i] < step) return",
        SHELF,
    ),
    Mutant(
        "shelf-speaks-of-rows-that-left",
        "tutor/widgets/cache_shelf.js",
        "if (appended[i] <= step && (end < 0 || end > step)) rows++;",
        "if (appended[i] <= step && (end < 0 || end >= step)) rows++;",
        SHELF,
    ),
    Mutant(
        "shelf-folds-what-one-head-holds",
        "tutor/widgets/cache_shelf.js",
        "if (i < arrived && heads[i] === 0) {",
        "if (i < arrived && heads[i] <= 1) {",
        SHELF,
    ),
    Mutant(
        "shelf-drops-events-unchecked",
        "tutor/widgets/cache_shelf.py",
        "if not np.array_equal(told, drawn):",
        "if told.sum() > 2 * drawn.sum():",
        SHELF,
    ),
    Mutant(
        "mask-forgets-the-node-itself",
        "tutor/widgets/token_tree.js",
        "for (let j = i; j >= 0; j = parent[j]) mask[i * n + j] = 1;",
        "for (let j = parent[i]; j >= 0; j = parent[j]) mask[i * n + j] = 1;",
        TREE,
    ),
    Mutant(
        "tree-puts-siblings-in-one-row",
        "tutor/widgets/token_tree.js",
        "row[child] = rank === 0 ? row[i] : rows++;",
        "row[child] = rank === 0 ? row[i] : rows;",
        TREE,
    ),
    Mutant(
        "walk-goes-on-below-a-rejected-node",
        "tutor/widgets/token_tree.js",
        "if (state[i] === 1) at = i;",
        "at = i;",
        TREE,
    ),
    Mutant(
        "tree-counts-no-token-of-the-target",
        "tutor/widgets/token_tree.js",
        "written: accepted + (a.next_token[step] >= 0)",
        "written: accepted",
        TREE,
    ),
    Mutant(
        "expanded-node-stays-a-candidate",
        "tutor/widgets/vector_map.js",
        "if (events.kind[i] === kind.expanded) waiting.delete(id);",
        "",
        MAP,
    ),
    Mutant(
        "beam-holds-one-too-many",
        "tutor/widgets/vector_map.js",
        "if (held.length > most) held.pop();",
        "if (held.length > most + 1) held.pop();",
        MAP,
    ),
    Mutant(
        "rings-show-squared-distance",
        "tutor/widgets/vector_map.js",
        '(metric === "l2" ? Math.sqrt(Math.max(0, d)) : d)',
        "d",
        MAP,
    ),
    Mutant(
        "centres-are-taken-for-points",
        "tutor/widgets/vector_map.js",
        "if (lists && !onBase(events, i)) continue;",
        "",
        MAP,
    ),
]
