"""The atlas of heads: pooled maps, packed masks and the shares beside them."""

import numpy as np
import pytest
import torch

from tutor.attention.dense import probs
from tutor.attention.heads import head_atlas
from tutor.attention.methods.streaming import Streaming
from tutor.widgets.head_browser import head_cells, kept_cells

T, CELLS = 24, 12


@pytest.fixture(scope="module")
def text():
    """Two layers of 4 query heads on 2 KV heads."""
    g = torch.Generator().manual_seed(3)
    q = {layer: torch.randn(1, 4, T, 8, generator=g) for layer in (5, 9)}
    k = {layer: torch.randn(1, 2, T, 8, generator=g) for layer in (5, 9)}
    return q, k, [f" w{i}" for i in range(T)]


def test_an_atlas_by_hand():
    # One head, equal logits, 4 tokens in 2 cells: rows 1; 1/2 1/2; 1/3 x3; 1/4 x4. Mean over the 4 pairs of a cell:
    # top left (1 + 1/2 + 1/2) / 4 = 1/2; bottom left (2/3 + 2/4) / 4 = 7/24; bottom right (1/3 + 2/4) / 4 = 5/24.
    zero = {0: torch.zeros(1, 1, 4, 2)}
    atlas = head_atlas(zero, zero, list("abcd"), cells=2)
    assert atlas.arrays["maps"].tolist() == [[255, 255, round(255 * (5 / 7) ** 0.5)]]
    np.testing.assert_allclose(head_cells(atlas, 0), [[1, 0], [7 / 12, 5 / 12]], atol=0.003)


def test_every_head_of_every_layer_has_its_own_map(text):
    q, k, tokens = text
    atlas = head_atlas(q, k, tokens, cells=CELLS)
    assert atlas.steps == 8 and atlas.arrays["maps"].shape == (8, 78)
    for step in range(8):
        layer, head = (5, 9)[step // 4], step % 4
        a = probs(q[layer], k[layer])[0, head].reshape(CELLS, 2, CELLS, 2).sum(3).mean(1)
        np.testing.assert_allclose(head_cells(atlas, step), a, atol=0.01)


def test_what_a_method_reads_is_marked_and_summed(text):
    q, k, tokens = text
    chosen = {layer: Streaming(sinks=1, window=3).select(q[layer], k[layer])[0] for layer in q}
    atlas = head_atlas(q, k, tokens, cells=CELLS, selections={"streaming": chosen})
    mask = chosen[9].mask()[0, 2]
    assert (kept_cells(atlas, 0, 6) == mask.reshape(CELLS, 2, CELLS, 2).any(3).any(1).numpy()).all()
    a = probs(q[9], k[9])[0, 2]
    assert atlas.arrays["mass"][0, 6] == pytest.approx(float((a * mask).sum(-1).mean()), abs=1e-5)
    assert atlas.arrays["load"][0, 6] == pytest.approx(int(mask.sum()) / (T * (T + 1) / 2))
    assert "streaming keeps" in atlas.describe(6) and atlas.describe(6).startswith("Layer 9, head 2")


def test_measures_are_named_in_the_sentence(text):
    q, k, tokens = text
    atlas = head_atlas(q, k, tokens, cells=CELLS, measures={"on the first key": torch.linspace(0, 1, 8).reshape(2, 4)})
    assert atlas.describe(7) == "Layer 9, head 3: on the first key 100 %."


@pytest.mark.parametrize("change, words", [
    (dict(cells=7), "multiple of cells"),
    (dict(selections={"m": {}}), "every layer"),
    (dict(measures={"m": torch.full((2, 4), 3.0)}), "share in"),
    (dict(measures={"m": torch.full((1, 4), 0.5)}), "share in"),
], ids=["cells", "layer", "range", "shape"])
def test_bad_input_is_named(text, change, words):
    q, k, tokens = text
    with pytest.raises(ValueError, match=words):
        head_atlas(q, k, tokens, **{"cells": CELLS, **change})


def test_queries_of_another_text_are_refused(text):
    q, k, tokens = text
    with pytest.raises(ValueError, match="one text"):
        head_atlas({layer: x[:, :, -3:] for layer, x in q.items()}, k, tokens, cells=CELLS)
