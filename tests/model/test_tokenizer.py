"""The tokenizer of the GGUF: equal to transformers', reversible, readable; and the chat format."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor import texts
from tutor.model import gguf
from tutor.model.load import find
from tutor.model.tokenizer import Tokenizer

TEXTS = [
    "", " ", "  ", "\n", "\n\n", "\t x", "Hello, world!", " leading and trailing ", "a  b   c    d",
    "don't we'll I'M it's", "The quick brown fox jumps over 13 lazy dogs in 2024.", "x = [1, 22, 333]", "1\n2\n 3",
    "3.14159e-10", "naïve façade Ünïcödé", "日本語のテキスト", "Привет, мир", "שלום עולם", "مرحبا",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467", "e\u0301 vs é", "\u00a0\u2003wide spaces\u200b",
    "def f(x):\n    return {'a': x ** 2}\n\n\tpass  # end\r\n", "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|><|endoftext|>", "<|im_start", "<repo_name>tutor<file_sep>a.py", "\x00\x07\x1b[0m",
    "\ufb01 \u2460 \u00bd \u0663 \u2167", "\ufeffbom", "a" * 300, "=" * 77,
]


def reads_alike(text):
    """Whether splitting digits off first makes no difference: no run of spaces before a digit, no exotic numerals."""
    return not re.search(r"\s\s+\d|\n\d", text) and not any(c.isnumeric() and not c.isascii() for c in text)


@pytest.fixture(scope="module")
def tokenizer():
    folder = find()
    if folder is None:
        pytest.skip("the real model is not on this machine: run `tutor fetch`")
    return Tokenizer.load(folder)


def test_by_hand(small_gguf):
    # merges, best first: t h, th e, space the, i n, space space; digits are words of their own, so the spaces before
    # 42 stay together, while those before "the" are cut so that one space goes with the word
    ours = gguf.tokenizer(gguf.open_gguf(small_gguf))
    assert ours.pieces(ours.encode("the in then")) == ["the", " ", "in", " the", "n"]
    assert ours.pieces(ours.encode("in  42  the")) == ["in", "  ", "4", "2", " ", " the"]
    assert ours.encode("<|im_end|>x")[0] == 2
    assert len(ours) == 3 + 256 + 5


def _same(ours, backend, items):
    for text in items:
        assert ours.encode(text) == backend.encode(text, add_special_tokens=False).ids, text


def _theirs(path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def _digits_first(backend):
    """transformers does not read `tokenizer.ggml.pre`: "smollm" makes every digit a word of its own."""
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return backend


def test_small_equals_transformers(small_gguf):
    ours, theirs = gguf.tokenizer(gguf.open_gguf(small_gguf)), _theirs(small_gguf).backend_tokenizer
    _same(ours, theirs, filter(reads_alike, TEXTS))
    _same(ours, _digits_first(theirs), TEXTS)


@pytest.mark.model
@pytest.mark.slow
def test_real_equals_transformers(real_gguf, tokenizer):
    theirs = _theirs(real_gguf)
    backend, many = theirs.backend_tokenizer, [*TEXTS, *texts.sentences()[::7]]
    plain = list(filter(reads_alike, many))
    assert len(plain) > 2000
    _same(tokenizer, backend, plain)
    _same(tokenizer, _digits_first(backend), [*many, texts.reference()])
    assert (tokenizer.eos, tokenizer.bos) == (theirs.eos_token, theirs.bos_token) == ("<|im_end|>", "<|im_start|>")


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS, ids=lambda t: repr(t[:12]))
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.model
@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"]), max_size=40))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.model
def test_runs_of_space_before_digits_are_one_token(tokenizer):
    # the model was trained so: digits are split off before words are formed
    assert tokenizer.pieces(tokenizer.encode("a\n\n1")) == ["a", "\n\n", "1"]
    assert tokenizer.pieces(tokenizer.encode("a 1984")) == ["a", " ", "1", "9", "8", "4"]


@pytest.mark.model
def test_pieces_join_to_the_text(tokenizer):
    text = "Attention is a weighted mean.\n  Nothing more."
    pieces = tokenizer.pieces(tokenizer.encode(text))
    assert "".join(pieces) == text and " weighted" in pieces
    assert "\ufffd" in "".join(tokenizer.pieces(tokenizer.encode("🏳️‍🌈")))       # a cut character is shown as such


@pytest.mark.model
def test_special_tokens(tokenizer):
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2
    assert tokenizer.decode(ids, skip_special=True) == "user\nhi"
    assert tokenizer.encode("hello")[0] > 2                      # none is added
    assert len(tokenizer) == 49152


@pytest.mark.model
@pytest.mark.parametrize("messages", [
    [{"role": "user", "content": "What is a cache?"}],
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"},
     {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "{{ braces }} & <tags>\n"}],
], ids=["no-system", "conversation"])
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_equals_transformers(tokenizer, messages, prompt):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(find()))
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert tokenizer.chat(messages, add_generation_prompt=prompt) == expected
    assert expected.startswith("<|im_start|>system\n") and expected.endswith("assistant\n") == prompt


def test_chat_without_a_template_says_so(small_gguf):
    ours = Tokenizer(gguf.tokenizer(gguf.open_gguf(small_gguf)).backend)
    with pytest.raises(ValueError, match="no chat template"):
        ours.chat([{"role": "user", "content": "hi"}])
    strict = Tokenizer(ours.backend, template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="roles must alternate"):
        strict.chat([])
