"""Rotary positions: by hand, as a rotation, and against transformers."""

from __future__ import annotations

import math

import pytest
import torch

from tutor.model import rope


def test_by_hand():
    # D = 4, base 100: speeds 100^0 = 1 and 100^(-1/2) = 0.1. At position 2 the pairs turn by 2 and 0.2 radians.
    speeds = rope.inv_freq(4, 100.0)
    assert torch.allclose(speeds, torch.tensor([1.0, 0.1]))
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)       # pairs (x0, x2) = (1, 0) and (x1, x3) = (0, 1)
    out = rope.rotate(x, torch.tensor([2]), speeds).flatten()
    assert torch.allclose(out, torch.tensor([math.cos(2), -math.sin(0.2), math.sin(2), math.cos(0.2)]), atol=1e-6)


def test_products_see_distances_only(rng):
    speeds = rope.inv_freq(16, 10000.0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=rng, dtype=torch.float64)
    turn = lambda x, p: rope.rotate(x, torch.tensor([p]), speeds)
    at = lambda m, n: float((turn(q, m) * turn(k, n)).sum())
    assert at(7, 3) == pytest.approx(at(1007, 1003), abs=1e-10)
    assert at(7, 3) != pytest.approx(at(7, 4), abs=1e-3)


def test_rotations_add_and_undo(rng):
    speeds = rope.inv_freq(8, 10000.0)
    x = torch.randn(2, 3, 5, 8, generator=rng, dtype=torch.float64)
    p, d = torch.arange(5) * 11, torch.tensor([0, -3, 5, 100, -7])
    turned = rope.rotate(x, p, speeds)
    assert torch.allclose(rope.unrotate(turned, p, speeds), x, atol=1e-12)
    assert torch.allclose(rope.rerotate(turned, d, speeds), rope.rotate(x, p + d, speeds), atol=1e-12)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))


def test_every_head_may_have_positions_of_its_own(rng):
    speeds = rope.inv_freq(8, 10000.0)
    x = torch.randn(2, 3, 4, 8, generator=rng)
    pos = torch.randint(0, 50, (2, 3, 4), generator=rng)
    out = rope.rotate(x, pos, speeds)
    for b in range(2):
        for h in range(3):
            assert torch.allclose(out[b, h], rope.rotate(x[b : b + 1, h : h + 1], pos[b, h], speeds)[0, 0])


def test_low_precision_is_rounded_once(rng):
    speeds = rope.inv_freq(8, 10000.0)
    x = torch.randn(1, 1, 6, 8, generator=rng).bfloat16()
    pos = torch.arange(6) + 1000
    assert torch.equal(rope.rotate(x, pos, speeds), rope.rotate(x.float(), pos, speeds).bfloat16())


@pytest.mark.parametrize("scaling", [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 512},
], ids=lambda s: s["rope_type"])
def test_scaling_equals_transformers(scaling):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=2, head_dim=32, max_position_embeddings=2048,
                                      rope_parameters=scaling | {"rope_theta": 5000.0})
    theirs = LlamaRotaryEmbedding(config).inv_freq
    assert torch.equal(rope.scaled_inv_freq(32, 5000.0, scaling), theirs) or torch.allclose(
        rope.scaled_inv_freq(32, 5000.0, scaling), theirs, rtol=1e-6)


@pytest.mark.parametrize("call, word", [
    (lambda: rope.inv_freq(7, 100.0), "head_dim"),
    (lambda: rope.rotate(torch.zeros(1, 1, 2, 8), torch.arange(2), rope.inv_freq(4, 100.0)), "width"),
    (lambda: rope.rotate(torch.zeros(1, 1, 2, 4), torch.arange(3), rope.inv_freq(4, 100.0)), "pos"),
    (lambda: rope.scaled_inv_freq(4, 100.0, {"rope_type": "yarn"}), "yarn"),
])
def test_errors_name_the_argument(call, word):
    with pytest.raises(ValueError, match=word):
        call()
