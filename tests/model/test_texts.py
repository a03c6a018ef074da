"""Texts that come with Python: large enough, well-formed, the same every time."""

from __future__ import annotations

import pytest

from tutor import texts
from tutor.model.llama import tiny_llama


def test_reference_is_long_technical_english():
    text = texts.reference()
    assert len(text) > 300_000 and text.startswith('The "assert" statement')
    assert "yield" in text and text == texts.reference()


class Words:
    """Every five characters are a token."""

    def encode(self, text):
        return [text[i : i + 5] for i in range(0, len(text), 5)]

    def decode(self, ids):
        return "".join(ids)


def test_reference_can_be_cut_by_tokens():
    assert texts.reference(3, Words()) == texts.reference()[:15]
    with pytest.raises(ValueError, match="needs a tokenizer"):
        texts.reference(3)
    for n in (0, 10_000_000):
        with pytest.raises(ValueError, match=r"n_tokens must be in \[1, "):
            texts.reference(n, Words())


@pytest.mark.model
def test_reference_in_tokens_of_the_model(model):
    cut = texts.reference(512, model.tokenizer)
    assert abs(len(model.tokenizer.encode(cut)) - 512) <= 2          # the last token may be cut elsewhere when read again
    assert tiny_llama().tokenizer is None


@pytest.mark.slow
def test_docstrings_and_sentences():
    documents = texts.docstrings()
    names = [name for name, _ in documents]
    assert len(documents) > 5000 and names == sorted(set(names))
    assert len({text for _, text in documents}) == len(documents)
    found = dict(documents)
    assert found["argparse.ArgumentParser"].startswith("Object for parsing command line strings")
    assert found["json"].startswith("JSON (JavaScript Object Notation)") and "json.dumps" in found
    assert not any(name.split(".")[0] in ("test", "idlelib", "numpy", "torch") for name in names)
    sentences = texts.sentences()
    assert len(sentences) == len(set(sentences)) > 10_000
    assert all(len(s.split()) >= 4 and "\n" not in s for s in sentences)
    assert set(texts.sentences(8)) < set(sentences)


def test_sentences_refuse_no_words():
    with pytest.raises(ValueError, match="min_words"):
        texts.sentences(0)
