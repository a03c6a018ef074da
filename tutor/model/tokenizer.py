"""Text to token ids and back: byte-level BPE by the `tokenizers` library, and the chat template beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def build_bpe(tokens: Sequence[str], merges: Sequence[str], special: Sequence[str], *, digits: bool) -> Any:
    """A `tokenizers.Tokenizer` from a vocabulary and its merges.

    Args:
        tokens: token strings by id; merges: "left right", best first; special: tokens that are never split.
        digits: whether every digit is a token of its own (so `1984` is four tokens).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    single = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([single, words]) if digits else words
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return backend


class Tokenizer:
    """What the lessons need of a tokenizer; `.backend` is the `tokenizers.Tokenizer` for everything else."""

    def __init__(self, backend: Any, *, template: str = "", bos: str = "", eos: str = ""):
        self.backend, self.template, self.bos, self.eos = backend, template, bos, eos

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` and, where present, the chat template of a Hugging Face folder."""
        from tokenizers import Tokenizer as Backend

        folder = Path(folder)
        settings = _json(folder / "tokenizer_config.json")
        template = settings.get("chat_template") or ""
        if isinstance(template, list):                       # several named templates
            template = {t["name"]: t["template"] for t in template}.get("default", "")
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        text = {name: token["content"] if isinstance(token, dict) else token or ""
                for name in ("bos_token", "eos_token") for token in (settings.get(name),)}
        return cls(Backend.from_file(str(folder / "tokenizer.json")), template=template,
                   bos=text["bos_token"], eos=text["eos_token"])

    def save(self, folder: Path, *, bos: int | None, eos: int | None, pad: int | None) -> None:
        self.backend.save(str(folder / "tokenizer.json"), pretty=False)
        name = lambda i: None if i is None else self.backend.id_to_token(i)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": name(bos), "eos_token": name(eos),
                    "pad_token": name(pad), "chat_template": self.template, "clean_up_tokenization_spaces": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens written in the text are recognised, none is added.

        Bytes that the vocabulary lacks are dropped: for the default model a few control characters and the unassigned
        planes of Unicode.
        """
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of the ids; bytes that are no character yet (a cut emoji) read as U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Every token as a readable string of its own: spaces and line ends as they are, cut characters as U+FFFD."""
        return [self.decode([i]) for i in ids]

    def chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Messages `{"role": ..., "content": ...}` in the model's own chat format, ready for `encode`.

        Raises:
            ValueError: this tokenizer has no chat template.
        """
        if not self.template:
            raise ValueError("this tokenizer has no chat template; join the messages yourself and call encode()")
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # jinja2 comes with torch

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        return environment.from_string(self.template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt,
            bos_token=self.bos, eos_token=self.eos)


def _refuse(message: str) -> None:
    raise ValueError(f"the chat template refuses these messages: {message}")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
