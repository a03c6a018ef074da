"""The sentence encoder: equal to the transformers library, blind to batching, and sensible about meaning."""

import os

import numpy as np
import pytest
import torch

from tutor.model import embed

TEXTS = ["Return a sorted list of the items.", "sort", "", "Gives back the elements in order.",
         "Open a socket and listen for connections on a port.", "word " * 600]


@pytest.fixture(scope="module")
def encoder():
    if not embed.available():
        missing = pytest.fail if os.environ.get("CI", "").lower() in ("1", "true") else pytest.skip
        missing("the encoder is not on this machine: run `tutor fetch`")
    return embed.load()


@pytest.mark.model
def test_equals_the_transformers_library(encoder):
    from transformers import BertModel

    theirs = BertModel.from_pretrained(embed.find(embed.NAME), attn_implementation="eager").eval()
    rows = [encoding.ids for encoding in encoder.tokenizer.encode_batch(TEXTS)]
    ids, real = encoder._pad(rows)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=real.long()).last_hidden_state
    found = encoder.tokens(ids, real)
    assert (found - expected)[real].abs().max() < 1e-5
    weights = real[..., None].float()
    mean = (expected * weights).sum(1) / weights.sum(1)
    torch.testing.assert_close(encoder.pool(ids, real), mean / mean.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)


@pytest.mark.model
def test_shape_length_and_batching(encoder):
    whole = encoder.encode(TEXTS, progress=False)
    assert whole.shape == (len(TEXTS), encoder.dim) == (len(TEXTS), 384) and whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    for size in (1, 2, 4):                                      # padding must not leak into any text
        np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=size, progress=False), whole, atol=2e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS[0], progress=False)[0], whole[0], atol=2e-6)


@pytest.mark.model
def test_long_texts_are_cut_at_256_tokens(encoder):
    long, cut = encoder.encode(["word " * 600, "word " * 254], progress=False)   # 254 words and two end marks
    np.testing.assert_allclose(long, cut, atol=1e-6)


@pytest.mark.model
def test_alike_texts_are_near(encoder):
    same, other = encoder.encode([TEXTS[3], TEXTS[4]], progress=False) @ encoder.encode(TEXTS[0], progress=False)[0]
    assert same > other + 0.3


@pytest.mark.model
def test_batch_size_must_be_positive(encoder):
    with pytest.raises(ValueError, match="batch_size must be >= 1; got 0"):
        encoder.encode(["a"], batch_size=0)


# --- without the weights

def tiny(seed: int = 0, width: int = 8, layers: int = 2) -> embed.Encoder:
    """A random encoder of width 8 in the shape of the real one."""
    g = torch.Generator().manual_seed(seed)
    sizes = {"embeddings.word_embeddings.weight": (11, width), "embeddings.position_embeddings.weight": (16, width),
             "embeddings.token_type_embeddings.weight": (2, width)}
    blocks = [f"encoder.layer.{i}" for i in range(layers)]
    for norm in ["embeddings", *(f"{b}.attention.output" for b in blocks), *(f"{b}.output" for b in blocks)]:
        sizes |= {f"{norm}.LayerNorm.weight": (width,), f"{norm}.LayerNorm.bias": (width,)}
    for b in blocks:
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            sizes |= {f"{b}.attention.{part}.weight": (width, width), f"{b}.attention.{part}.bias": (width,)}
        sizes |= {f"{b}.intermediate.dense.weight": (32, width), f"{b}.intermediate.dense.bias": (32,),
                  f"{b}.output.dense.weight": (width, 32), f"{b}.output.dense.bias": (width,)}
    return embed.Encoder({name: torch.randn(size, generator=g) for name, size in sizes.items()}, None, 2, layers, 1e-12)


def test_a_tiny_random_encoder_equals_the_transformers_library():
    from transformers import BertConfig, BertModel

    ours = tiny()
    config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                        max_position_embeddings=16, attn_implementation="eager")
    theirs = BertModel(config, add_pooling_layer=False).eval()
    theirs.load_state_dict(ours.weights)
    ids, real = ours._pad([[1, 2, 3, 4, 5], [6, 7], [8]])
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=real.long()).last_hidden_state
    torch.testing.assert_close(ours.tokens(ids, real)[real], expected[real], atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing():
    encoder = tiny()
    alone = [encoder.pool(*encoder._pad([row])) for row in ([1, 2, 3, 4, 5], [6, 7])]
    torch.testing.assert_close(encoder.pool(*encoder._pad([[1, 2, 3, 4, 5], [6, 7]])), torch.cat(alone))


def test_a_missing_encoder_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTOR_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not embed.available()
    with pytest.raises(RuntimeError, match=r"not on this machine; run `tutor fetch`"):
        embed.load()
    with pytest.raises(ValueError, match="lacks config.json"):
        embed.load(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="holds a 'llama' model; the encoder must be BERT"):
        embed.load(tmp_path)
