"""The token tree: mask, layout and walk against Python, and the picture on a page with no kernel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.browser import overflow, served
from tests.widgets.harness import picture, ready, sentence, set_dial, write_page
from tests.widgets.look import barriers
from tests.widgets.node import Node
from tests.widgets.stories import tree_trace
from tutor.widgets import TokenTree
from tutor.widgets.base import INLINE_LIMIT
from tutor.widgets.token_tree import ancestor_mask, tree_layout


def widget(**rest) -> TokenTree:
    kinds = {
        "tree": tree_trace(),
        "chain": tree_trace(widths=(1,) * 5, seed=5),
        "wide": tree_trace(widths=(5, 4, 3, 2, 2), seed=6),
    }
    return TokenTree(
        variants=[({"drafter": name}, trace) for name, trace in kinds.items()],
        caption="One forward, many words.",
        **rest,
    )


parents = st.lists(st.integers(0, 10**6), max_size=24).map(
    lambda draws: [-1] + [d % (i + 1) for i, d in enumerate(draws)]
)


# --------------------------------------------------------------------------------------------------------- arithmetic
def test_a_tree_by_hand():
    # 0 - 1 - 2      row 0: 0 1 2; 3 is the second child of 1 and opens row 1; 4 the second child of 0, row 2
    #   |   ` 3
    #   ` 4
    parent = [-1, 0, 1, 1, 0]
    want = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert ancestor_mask(np.array(parent)).astype(int).tolist() == want
    depth, row = tree_layout(np.array(parent))
    assert depth.tolist() == [0, 1, 2, 2, 1] and row.tolist() == [0, 0, 0, 1, 2]
    mask, placed = Node(TokenTree).calls([("ancestorMask", parent), ("treeLayout", parent)])
    assert np.reshape(mask, (5, 5)).tolist() == want
    assert placed["depth"] == depth.tolist() and placed["row"] == row.tolist() and placed["order"] == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(parents)
def test_mask_and_layout_hold_for_any_tree(parent):
    mask, (depth, row) = ancestor_mask(np.array(parent)), tree_layout(np.array(parent))
    assert (mask.sum(1) == depth + 1).all() and not np.triu(mask, 1).any()
    assert len({*zip(depth.tolist(), row.tolist())}) == len(parent)  # no two nodes in one place
    for i, up in enumerate(parent):
        if up >= 0:
            assert depth[i] == depth[up] + 1 and row[i] >= row[up]
            assert (mask[i] == (mask[up] | (np.arange(len(parent)) == i))).all()


def test_mask_and_layout_in_javascript_equal_python():
    rng = np.random.default_rng(0)
    trees = [[-1] + [int(rng.integers(0, i + 1)) for i in range(n)] for n in (0, 1, 2, 5, 12, 40, 63)]
    node = Node(TokenTree)
    for parent, mask, placed in zip(
        trees, node.calls([("ancestorMask", p) for p in trees]), node.calls([("treeLayout", p) for p in trees])
    ):
        n, (depth, row) = len(parent), tree_layout(np.array(parent))
        assert np.reshape(mask, (n, n)).tolist() == ancestor_mask(np.array(parent)).astype(int).tolist()
        assert placed["depth"] == depth.tolist() and placed["row"] == row.tolist() and placed["rows"] == row.max() + 1


def test_the_mask_is_that_of_the_engine():
    torch = pytest.importorskip("torch")
    from tutor.speculative.tree import TokenTree as Tree

    rng = np.random.default_rng(1)
    parent = [-1] + [int(rng.integers(0, i + 1)) for i in range(20)]
    engine = Tree(torch.zeros(21, dtype=torch.long), torch.tensor(parent)).mask()
    assert (engine.bool().numpy() == ancestor_mask(np.array(parent))).all()


def test_the_walk_of_the_verifier():
    # children of 0: 1 ✕, 2 ✓; children of 2: 4 ✕, 5 ✓ (3 hangs on 1, never reached);
    # 6 stands after the accepted 5 and is not tested
    parent, state = [-1, 0, 0, 1, 2, 2, 2], [0, 2, 1, 3, 2, 1, 3]
    node = Node(TokenTree)
    assert node.call("walkOrder", parent, state) == [1, 2, 4, 5]
    assert node.call("walkOrder", [-1], [0]) == []
    assert node.call("defaultFocus", parent, state) == 5  # the last that won over a rejected one
    assert node.call("defaultFocus", [-1, 0, 1], [0, 1, 1]) == 2
    assert node.call("defaultFocus", [-1, 0, 0], [0, 2, 2]) == 1
    assert node.call("defaultFocus", [-1], [0]) == 0


@pytest.mark.parametrize("widths", [(3, 2, 2, 1), (1,) * 5, (5, 4, 3, 2, 2)], ids=str)
def test_counts_and_text_equal_the_arrays(widths):
    trace = tree_trace(widths=widths)
    a, node = trace.arrays, Node(TokenTree)
    counts, text = node.call("tally", trace), node.call("written", trace, trace.steps - 1)
    for step, count in enumerate(counts):
        state = a["state"][a["node_start"][step] : a["node_start"][step + 1]]
        assert count == {
            "drafted": len(state) - 1,
            "accepted": int((state == 1).sum()),
            "written": int((state == 1).sum()) + 1,
        }
    assert "".join(trace.subject["pieces"][str(one["token"])] for one in text) == trace.subject["output"]
    assert sum(one["own"] for one in text) == trace.steps
    assert node.call("perForward", trace, trace.steps - 1) == pytest.approx(
        (int((a["state"] == 1).sum()) + trace.steps) / trace.steps
    )


def test_every_node_was_walked_or_not():
    trace = tree_trace(widths=(5, 4, 3, 2, 2), seed=6)
    node = Node(TokenTree)
    every = node.calls([("nodesOf", trace, step) for step in range(trace.steps)])
    for nodes, walked in zip(every, node.calls([("walkOrder", n["parent"], n["state"]) for n in every])):
        assert sorted(walked) == [i for i, s in enumerate(nodes["state"]) if s in (1, 2)]


def test_a_node_in_words():
    trace = tree_trace(sampled=False)
    node = Node(TokenTree)
    assert node.call("nodeWords", trace, 0, 0).endswith("the pending token, root of the tree.")
    assert "proposed without a probability" in node.call("nodeWords", trace, 0, 1)
    sampled = tree_trace()
    i = int(np.flatnonzero(sampled.arrays["state"][: sampled.arrays["node_start"][1]] == 2)[0])
    said = node.call("nodeWords", sampled, 0, i)
    assert f"draft {100 * sampled.arrays['q'][i]:.0f} %" in said and said.endswith("tested and rejected.")


# -------------------------------------------------------------------------------------------------------------- Python
def test_it_opens_where_most_was_accepted():
    one = widget()
    a = one.trace.arrays
    accepted = [
        int((a["state"][a["node_start"][s] : a["node_start"][s + 1]] == 1).sum()) for s in range(one.trace.steps)
    ]
    assert accepted[one.step] == max(accepted)
    assert one.nbytes < 0.2 * INLINE_LIMIT and one.sentences == [one.trace.describe(s) for s in range(one.trace.steps)]


def test_a_step_that_ends_without_a_token_of_the_target():
    trace = tree_trace()
    trace.arrays["next_token"][-1] = -1
    counts = Node(TokenTree).call("tally", trace)
    assert counts[-1]["written"] == counts[-1]["accepted"]
    assert "<svg" in TokenTree(trace).still(trace.steps - 1)


def test_the_still_names_every_word():
    one = widget()
    drawn = one.still()
    first, last = one.trace.arrays["node_start"][one.step : one.step + 2]
    assert drawn.count("✓") == int((one.trace.arrays["state"][first:last] == 1).sum())
    for token in one.trace.arrays["token"][first:last]:
        assert one.trace.subject["pieces"][str(token)].strip() in drawn
    assert drawn != one.still(0)


# ------------------------------------------------------------------------------------------------------------- browser
@pytest.mark.browser
@pytest.mark.parametrize("width, dark", [(1280, False), (360, True)])
def test_on_a_page_without_a_kernel(tmp_path, open_page, width, dark):
    one = widget()
    write_page(tmp_path, one, theme="dark" if dark else "light")
    with served(tmp_path) as address:
        page = open_page(address, width=width, dark=dark)
        ready(page)
        assert overflow(page) == []
        assert sentence(page) == one.describe()
        n = int(np.diff(one.trace.arrays["node_start"])[one.step])
        assert page.locator(".tw-stage .tw-tt-node").count() == n + 1  # and the target's own token
        assert bool(page.locator(".tw-tt-outline").count()) == (width == 360)
        first = picture(page)
        set_dial(page, "mask", False)
        assert page.locator(".tw-tt-maskbox").is_hidden() and picture(page) != first
        set_dial(page, "drafter", "wide")
        assert overflow(page) == []
        wide = one.variants[2]["sentences"]
        assert sentence(page) == wide[one.step] and picture(page) != first


@pytest.mark.browser
def test_by_keyboard_and_pointer(tmp_path, open_page):
    one = TokenTree(tree_trace())
    write_page(tmp_path, one)
    with served(tmp_path) as address:
        page = open_page(address)
        ready(page)
        focus = lambda: page.locator(".tw-stage .tw-tt-focus").get_attribute("data-node")
        page.locator(".tw-stage").focus()
        page.keyboard.press("Home")
        assert sentence(page) == one.describe(0)
        before = focus()
        page.keyboard.press("ArrowDown")
        page.wait_for_function(f"document.querySelector('.tw-stage .tw-tt-focus').dataset.node != '{before}'")
        assert page.locator(".tw-tt-here").count() == 1
        page.locator('.tw-stage .tw-tt-node[data-node="0"]').click()
        page.wait_for_function("document.querySelector('.tw-stage .tw-tt-focus').dataset.node == '0'")
        page.locator('.tw-tt-column[data-step="5"]').click()
        assert sentence(page) == one.describe(5)


@pytest.mark.browser
@pytest.mark.parametrize("reduced", [False, True])
def test_the_walk_is_shown_unless_motion_is_reduced(tmp_path, open_page, reduced):
    write_page(tmp_path, TokenTree(tree_trace()))
    with served(tmp_path) as address:
        page = open_page(address, reduced=reduced)
        ready(page)
        assert page.locator(".tw-tt-walk").count() == 0  # the first picture is finished at once
        page.locator(".tw-stage").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(60)
        assert (page.locator(".tw-tt-walk").count() > 0) == (not reduced)


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_stands_in_a_readers_way(tmp_path, open_page, dark):
    assert barriers(tmp_path, open_page, widget(), dark) == []
