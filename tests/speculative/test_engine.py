"""The engine: greedy text is that of plain decoding, sampled text has its law, the cache is that of a fresh pass."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from tutor import data
from tutor.cost import Cost
from tutor.model.llama import tiny_llama
from tutor.speculative.chooser import CoupledChooser
from tutor.speculative.draft.autoregressive import Autoregressive, autoregress
from tutor.speculative.draft.base import FreeDrafter
from tutor.speculative.draft.model_chain import ModelChain
from tutor.speculative.draft.model_tree import ModelTree
from tutor.speculative.draft.prompt_lookup import PromptLookup
from tutor.speculative.engine import generate
from tutor.speculative.stats import chi2_fit, chi2_two_sample, n_for_power
from tutor.speculative.tree import TokenTree
from tutor.speculative.verify.match import Match
from tutor.speculative.warp import GREEDY, Warp
from tutor.trace import Recorder, Trace

COVERS = ("speculative.autoregressive", "speculative.chain", "speculative.match", "speculative.recursive",
          "speculative.prompt_lookup", "speculative.model_chain", "speculative.model_tree")

TARGET = tiny_llama()
DRAFTERS = {
    "autoregressive": Autoregressive,
    "lookup": PromptLookup,
    "lookup-first": lambda: PromptLookup(sizes=(2, 1), length=4, match="first"),
    "chain-1-layer": lambda: ModelChain(TARGET, 4, layers=[0]),
    "chain-itself": lambda: ModelChain(TARGET, 3),
    "chain-stranger": lambda: ModelChain(tiny_llama(seed=1), 2),
    "tree-1-layer": lambda: ModelTree(TARGET, (2, 2, 2), layers=[0]),
    "tree-replaced": lambda: ModelTree(TARGET, (3, 2), True, layers=[0]),
    "tree-warm": lambda: ModelTree(TARGET, (3, 2), layers=[0], warp=Warp(1.0)),
    "tree-itself": lambda: ModelTree(TARGET, (1, 2, 1)),
}


def prompts(count, seed=0):
    """Some with repetition, lengths 1 to 24."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        piece = torch.randint(97, (1 + i * 11 % 12,), generator=generator).tolist()
        yield piece * (1 + i % 2)


def uncached(prompt, max_new):
    """Greedy text with no cache at all: one full forward pass per token."""
    text = list(prompt)
    for _ in range(max_new):
        text.append(int(TARGET.forward(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt):]


PLAIN = [(prompt, uncached(prompt, 48)) for prompt in prompts(8)]


@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_text_is_that_of_plain_decoding(name):
    for prompt, text in PLAIN:
        assert generate(TARGET, DRAFTERS[name](), prompt, max_new=48, warp=GREEDY).tokens == text


@pytest.mark.parametrize("verify", ["match", "chain"])
def test_every_verifier_gives_the_greedy_text(verify):
    prompt, text = PLAIN[3]
    out = generate(TARGET, ModelChain(TARGET, 4, layers=[0]), prompt, max_new=48, warp=GREEDY, verify=verify)
    assert out.tokens == text


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_text_on_twenty_prompts_of_64_tokens(name):
    for prompt in prompts(20, seed=1):
        text, _ = autoregress(TARGET, prompt, max_new=64, warp=GREEDY)
        assert generate(TARGET, DRAFTERS[name](), prompt, max_new=64, warp=GREEDY).tokens == text


@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, top_k=20, top_p=0.9)], ids=["plain", "warped"])
@pytest.mark.parametrize("name", DRAFTERS)
def test_coupled_sampling_writes_the_text_of_plain_sampling(name, warp):
    for seed, prompt in enumerate(prompts(4, seed=2)):
        text, _ = autoregress(TARGET, prompt, max_new=32, warp=warp, chooser=CoupledChooser(seed))
        assert generate(TARGET, DRAFTERS[name](), prompt, max_new=32, warp=warp, seed=seed,
                        verify=Match(coupled=True)).tokens == text


@pytest.mark.parametrize("name", DRAFTERS)
def test_cache_is_what_one_pass_over_the_text_would_hold(name):
    prompt = next(iter(prompts(1, seed=3))) * 5
    text = list(prompt)

    def check(tree, verdict, cache):
        text.extend([*tree.tokens[verdict.path[1:]].tolist(), verdict.next_token])
        fresh = TARGET.new_cache()
        TARGET.forward(torch.tensor([text[:-1]]), cache=fresh)            # the last token is pending: it has no row
        assert cache.seen == fresh.seen == len(text) - 1
        for layer in range(TARGET.config.n_layers):
            for mine, plain in zip(cache.view(layer, None), fresh.view(layer, None)):
                assert torch.equal(mine.pos, plain.pos)
                torch.testing.assert_close(mine.k, plain.k, atol=1e-10, rtol=0)
                torch.testing.assert_close(mine.v, plain.v, atol=1e-10, rtol=0)

    out = generate(TARGET, DRAFTERS[name](), prompt, max_new=24, warp=Warp(0.8), seed=5, on_step=check)
    assert text[len(prompt):] == out.tokens and out.stats.new_tokens == 24


class Whole(FreeDrafter):
    """Proposes a given continuation, as a chain or with wrong branches around it."""

    name = "whole"

    def __init__(self, continuation, start, order=None, wrong=()):
        self.continuation, self.start, self.order, self.wrong = continuation, start, order, wrong

    def propose(self, context, pending, budget):
        rest = self.continuation[len(context) - self.start:][:6]
        tree = TokenTree.from_paths(pending, [rest, *([*rest[:i], w] for i in range(len(rest)) for w in self.wrong)])
        return tree if self.order is None else tree.permute(getattr(tree, self.order)())


@pytest.mark.parametrize("order", ["bfs_order", "dfs_order"])
def test_node_order_does_not_matter(order):
    prompt, text = PLAIN[5]
    plain = generate(TARGET, Whole(text, len(prompt), wrong=(3, 5)), prompt, max_new=48, warp=GREEDY)
    moved = generate(TARGET, Whole(text, len(prompt), order, wrong=(3, 5)), prompt, max_new=48, warp=GREEDY)
    assert plain.tokens == moved.tokens == text
    assert plain.stats.accept_lengths == moved.stats.accept_lengths == [7] * 6 + [6]


def test_full_acceptance_never_exceeds_max_new():
    prompt, text = PLAIN[2]
    for max_new in range(1, 16):
        out = generate(TARGET, Whole(text, len(prompt)), prompt, max_new=max_new, warp=GREEDY)
        assert out.tokens == text[:max_new] and out.stats.stopped == "max_new"


@pytest.mark.parametrize("at", range(8))
def test_text_ends_at_an_end_token_inside_the_accepted_path(at):
    prompt, text = PLAIN[4]
    end = text[at]
    want = text[:text.index(end) + 1]
    seen = []
    out = generate(TARGET, Whole(text, len(prompt)), prompt, max_new=40, warp=GREEDY, eos=(end,),
                   on_step=lambda tree, verdict, cache: seen.append(cache.seen))
    assert out.tokens == want and out.stats.stopped == "eos"
    assert seen[-1] == len(prompt) + len(want) - 1                        # everything but the end token has a row
    assert sum(out.stats.accept_lengths) == len(want) == out.stats.cost["emitted"]


def test_end_token_of_the_configuration_is_the_default():
    prompt, text = PLAIN[4]
    target = tiny_llama()
    target.config = replace(target.config, eos=(text[5],))
    assert generate(target, Autoregressive(), prompt, max_new=40, warp=GREEDY).tokens == text[:text.index(text[5]) + 1]


@pytest.mark.parametrize("name", DRAFTERS)
def test_full_context_stops_the_text(name):
    target = tiny_llama(max_positions=24)
    prompt, _ = PLAIN[1]
    text, _ = autoregress(target, prompt, max_new=25 - len(prompt), warp=GREEDY)
    rows = []
    out = generate(target, DRAFTERS[name](), prompt, max_new=99, warp=GREEDY,
                   on_step=lambda tree, verdict, cache: rows.append(cache.seen))
    assert out.stats.stopped == "context" and max(rows) == 24             # every position is used, none beyond
    assert out.tokens == text


def test_prompt_of_one_token():
    for name, make in DRAFTERS.items():
        out = generate(TARGET, make(), [11], max_new=12, warp=GREEDY)
        assert out.tokens == uncached([11], 12), name


def test_same_seed_same_text_and_another_seed_another():
    run = lambda seed: generate(TARGET, ModelTree(TARGET, layers=[0]), [1, 2, 3], max_new=30, seed=seed).tokens
    assert run(0) == run(0) != run(1)


def test_one_drafter_may_serve_many_texts():
    drafter = ModelChain(TARGET, 4, layers=[0])
    for prompt, text in PLAIN[:3]:
        assert generate(TARGET, drafter, prompt, max_new=48, warp=GREEDY).tokens == text


def test_counters_add_up():
    prompt, _ = PLAIN[3]
    for make in DRAFTERS.values():
        s = generate(TARGET, make(), prompt, max_new=30, warp=Warp(0.5), seed=2).stats
        assert s.steps == s.cost["target_forwards"] - 1                   # one was the prefill
        assert s.rows_verified == s.steps + s.cost["drafted"] == s.cost["target_rows"] - (len(prompt) - 1)
        assert s.new_tokens == s.cost["emitted"] == 30 == s.cost["accepted"] + s.steps
        assert s.rows_wasted == s.cost["drafted"] - s.cost["accepted"]
        assert s.tokens_per_step == pytest.approx(30 / s.steps)
        assert min(s.draft_time, s.verify_time, s.host_time) >= 0 and s.wall_time > 0
    assert isinstance(s.cost, Cost)


def test_draft_forwards_are_counted():
    out = generate(TARGET, ModelChain(TARGET, 3), [1, 2], max_new=8, warp=GREEDY)
    assert out.stats.accept_lengths == [4, 4] and out.stats.cost["draft_forwards"] == 6
    assert out.stats.cost["drafted"] == out.stats.cost["accepted"] == 6 and out.stats.acceptance == 1
    tree = generate(TARGET, ModelTree(TARGET, (2, 2)), [1, 2, 3], max_new=3, warp=GREEDY)
    assert tree.stats.accept_lengths == [3] and tree.stats.cost["draft_forwards"] == 3         # prompt, then two layers


# ------------------------------------------------------------------------------------------------------- sampled law

LAW, SMALL = (tiny_llama(n_layers=1, n_heads=2, n_kv_heads=1, width=32, ffn_width=32, vocab=24, seed=s) for s in (4, 5))
PROMPT = [3, 3]
NARROW = Warp(0.8, top_k=8)


@lru_cache
def first_two(name, samples):
    """Two tokens of many texts, `(samples, 2)`; another seed for each."""
    drafter = LAW_DRAFTERS[name]()
    return torch.tensor([generate(LAW, drafter, PROMPT, max_new=2, warp=NARROW, seed=s).tokens for s in range(samples)])


LAW_DRAFTERS = {
    "plain": Autoregressive,
    "chain": lambda: ModelChain(SMALL, 2),
    "tree": lambda: ModelTree(SMALL, (2, 1)),
    "tree-replaced": lambda: ModelTree(SMALL, (2,), True),
    "lookup": lambda: PromptLookup(length=2),
}


def judge(name, samples):
    """Chi-square of the first token, of the second after the modal first, and of both against plain sampling."""
    got = first_two(name, samples)
    p = NARROW(LAW.forward(torch.tensor([PROMPT])).logits[0, -1])
    assert chi2_fit(got[:, 0].bincount(minlength=24), p).p > 1e-4
    modal = int(p.argmax())
    second = got[got[:, 0] == modal, 1]
    p2 = NARROW(LAW.forward(torch.tensor([[*PROMPT, modal]])).logits[0, -1])
    assert len(second) > samples / 10 and chi2_fit(second.bincount(minlength=24), p2).p > 1e-4
    plain = first_two("plain", samples)
    assert chi2_two_sample(*((x[:, 0] * 24 + x[:, 1]).bincount(minlength=576) for x in (got, plain))).p > 1e-4


@pytest.mark.parametrize("name", ["chain", "tree", "lookup"])
def test_sampled_text_has_the_target_law(name):
    # With 8 possible tokens and the level 1e-4, 1 000 samples find a bias of total variation 0.12 with power 0.99;
    # enumeration (test_exactness.py) finds any, this test is for the engine around the verifiers.
    assert n_for_power(0.12, 8) <= 1000
    judge(name, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain", "tree", "tree-replaced", "lookup"])
def test_sampled_text_has_the_target_law_closely(name):
    assert n_for_power(0.04, 8) <= 9000
    judge(name, 9000)


# ------------------------------------------------------------------------------------------------------------ traces

@pytest.mark.parametrize("name", ["lookup", "chain-1-layer", "tree-1-layer"])
@pytest.mark.parametrize("warp", [GREEDY, Warp()], ids=["greedy", "sampled"])
def test_recording_never_changes_the_text(name, warp):
    prompt, _ = PLAIN[5]
    plain = generate(TARGET, DRAFTERS[name](), prompt, max_new=24, warp=warp, seed=3)
    told = generate(TARGET, DRAFTERS[name](), prompt, max_new=24, warp=warp, seed=3, trace=True)
    assert told.tokens == plain.tokens and told.stats.accept_lengths == plain.stats.accept_lengths
    assert plain.trace is None and isinstance(told.trace, Trace)


def test_trace_tells_the_run(tmp_path):
    prompt, _ = PLAIN[5]
    recorder = Recorder("speculative.run/1", method="model_tree", params={"shape": [2, 2]}, subject={"note": "test"})
    out = generate(TARGET, ModelTree(TARGET, (2, 2), layers=[0]), prompt, max_new=24, seed=3, trace=recorder)
    trace = Trace.load(out.trace.save(tmp_path / "run.safetensors"))
    a, start = trace.arrays, trace.arrays["node_start"]
    assert trace.steps == out.stats.steps == len(a["next_token"]) == len(start) - 1
    assert trace.params["shape"] == [2, 2] and trace.params["temperature"] == 1 and trace.subject["note"] == "test"
    assert trace.subject["drafter"] == "model_tree" and "recursive" in trace.subject["verifier"]
    told = []
    for step in range(trace.steps):
        rows = slice(start[step], start[step + 1])
        tree = TokenTree(torch.tensor(a["token"][rows]), torch.tensor(a["parent"][rows]))
        state = a["state"][rows]
        assert state[0] == 0 and np.isnan(a["q"][rows][0])
        accepted = np.flatnonzero(state == 1)
        assert [0, *accepted] == tree.path_to(int(accepted[-1]) if len(accepted) else 0)
        assert ((a["p"][rows][1:] >= 0) & (a["p"][rows][1:] <= 1) & (a["q"][rows][1:] > 0)).all()
        told += [*a["token"][rows][accepted], a["next_token"][step]]
        assert f"{len(tree) - 1} tokens drafted" in trace.describe(step)
    assert told == out.tokens
    assert len(trace.of_kind("drafted")["kind"]) == out.stats.cost["drafted"]
    assert len(trace.of_kind("accepted")["kind"]) == out.stats.cost["accepted"]
    assert len(trace.of_kind("emitted")["kind"]) == out.stats.steps


# --------------------------------------------------------------------------------------------------- clear refusals

class Forgetful:
    can_rollback, seen, wants_observation = False, 0, False


def test_wrong_arguments_are_refused():
    go = lambda prompt=(1, 2), max_new=4, drafter=None, **kw: generate(TARGET, drafter or Autoregressive(), prompt,
                                                                       max_new=max_new, **kw)
    used = TARGET.new_cache()
    TARGET.forward(torch.tensor([[1]]), cache=used)
    for call, message in (
        (lambda: go(prompt=[]), "at least one token"),
        (lambda: go(max_new=0), "max_new must be >= 1"),
        (lambda: go(prompt=torch.ones(2, 3, dtype=torch.long)), "batch of 2"),
        (lambda: go(cache=Forgetful()), "can_rollback=False"),
        (lambda: go(cache=used), "must be empty"),
        (lambda: go(verify="typical"), "verify must be"),
        (lambda: go(prompt=[1, 2, 1, 2], drafter=PromptLookup(), verify="chain"), "verify='match'"),
        (lambda: generate(tiny_llama(max_positions=4), Autoregressive(), [1] * 5, max_new=1), "shorten the prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_different_vocabularies_are_refused():
    class Words:
        def __init__(self, words):
            self.words = words

        def get_vocab(self):
            return {w: i for i, w in enumerate(self.words)}

        def decode(self, ids, skip_special=False):
            return " ".join(self.words[i] for i in ids)

    target, draft = tiny_llama(), tiny_llama(seed=1)
    target.tokenizer, draft.tokenizer = (Words([f"{c}{i}" for i in range(97)]) for c in "ab")
    with pytest.raises(ValueError, match="different tokenizers"):         # equal sizes, other tokens
        generate(target, ModelChain(draft), [1, 2], max_new=2)
    draft.tokenizer = Words([f"a{i}" for i in range(97)])                 # another object, the same vocabulary
    out = generate(target, ModelChain(draft), [1, 2], max_new=2)
    assert out.text == " ".join(f"a{i}" for i in out.tokens)


@pytest.mark.parametrize("name", ["lookup_overlap", "lookup_chat", "chain_prose", "tree_prose"])
def test_shipped_traces_can_be_read_and_are_small(name):
    path = data.path("speculative", f"{name}.safetensors")
    trace = Trace.load(path)
    assert path.stat().st_size < 150_000 and trace.schema == "speculative.run/1" and trace.steps > 2
    for step in range(trace.steps):
        assert trace.describe(step).startswith(f"Step {step}: ")
    pieces, a = trace.subject["pieces"], trace.arrays
    told = ""
    for step in range(trace.steps):                                       # accepted nodes and next tokens spell the output
        rows = slice(a["node_start"][step], a["node_start"][step + 1])
        told += "".join(pieces[str(t)] for t in [*a["token"][rows][a["state"][rows] == 1], a["next_token"][step]])
    assert told == trace.subject["output"]
