"""On the real model: greedy text of every drafter is that of plain decoding, up to ties that rounding may break."""

from __future__ import annotations

import pytest
import torch

from tutor.speculative.bench import SELF_DRAFT, TASKS, prompts, skip_layers
from tutor.speculative.chooser import CoupledChooser
from tutor.speculative.draft.autoregressive import autoregress
from tutor.speculative.draft.model_chain import ModelChain
from tutor.speculative.draft.model_tree import ModelTree
from tutor.speculative.draft.prompt_lookup import PromptLookup
from tutor.speculative.engine import generate
from tutor.speculative.verify.match import Match
from tutor.speculative.warp import GREEDY, Warp

COVERS = ("speculative.prompt_lookup", "speculative.model_chain", "speculative.model_tree")
TIE = 1e-4                    # a smaller gap between the two best logits may fall either way in float32

MAKE = {
    "prompt_lookup": lambda model: PromptLookup(),
    "model_chain": lambda model: ModelChain(model, 3, layers=SELF_DRAFT[model.config.name]),
    "model_tree": lambda model: ModelTree(model, (2, 2), layers=SELF_DRAFT[model.config.name]),
}


def diverges(text, plain, gaps):
    """First place where two texts part, as (place, gap there); None if they agree."""
    at = next((i for i, (a, b) in enumerate(zip(text, plain)) if a != b), None)
    return None if at is None else (at, gaps[at])


def same_text(model, name, kinds, max_new):
    parted = []
    for prompt in (p for kind in kinds for p in prompts(model, kind)):
        plain, gaps = autoregress(model, prompt, max_new=max_new, warp=GREEDY, eos=model.config.eos)
        out = generate(model, MAKE[name](model), prompt, max_new=max_new, warp=GREEDY)
        found = diverges(out.tokens, plain, gaps)
        assert found is None or found[1] < TIE, f"{name}: token {found[0]} differs although the gap is {found[1]:.3g}"
        assert found is not None or out.tokens == plain
        parted += [found] if found else []
    return parted


@pytest.mark.model
@pytest.mark.parametrize("name", ["prompt_lookup", "model_chain"])
def test_greedy_text_in_float32(model32, name):
    prompt = prompts(model32, "overlap")[1][:100]
    plain, gaps = autoregress(model32, prompt, max_new=20, warp=GREEDY, eos=model32.config.eos)
    out = generate(model32, MAKE[name](model32), prompt, max_new=20, warp=GREEDY)
    found = diverges(out.tokens, plain, gaps)
    assert found is None or found[1] < TIE
    assert out.text == model32.tokenizer.decode(out.tokens, skip_special=True) and out.stats.tokens_per_step > 1


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_greedy_text_of_every_task_in_float32(model32, name, record_property):
    parted = same_text(model32, name, TASKS, 32)
    record_property("divergences at ties", len(parted))
    assert len(parted) <= 2


@pytest.mark.model
@pytest.mark.slow
def test_coupled_sampling_writes_the_same_text(model32):
    prompt = prompts(model32, "chat")[0]
    warp = Warp(0.8, top_p=0.95)
    plain, _ = autoregress(model32, prompt, max_new=32, warp=warp, chooser=CoupledChooser(1), eos=model32.config.eos)
    out = generate(model32, MAKE["model_chain"](model32), prompt, max_new=32, warp=warp, seed=1,
                   verify=Match(coupled=True))
    assert out.tokens == plain


def test_skip_layers_leaves_out_the_cheapest_first():
    from tutor.model.llama import tiny_llama
    model = tiny_llama(n_layers=4)
    texts = [[1, 5, 9, 2], [7, 7]]

    def acceptance(layers):
        law = lambda ids, **how: torch.softmax(model.forward(torch.tensor([ids]), **how).logits[0].float(), -1)
        return float(torch.cat([torch.minimum(law(t), law(t, layers=layers)).sum(-1) for t in texts]).mean())

    found = skip_layers(model, texts, keep=2)
    assert [len(kept) for kept, _ in found] == [3, 2]
    for start, (kept, value) in zip(([0, 1, 2, 3], found[0][0]), found):
        assert value == pytest.approx(acceptance(kept))
        assert value == pytest.approx(max(acceptance([k for k in start if k != layer]) for layer in start))
    with pytest.raises(ValueError, match="keep must be"):
        skip_layers(model, texts, keep=0)
    with pytest.raises(ValueError, match="kind must be"):
        prompts(model, "poems")
