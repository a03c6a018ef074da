"""The real model against Hugging Face's decoder on the same bf16 file, both computing in float32."""

from __future__ import annotations

import pytest
import torch

from tutor import texts
from tutor.model.load import find, rounding_cost

pytestmark = pytest.mark.model

PROMPTS = [
    "The capital of France is", "def fibonacci(n):\n", "Attention is", "Once upon a time, in a small village,",
    "1, 2, 3, 4,", "The assert statement in Python",
    "<|im_start|>user\nWhat is a cache?<|im_end|>\n<|im_start|>assistant\n",
    "To be, or not to be:", "SELECT name FROM users WHERE", "Der schnelle braune Fuchs",
]


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    if find() is None:
        pytest.skip("the model was opened from elsewhere: run `tutor fetch`")
    return transformers.AutoModelForCausalLM.from_pretrained(str(find()), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def text_ids(model32):
    return torch.tensor([model32.tokenizer.encode(texts.reference()[:4000])[:512]])


def test_logits_agree_over_512_tokens(model32, theirs, text_ids):
    with torch.no_grad():
        expected = theirs(text_ids).logits
    assert text_ids.shape == (1, 512)
    assert (model32.forward(text_ids).logits - expected).abs().max() < 1e-3


def _continue(theirs, ids, n):
    out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, pad_token_id=2)
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_greedy_text_begins_alike(model32, theirs, prompt):
    ids = model32.encode(prompt)
    assert model32.generate(ids, max_new=24).tokens == _continue(theirs, ids, 24)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_identical(model32, theirs, prompt):
    ids = model32.encode(prompt)
    assert model32.generate(ids, max_new=64).tokens == _continue(theirs, ids, 64)


@pytest.mark.parametrize("chunks", [(300, 1, 1, 100, 110), (64,) * 8], ids=["uneven", "of-64"])
def test_cached_and_chunked_equal_uncached(model32, text_ids, chunks):
    whole = model32.forward(text_ids).logits
    cache, start = model32.new_cache(), 0
    for part in text_ids.split(list(chunks), dim=1):
        logits = model32.forward(part, cache=cache).logits
        assert (logits - whole[:, start : start + part.shape[1]]).abs().max() < 5e-4
        start += part.shape[1]


def test_the_general_attention_equals_the_fast_one(model32, text_ids):
    ids = text_ids[:, :200]
    slow = model32.forward(ids, attend=model32.attend).logits
    assert (slow - model32.forward(ids).logits).abs().max() < 5e-4


def test_bf16_is_close_to_float32(model, model32, text_ids):
    # rounding of every step, not of the weights (they are bf16 in both): what the fast decoder pays
    ids = text_ids[:, :128]
    with torch.no_grad():
        gap = (model.forward(ids).logits.float() - model32.forward(ids).logits).abs()
    assert 0 < gap.max() < 2.0 and gap.mean() < 0.1


@pytest.mark.slow
def test_what_rounding_the_weights_costs(real_gguf):
    cost = rounding_cost(real_gguf, n_tokens=512)
    assert 0.01 < cost["max_logit_change"] < 1.0
    assert abs(cost["nll_bf16_weights"] - cost["nll_float32_weights"]) < 0.01
    assert cost["same_next_token"] > 0.97


def test_it_speaks(model):
    assert model.generate("The capital of France is", max_new=3).text.strip().startswith("Paris")
    assert model.nll(model.encode(texts.reference()[:6000])).mean().exp() < 20
