"""GGUF: one file with quantised weights, tokenizer and settings. Read once, written as an ordinary Hugging Face folder.

Rule        Q4_1 stores 32 weights as 32 nibbles n, a scale d and a minimum m: w = d n + m. Q8_0: w = d n.
            llama.cpp interleaves the two halves of every RoPE head in the rows of q and k; `unpermute` puts them back.
Why         Dequantising 135 M weights takes a second or two; the folder is memory-mapped in a blink, and both our
            decoder and transformers can open it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tutor.model.tokenizer import Tokenizer, build_bpe

_BLOCK = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
          "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
          "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_DIGITS = ("smollm", "starcoder", "refact", "command-r")   # pre-tokenizers that give every digit a token of its own


def open_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader`, or one line that says what is wrong with the file.

    Raises:
        RuntimeError: the file is missing, is no GGUF, is cut off, or holds another architecture.
    """
    from gguf import GGUFReader

    path = Path(path)
    if not path.is_file():
        raise RuntimeError(f"no GGUF file at {path}; run `tutor fetch`")
    try:
        reader = GGUFReader(str(path))
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError, OverflowError) as error:
        raise RuntimeError(f"{path} ({path.stat().st_size} bytes) is not a whole GGUF file: {error}; "
                           "delete it and run `tutor fetch`") from error
    architecture = value(reader, "general.architecture", "")
    if architecture != "llama":
        raise RuntimeError(f"{path} holds the architecture {architecture!r}; tutor reads 'llama'")
    return reader


def value(reader: Any, key: str, default: Any = None) -> Any:
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    stem = name.removesuffix(".weight")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_BLOCK[part]}.weight"


def unpermute(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of a q or k matrix from llama.cpp's neighbouring pairs to the two halves of RoPE: `(H D, width)`."""
    rows, width = w.shape
    return w.reshape(n_heads, rows // n_heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def tensors(reader: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face names and dequantised float32 arrays, one at a time."""
    from gguf import dequantize

    n_heads = value(reader, "llama.attention.head_count")
    heads = {"attn_q": n_heads, "attn_k": value(reader, "llama.attention.head_count_kv", n_heads)}
    for tensor in reader.tensors:
        w = np.require(dequantize(tensor.data, tensor.tensor_type), requirements="W")   # no view of the file
        part = tensor.name.split(".")[-2]
        yield hf_name(tensor.name), unpermute(w, heads[part]) if part in heads else w


def config(reader: Any) -> dict[str, Any]:
    """The same settings under the names of a Hugging Face `config.json`."""
    n_heads, width = value(reader, "llama.attention.head_count"), value(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "num_hidden_layers": value(reader, "llama.block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": value(reader, "llama.attention.head_count_kv", n_heads),
        "head_dim": value(reader, "llama.rope.dimension_count", width // n_heads),
        "hidden_size": width,
        "intermediate_size": value(reader, "llama.feed_forward_length"),
        "vocab_size": len(value(reader, "tokenizer.ggml.tokens")),
        "max_position_embeddings": value(reader, "llama.context_length"),
        "rope_theta": value(reader, "llama.rope.freq_base", 10000.0),
        "rms_norm_eps": float(np.float32(value(reader, "llama.attention.layer_norm_rms_epsilon"))),
        "tie_word_embeddings": all(t.name != "output.weight" for t in reader.tensors),
        "bos_token_id": value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": value(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": value(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


def tokenizer(reader: Any) -> Tokenizer:
    """The byte-level BPE tokenizer in the metadata, chat template included."""
    kind = value(reader, "tokenizer.ggml.model")
    if kind != "gpt2":
        raise RuntimeError(f"the tokenizer of this GGUF is of kind {kind!r}; tutor reads byte-level BPE ('gpt2')")
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, types) if kind == 3]
    digits = value(reader, "tokenizer.ggml.pre") in _DIGITS
    backend = build_bpe(tokens, value(reader, "tokenizer.ggml.merges"), special, digits=digits)
    return Tokenizer(backend, template=value(reader, "tokenizer.chat_template", ""))


def convert(path: Path, folder: Path, *, name: str) -> None:
    """Write `config.json`, `model.safetensors` (bf16), `tokenizer.json` and `tokenizer_config.json` into `folder`."""
    import torch
    from safetensors.torch import save_file
    from tqdm.auto import tqdm

    reader = open_gguf(path)
    kinds = sorted({t.tensor_type.name for t in reader.tensors if t.tensor_type.name not in ("F32", "F16", "BF16")})
    source = f"{', '.join(kinds)} quantised, dequantised and rounded to bf16" if kinds else "rounded to bf16"
    weights = {}
    try:
        for key, array in tqdm(tensors(reader), total=len(reader.tensors), desc="dequantise", leave=False):
            weights[key] = torch.from_numpy(array).to(torch.bfloat16)
    except (ValueError, IndexError) as error:
        raise RuntimeError(f"{path} is cut off or damaged: {error}; delete it and run `tutor fetch`") from error
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})   # one key: the same bytes every time
    os.chmod(folder / "model.safetensors", 0o644)           # a shared home is read by others
    settings = config(reader) | {"tutor": {"name": name, "source": source}}
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    tokenizer(reader).save(folder, **{name: settings[f"{name}_token_id"] for name in ("bos", "eos", "pad")})
