"""Captures: they say what the model saw, survive a save, and the recorded one is what its page says."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch

import tutor
from tutor.model.capture import Capture, capture
from tutor.model.llama import tiny_llama
from tutor.model.load import find


@pytest.fixture(scope="module")
def tiny():
    model = tiny_llama(n_layers=3, dtype=torch.float32)
    ids = torch.randint(0, 97, (1, 21), generator=torch.Generator().manual_seed(1))
    return model, ids, capture(model, ids, [2, 0], text="noise")


def test_it_holds_what_the_model_saw(tiny):
    model, ids, taken = tiny
    found = model.forward(ids, collect=["q", "k", "q_pre", "k_pre", "v", "attn"]).collected
    assert taken.layers == (0, 2) and len(taken) == 21 and torch.equal(taken.ids, ids[0])
    for layer in taken.layers:
        for name in ("q", "k", "q_pre", "k_pre", "v"):
            assert torch.allclose(getattr(taken, name)(layer), found[name][layer], atol=1e-5), name
        assert torch.allclose(taken.output(layer), found["attn"][layer], atol=1e-5)
    assert taken.about["text"] == "noise" and taken.about["model"] == "tiny"


def test_logits_of_a_head_give_its_output(tiny):
    _, _, taken = tiny
    p = taken.logits(2, 3).softmax(-1)                        # query head 3 reads KV head 1
    assert torch.allclose(p @ taken.v(2)[0, 1], taken.output(2)[0, 3], atol=1e-5)
    assert torch.equal(p.triu(1), torch.zeros(21, 21))
    assert torch.allclose(taken.logits(2, 3, slice(5, 9)), taken.logits(2, 3)[5:9], atol=1e-5)
    assert torch.allclose(taken.logits(2, 3, torch.tensor([20, 4])), taken.logits(2, 3)[[20, 4]], atol=1e-5)


def test_a_saved_capture_is_the_same_in_fp16(tiny, tmp_path):
    _, _, taken = tiny
    again = Capture.load(taken.save(tmp_path / "c"))
    assert (again.layers, again.tokens, again.about) == (taken.layers, taken.tokens, taken.about)
    assert torch.equal(again.q_pre(2), taken.q_pre(2).half().float())
    assert torch.equal(again.inv_freq, taken.inv_freq)


def test_the_first_tokens_stand_alone(tiny):
    model, ids, taken = tiny
    short, direct = taken.first(8), capture(model, ids[:, :8], [2])
    assert len(short) == len(short.tokens) == 8
    assert torch.allclose(short.k(2), direct.k(2), atol=1e-5)


def test_errors_name_the_remedy(tiny, tmp_path):
    _, _, taken = tiny
    with pytest.raises(ValueError, match=r"layer must be one of \[0, 2\]"):
        taken.q(1)
    with pytest.raises(ValueError, match=r"head must be in \[0, 4\)"):
        taken.logits(0, 4)
    with pytest.raises(ValueError, match="n must be in"):
        taken.first(22)
    with pytest.raises(ValueError, match="no capture"):
        Capture.load(tmp_path)
    taken.save(tmp_path / "cut")
    file = tmp_path / "cut" / "layer_02.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="layer_02.safetensors is missing or cut off"):
        Capture.load(tmp_path / "cut")
    with pytest.raises(ValueError, match="one length"):
        Capture((0,), taken.ids[:3], taken.tokens, taken.inv_freq, taken.rows)
    poisoned = Capture((0,), taken.ids, taken.tokens, taken.inv_freq, {key: t * 1e6 for key, t in taken.rows.items()})
    with pytest.raises(ValueError, match="does not fit fp16"):
        poisoned.save(tmp_path / "p")
    with pytest.raises(ValueError, match="unknown_capture"):
        tutor.data.capture("unknown_capture")


# ---- the recorded one


@pytest.fixture(scope="module")
def recorded():
    return tutor.data.capture()


def test_recorded_shapes_and_size(recorded):
    assert recorded.layers == (2, 20, 25) and len(recorded) == 4096
    assert recorded.q(2).shape == (1, 9, 4096, 64) and recorded.k(20).shape == recorded.v(25).shape == (1, 3, 4096, 64)
    folder = tutor.data.path("captures", "reference_4096")
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 24e6
    assert {"model", "weights", "text", "licence", "maker", "model_sha256", "seed"} <= set(recorded.about)
    assert recorded.tokens[:3] == ["The", ' "', "assert"]


def test_recorded_layers_are_telling(recorded):
    rows = torch.arange(1024, 4096, 48)
    def mass(layer, head):
        return recorded.logits(layer, head, rows).softmax(-1)                # (rows, T)
    sinks = torch.stack([mass(25, h)[:, :4].sum(-1).mean() for h in range(9)])
    assert sinks.min() > 0.4                                                 # every head of layer 25 rests on the start
    diffuse = [mass(2, h).sort(descending=True)[0][:, :40].sum(-1).mean() for h in range(9)]
    assert sum(m < 0.65 for m in diffuse) >= 6                               # 40 keys, the top 1-4 %, are not enough
    # head 6 of layer 20 looks for the token that followed the same word before
    p = mass(20, 6)
    followed = torch.zeros_like(p, dtype=torch.bool)
    followed[:, 1:] = recorded.ids[None, :-1] == recorded.ids[rows, None]
    followed &= torch.arange(4096)[None] < rows[:, None] - 64
    assert (p * followed).sum(-1).mean() > 0.15


@pytest.mark.model
@pytest.mark.slow
def test_recorded_rows_are_those_of_the_model(recorded, model32):
    short = capture(model32, recorded.ids[:256], recorded.layers)
    for layer in recorded.layers:
        for name in ("q_pre", "k_pre", "v"):
            a, b = getattr(short, name)(layer), getattr(recorded.first(256), name)(layer)
            assert (a - b).abs().max() < 0.02, (name, layer)                 # fp16 of numbers up to 27
    if find() is not None:                                                   # the weights are the same on every machine
        digest = hashlib.sha256((find() / "model.safetensors").read_bytes()).hexdigest()
        assert digest == recorded.about["model_sha256"]
    script = Path(tutor.data.path("make_captures.py"))
    spec = importlib.util.spec_from_file_location("make_captures", script)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (maker.LAYERS, maker.TOKENS) == (recorded.layers, len(recorded))
