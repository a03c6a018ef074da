"""From GGUF to a Hugging Face folder: equal to what transformers reads, to the last bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import tutor
from tutor.model import gguf
from tutor.model.load import find, is_complete


def test_unpermute_by_hand():
    # one head of width 4 (two rotary pairs): llama.cpp stores rows x0 x2 x1 x3, the two halves are x0 x1 x2 x3
    stored = np.array([[0.0], [2.0], [1.0], [3.0]])
    assert gguf.unpermute(stored, 1).ravel().tolist() == [0.0, 1.0, 2.0, 3.0]
    two = np.concatenate([stored, stored + 10])
    assert gguf.unpermute(two, 2).ravel().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_q4_1_by_hand():
    # one block: scale 0.5, minimum -1, nibbles 0 .. 15 twice: w = 0.5 n - 1; low nibbles come first
    from gguf import GGMLQuantizationType, dequantize

    head = np.array([0.5, -1.0], np.float16).view(np.uint8)
    nibbles = np.arange(16, dtype=np.uint8) | (np.arange(16, dtype=np.uint8)[::-1] << 4)
    w = dequantize(np.concatenate([head, nibbles])[None], GGMLQuantizationType.Q4_1).ravel()
    assert w.tolist() == [0.5 * n - 1 for n in [*range(16), *range(15, -1, -1)]]


def _theirs(path):
    transformers = pytest.importorskip("transformers")
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(str(path.parent), gguf_file=path.name, dtype=torch.float32).state_dict()


def _compare(path):
    ours = {name: torch.from_numpy(array) for name, array in gguf.tensors(gguf.open_gguf(path))}
    theirs = _theirs(path)
    theirs.pop("lm_head.weight", None)                       # tied to the embedding
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_small_gguf_equals_transformers(small_gguf):
    _compare(small_gguf)


@pytest.mark.model
@pytest.mark.slow
def test_real_gguf_equals_transformers(real_gguf):
    _compare(real_gguf)


@pytest.mark.model
@pytest.mark.slow
def test_stored_weights_are_the_gguf_rounded_to_bf16(real_gguf, model):
    from safetensors import safe_open

    with safe_open(str(find() / "model.safetensors"), framework="pt") as stored:
        for name, array in gguf.tensors(gguf.open_gguf(real_gguf)):
            assert torch.equal(stored.get_tensor(name), torch.from_numpy(array).bfloat16()), name


def test_converted_folder_opens_everywhere(small_gguf, tmp_path):
    transformers = pytest.importorskip("transformers")
    gguf.convert(small_gguf, tmp_path, name="small")
    assert is_complete(tmp_path)
    ours = tutor.load(tmp_path, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (ours.forward(ids).logits - theirs(ids).logits).abs().max() < 1e-4
    assert ours.config.name == "small" and "Q4_1" in ours.config.source
    assert (ours.config.rope_base, ours.config.eos, ours.config.max_positions) == (5000.0, (2,), 128)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer("the inn 42")["input_ids"] == ours.tokenizer.encode("the inn 42")


def test_a_gguf_opens_directly(small_gguf, tmp_path):
    gguf.convert(small_gguf, tmp_path, name="small")
    ids = torch.arange(3, 30)[None]
    direct = tutor.load(small_gguf).forward(ids).logits
    assert torch.equal(direct, tutor.load(tmp_path).forward(ids).logits)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.3, 0.6, 0.99], ids=str)
def test_a_truncated_gguf_names_the_remedy(small_gguf, tmp_path, keep):
    data = small_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(RuntimeError, match="tutor fetch"):
        gguf.convert(cut, tmp_path, name="cut")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_missing_gguf_names_the_remedy(tmp_path):
    with pytest.raises(RuntimeError, match="tutor fetch"):
        gguf.open_gguf(tmp_path / "none.gguf")


def test_another_architecture_is_refused(tmp_path):
    import gguf as library

    writer = library.GGUFWriter(str(tmp_path / "other.gguf"), "gpt2")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RuntimeError, match="'gpt2'.*'llama'"):
        gguf.open_gguf(tmp_path / "other.gguf")


@pytest.mark.model
def test_config_of_the_real_model(model):
    c = model.config
    assert (c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim) == (30, 9, 3, 64)
    assert (c.width, c.ffn_width, c.vocab) == (576, 1536, 49152)
    assert (c.rope_base, c.max_positions, c.eos, c.name) == (100_000.0, 8192, (2,), "SmolLM2-135M-Instruct")
    assert "Q4_1" in c.source and "dequantised" in c.source
    assert json.loads((find() / "config.json").read_text())["tie_word_embeddings"] is True
    assert model.head_weight.data_ptr() == model.embedding.data_ptr()
