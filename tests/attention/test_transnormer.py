"""The small TransNormer: its norm, its layer, and a text in pieces."""

import pytest
import torch

from tutor.attention.methods.lightning import naive, slopes
from tutor.attention.methods.transnormer import TransNormer, TransNormerLayer, srms_norm

COVERS = ("attention.transnormer",)


def test_the_norm_by_hand():
    # |(3, 4)| = 5, over sqrt(2): the row is divided by 5 / sqrt 2
    torch.testing.assert_close(srms_norm(torch.tensor([[3.0, 4.0], [0, 0]])), torch.tensor([[3.0, 4.0], [0, 0]]) * 2**0.5 / 5)


def test_a_layer_written_out():
    torch.manual_seed(0)
    layer = TransNormerLayer(8, 2, layer=1, layers=3, block=4).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    normed = x / (x.norm(dim=-1, keepdim=True) / 8**0.5)
    q, k, v = (torch.nn.functional.silu(part).reshape(2, 7, 2, 4).transpose(1, 2) for part in layer.qkv(normed).split(8, -1))
    mixed = naive(q, k, v, slopes(2, 1, 3).float()).o.transpose(1, 2).reshape(2, 7, 8)
    y = x + layer.out(torch.sigmoid(layer.gate(normed)) * mixed / (mixed.norm(dim=-1, keepdim=True) / 8**0.5))
    normed = y / (y.norm(dim=-1, keepdim=True) / 8**0.5)
    torch.testing.assert_close(layer(x)[0], y + layer.down(layer.up(normed) * layer.side(normed)), rtol=0, atol=1e-10)


def test_pieces_with_states_are_the_whole_text():
    model = TransNormer(11, width=16, heads=2, layers=3).double()
    ids = torch.randint(11, (2, 90), generator=torch.Generator().manual_seed(1))
    whole, _ = model(ids)
    first, states = model(ids[:, :70])
    rest = []
    for t in range(70, 90):
        logits, states = model(ids[:, t:t + 1], states)
        rest.append(logits)
    torch.testing.assert_close(torch.cat([first, *rest], 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mix", ["lightning", "softmax"])
def test_the_future_does_not_matter_and_the_past_does(mix):
    model = TransNormer(5, width=16, heads=2, mix=mix)
    ids = torch.zeros(1, 20, dtype=torch.long)
    changed = ids.clone()
    changed[0, 10] = 3
    a, b = model(ids)[0], model(changed)[0]
    torch.testing.assert_close(a[:, :10], b[:, :10], rtol=0, atol=1e-5)
    assert (a[:, 11:] - b[:, 11:]).abs().max() > 1e-4


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two = TransNormer(7, seed=3), TransNormer(7, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="multiple of heads"):
        TransNormerLayer(10, 4)
    with pytest.raises(ValueError, match="lightning or softmax"):
        TransNormerLayer(8, 2, mix="linear")
    with pytest.raises(ValueError, match="no state"):
        TransNormer(5, width=8, heads=2, mix="softmax")(torch.zeros(1, 2, dtype=torch.long), [torch.zeros(1)] * 2)
