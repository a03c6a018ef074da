"""The decoder: a Llama in one sitting, with a seam at every place where this project changes something.

Idea        Per block, x += attention(norm(x)) and x += ffn(norm(x)); the vocabulary head reads the last residual.
Seams       `attend` computes attention, `ffn` the feed-forward part, `cache` stores and forgets rows, `positions` and
            `tree_mask` lay out a token tree, `embeds` replaces ids, `layers` leaves blocks out, `collect` copies
            what passes by. Nothing is ever monkey-patched.
Shapes      B batch, T rows of this call, S rows of the cache, Hq = n_heads, Hkv = n_kv_heads, D = head_dim, V = vocab.
See also    tutor/model/attention.py (exact attention over a cache's rows, masked by position), cache.py, rope.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutor.attention.partial import Partial
from tutor.model import rope as rope_module
from tutor.model.attention import attend_fast, attend_view
from tutor.model.cache import Cache, FullCache, Observation, Part

COLLECT = ("q", "k", "v", "q_pre", "k_pre", "attn", "hidden", "lse")
_LOGITS = ("all", "last", "none")


@dataclass(frozen=True)
class Config:
    """Sizes and settings of a Llama. `source` says in words how the weights were made."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    width: int
    ffn_width: int
    vocab: int
    rope_base: float
    max_positions: int
    norm_eps: float
    eos: tuple[int, ...]
    name: str
    source: str

    def __post_init__(self):
        if self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads must be a multiple of n_kv_heads; got {self.n_heads} and {self.n_kv_heads}")


@dataclass(frozen=True)
class Block:
    """Weights of one block; matrices are `(out, in)`. q, k and v lie below each other in `qkv`, so x is read once."""

    norm_1: Tensor
    qkv: Tensor                                  # ((Hq + 2 Hkv) D, width)
    o: Tensor
    norm_2: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


def _shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Hugging Face name of every tensor of a block, with its shape."""
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    return {"input_layernorm": (c.width,), "self_attn.q_proj": (q, c.width), "self_attn.k_proj": (kv, c.width),
            "self_attn.v_proj": (kv, c.width), "self_attn.o_proj": (c.width, q),
            "post_attention_layernorm": (c.width,), "mlp.gate_proj": (c.ffn_width, c.width),
            "mlp.up_proj": (c.ffn_width, c.width), "mlp.down_proj": (c.width, c.ffn_width)}


@dataclass(frozen=True)
class Rope:
    """The rotation of one model: its speeds, and the functions of `tutor.model.rope` bound to them."""

    inv_freq: Tensor
    base: float

    def table(self, pos: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return rope_module.table(pos, self.inv_freq, dtype)

    def rotate(self, x: Tensor, pos: Tensor) -> Tensor:
        return rope_module.rotate(x, pos, self.inv_freq)

    def unrotate(self, x: Tensor, pos: Tensor) -> Tensor:
        return rope_module.unrotate(x, pos, self.inv_freq)

    def rerotate(self, x: Tensor, delta: Tensor) -> Tensor:
        return rope_module.rerotate(x, delta, self.inv_freq)


@dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    Attributes:
        logits: `(B, T, V)`, `(B, 1, V)` with `logits="last"`, None with `"none"`; in the dtype of the model.
        hidden: `(B, T, width)` residual after the last block that ran, before the final norm:
            `model.head(hidden)` gives logits, `model.norm(hidden)` the normalised state.
        collected: `collected["q"][layer]` for every name asked for.
    """

    logits: Tensor | None
    hidden: Tensor
    collected: dict[str, dict[int, Tensor]]


@dataclass(frozen=True)
class Generation:
    """New tokens (the prompt is not repeated), their text, and how many forward passes they took."""

    tokens: list[int]
    text: str
    steps: int


class Model:
    """A decoder-only Llama for inference; weights carry no gradient, but inputs (`embeds`) may."""

    def __init__(self, config: Config, embedding: Tensor, blocks: Sequence[Block], final_norm: Tensor, head: Tensor,
                 tokenizer: Any = None, *, rope: Rope | None = None):
        self.config, self.tokenizer = config, tokenizer
        self.embedding, self.blocks, self.final_norm, self.head_weight = embedding, tuple(blocks), final_norm, head
        speeds = rope_module.inv_freq(config.head_dim, config.rope_base).to(embedding.device)
        self.rope = rope or Rope(speeds, config.rope_base)
        self.cache_factory: Callable[[], Cache] = lambda: FullCache(config.n_layers)

    @classmethod
    def from_tensors(cls, config: Config, tensors: dict[str, Tensor], tokenizer: Any = None, *,
                     scaling: dict | None = None, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> Model:
        """A model from tensors under their Hugging Face names; only q, k and v are copied, to lie side by side."""
        def take(name: str, *shape: int) -> Tensor:
            if name not in tensors:
                raise ValueError(f"tensor {name!r} is missing; the folder is no whole Llama checkpoint")
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"tensor {name!r} is {tuple(tensors[name].shape)}; config.json asks for {shape}")
            return tensors[name].to(device=device, dtype=dtype)

        c, blocks = config, []
        for layer in range(c.n_layers):
            n1, q, k, v, o, n2, gate, up, down = (take(f"model.layers.{layer}.{name}.weight", *shape)
                                                  for name, shape in _shapes(c).items())
            blocks.append(Block(n1, torch.cat([q, k, v]), o, n2, gate, up, down))
        embedding = take("model.embed_tokens.weight", c.vocab, c.width)
        head = take("lm_head.weight", c.vocab, c.width) if "lm_head.weight" in tensors else embedding
        speeds = rope_module.scaled_inv_freq(c.head_dim, c.rope_base, scaling).to(device)
        return cls(c, embedding, blocks, take("model.norm.weight", c.width), head, tokenizer,
                   rope=Rope(speeds, c.rope_base))

    def __repr__(self) -> str:
        c = self.config
        return (f"Model({c.name}: {c.n_layers} layers, {c.n_heads} query and {c.n_kv_heads} KV heads of width "
                f"{c.head_dim}, {str(self.dtype).removeprefix('torch.')} on {self.device}; weights {c.source})")

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def to(self, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> Model:
        """The same model with its weights in another dtype or place; what needs no conversion is shared."""
        cast = lambda w: w.to(device=device or w.device, dtype=dtype or w.dtype)
        blocks = [Block(*map(cast, vars(block).values())) for block in self.blocks]
        embedding = cast(self.embedding)
        head = embedding if self.head_weight is self.embedding else cast(self.head_weight)
        speeds = Rope(self.rope.inv_freq.to(embedding.device), self.rope.base)
        twin = Model(self.config, embedding, blocks, cast(self.final_norm), head, self.tokenizer, rope=speeds)
        twin.cache_factory = self.cache_factory
        return twin

    def encode(self, text: str) -> Tensor:
        """Token ids `(1, T)`."""
        return torch.tensor([self.tokenizer.encode(text)], dtype=torch.long, device=self.device)

    def new_cache(self) -> Cache:
        """An empty cache, made by `cache_factory` (which may be replaced)."""
        return self.cache_factory()

    # ---- the parts of a forward pass

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the embedding, `(B, T) -> (B, T, width)`."""
        return self.embedding[ids]

    def norm(self, x: Tensor) -> Tensor:
        """The final norm."""
        return self._rms(x, self.final_norm)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of residual rows: `(..., width) -> (..., V)`."""
        return F.linear(self.norm(hidden), self.head_weight)

    def ffn(self, layer: int, x: Tensor) -> Tensor:
        """The feed-forward part of a block on its normalised input: `down(silu(gate x) * up x)`."""
        block = self.blocks[layer]
        return F.linear(F.silu(F.linear(x, block.gate)) * F.linear(x, block.up), block.down)

    def attend(self, layer: int, q: Tensor, view: list[Part], *, pos_q: Tensor, tree_mask: Tensor | None = None,
               trace: Any = None) -> Partial:
        """Exact attention over all parts of a view: the default `attend`, in its general form.

        Args:
            q: post-RoPE queries `(B, Hq, T, D)`; view: parts over disjoint rows; the last T rows of the last part are
                this call's own.
            pos_q: int32 `(T,)`; tree_mask: bool `(T, T)`, True where row i may see row j of this call.

        Returns:
            `o (B, Hq, T, Dv)` in the dtype of q, `lse (B, Hq, T)` in float32 (float64 for float64 queries).
        """
        return attend_view(q, view, pos_q, tree_mask, rotate=self.rope.rotate)

    def forward(
        self,
        ids: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        positions: Tensor | None = None,
        tree_mask: Tensor | None = None,
        cache: Cache | None = None,
        attend: Callable[..., Partial] | None = None,
        ffn: Callable[[int, Tensor], Tensor] | None = None,
        layers: Iterable[int] | None = None,
        collect: Iterable[str] = (),
        logits: str = "all",
    ) -> Output:
        """Run T new rows through the model.

        Args:
            ids: `(B, T)` or `(T,)` token ids; or embeds: `(B, T, width)` residual rows in their place.
            positions: `(T,)` original positions; by default they follow what the cache has seen.
            tree_mask: `(T, T)` bool over this call's rows, diagonal included; the cached prefix is masked by position.
            cache: rows of earlier calls; None for a pass on its own.
            attend: `attend(layer, q, view, *, pos_q, tree_mask, trace=None) -> Partial` instead of exact attention.
            ffn: `ffn(layer, x) -> (B, T, width)` instead of `Model.ffn`; x is the normalised input.
            layers: blocks to run, in this order; all by default.
            collect: names of `COLLECT`, alone or for one layer ("q.5").
            logits: "all", "last" (the last row only) or "none": at 49 152 words, logits are the dearest thing here.

        Raises:
            ValueError: an argument of the wrong shape or range, or NaN in embeds.
        """
        x = self._input(ids, embeds)                                            # (B, T, width)
        T = x.shape[1]
        if logits not in _LOGITS:
            raise ValueError(f"logits must be one of {_LOGITS}; got {logits!r}")
        order = range(self.config.n_layers) if layers is None else self._layers(layers)
        pos = self._positions(positions, T, cache)                              # (T,) int32
        if tree_mask is not None and (tree_mask.shape != (T, T) or tree_mask.dtype != torch.bool):
            raise ValueError(f"tree_mask must be bool ({T}, {T}), one row per row of this call; "
                             f"got {tree_mask.dtype} {tuple(tree_mask.shape)}")
        keep = self._collector(collect)
        table = self.rope.table(pos, x.dtype)
        for layer in order:
            keep("hidden", layer, x)
            x = x + self._attention(layer, x, pos, table, tree_mask, cache, attend, keep)
            x = x + (ffn or self.ffn)(layer, self._rms(x, self.blocks[layer].norm_2))
        out = None if logits == "none" else self.head(x if logits == "all" else x[:, -1:])
        return Output(out, x, keep.found)

    __call__ = forward

    def _attention(self, layer: int, x: Tensor, pos: Tensor, table: tuple[Tensor, Tensor], tree_mask: Tensor | None,
                   cache: Cache | None, attend: Callable | None, keep: _Collector) -> Tensor:
        """The attention of one block, `(B, T, width) -> (B, T, width)`."""
        c, block = self.config, self.blocks[layer]
        B, T, _ = x.shape
        Hq, Hkv = c.n_heads, c.n_kv_heads
        rows = F.linear(self._rms(x, block.norm_1), block.qkv)                   # (B, T, (Hq + 2 Hkv) D)
        rows = rows.view(B, T, Hq + 2 * Hkv, c.head_dim).transpose(1, 2)         # (B, Hq + 2 Hkv, T, D)
        q_pre, k_pre, v = rows[:, :Hq], rows[:, Hq : Hq + Hkv], rows[:, Hq + Hkv :]
        turned = rope_module.apply(rows[:, : Hq + Hkv], *table)                  # queries and keys in one go
        q, k = turned[:, :Hq], turned[:, Hq:]
        if cache is None:
            view = [Part(k, v, pos)]
        else:
            cache.append(layer, k_pre, k, v, pos)
            view = cache.view(layer, q)
        observed = cache is not None and cache.wants_observation
        o = None
        if attend is None and not observed and not keep.wants("lse", layer):
            o = attend_fast(q, view, pos, tree_mask)
        if o is None:
            partial = (attend or self.attend)(layer, q, view, pos_q=pos, tree_mask=tree_mask)
            o = partial.o
            keep("lse", layer, partial.lse)
        if observed:
            phase = "prefill" if T > 1 else "decode"
            cache.observe(layer, Observation(layer, c.n_layers, q, q_pre, pos, view, partial.lse, x, phase))
        if keep.wanted:
            for name, value in (("q", q), ("k", k), ("v", v), ("q_pre", q_pre), ("k_pre", k_pre), ("attn", o)):
                keep(name, layer, value)
        return F.linear(o.transpose(1, 2).reshape(B, T, Hq * c.head_dim), block.o)

    # ---- what callers do with it

    @torch.no_grad()
    def generate(self, prompt: str | Tensor | Sequence[int], *, max_new: int = 64, cache: Cache | None = None,
                 temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, generator: torch.Generator | None = None,
                 stop_at_eos: bool = True, attend: Callable[..., Partial] | None = None) -> Generation:
        """Continue a prompt, one token per forward pass.

        Args:
            prompt: text as it is (see `tokenizer.chat` for conversations), or ids `(T,)` or `(1, T)`.
            cache: continues what it has seen already; a new one by default.
            temperature: 0 is greedy (ties to the lower id); top_k: 0 keeps all; top_p: 1 keeps all.
            generator: of the random draws, on the device of the model.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else torch.as_tensor(prompt, device=self.device)
        ids = ids.reshape(1, -1)
        if ids.shape[1] == 0:
            raise ValueError("prompt is empty; give at least one token")
        if max_new < 0:
            raise ValueError(f"max_new must be >= 0; got {max_new}")
        cache = self.new_cache() if cache is None else cache
        tokens: list[int] = []
        while len(tokens) < max_new:
            row = self.forward(ids, cache=cache, attend=attend, logits="last").logits[0, -1]      # (V,)
            tokens.append(sample(row, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator))
            if stop_at_eos and tokens[-1] in self.config.eos:
                break
            ids = torch.tensor([tokens[-1:]], device=self.device)
        text = "" if self.tokenizer is None else self.tokenizer.decode(tokens, skip_special=True)
        return Generation(tokens, text, len(tokens))

    @torch.no_grad()
    def nll(self, ids: Tensor, **seams: Any) -> Tensor:
        """Surprise of every token but the first, in nats: `(B, T) -> (B, T - 1)` float32; `exp(mean)` is perplexity.

        Logits are made 256 rows at a time, so a long text needs no `(T, V)` array. `seams` go to `forward`.
        """
        ids = ids.reshape(1, -1) if ids.dim() == 1 else ids
        hidden = self.forward(ids, logits="none", **seams).hidden[:, :-1]
        parts = [F.cross_entropy(self.head(h).float().transpose(1, 2), y, reduction="none")
                 for h, y in zip(hidden.split(256, dim=1), ids[:, 1:].split(256, dim=1))]
        return torch.cat(parts, dim=1)

    # ---- checks and small things

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm; torch computes it in float32 and rounds once."""
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)

    def _input(self, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        if (ids is None) == (embeds is None):
            raise ValueError("give exactly one of ids and embeds")
        if embeds is not None:
            if embeds.dim() != 3 or embeds.shape[-1] != self.config.width or embeds.shape[1] == 0:
                raise ValueError(f"embeds must be (B, T >= 1, {self.config.width}); got {tuple(embeds.shape)}")
            if not bool(embeds.isfinite().all()):
                raise ValueError("embeds holds NaN or infinity; check the step that made it "
                                 "(uninitialised memory, a division by zero)")
            return embeds.to(self.dtype)
        ids = torch.as_tensor(ids, device=self.device)
        ids = ids[None] if ids.dim() == 1 else ids
        if ids.dim() != 2 or ids.shape[1] == 0 or ids.is_floating_point():
            raise ValueError(f"ids must be whole numbers (B, T >= 1) or (T,); got {ids.dtype} {tuple(ids.shape)}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab:
            raise ValueError(f"ids must be in [0, {self.config.vocab}); got {low} .. {high} (wrong tokenizer?)")
        return self.embed(ids)

    def _layers(self, layers: Iterable[int]) -> list[int]:
        order = list(layers)
        wrong = [layer for layer in order if not 0 <= layer < self.config.n_layers]
        if wrong:
            raise ValueError(f"layers must be in [0, {self.config.n_layers}); got {wrong}")
        return order

    def _positions(self, positions: Tensor | None, T: int, cache: Cache | None) -> Tensor:
        start = 0 if cache is None else cache.seen
        if positions is None:
            return torch.arange(start, start + T, dtype=torch.int32, device=self.device)
        pos = torch.as_tensor(positions, device=self.device)
        if pos.shape != (T,) or pos.is_floating_point() or int(pos.min()) < 0:
            raise ValueError(f"positions must be {T} whole numbers >= 0, one per row; "
                             f"got {pos.dtype} {tuple(pos.shape)}")
        return pos.to(torch.int32)

    def _collector(self, names: Iterable[str]) -> _Collector:
        wanted: dict[str, set[int] | None] = {}
        for name in [names] if isinstance(names, str) else names:
            kind, _, layer = name.partition(".")
            if kind not in COLLECT or (layer and not (layer.isdigit() and int(layer) < self.config.n_layers)):
                raise ValueError(f"collect knows {', '.join(COLLECT)}, alone or with a layer "
                                 f"below {self.config.n_layers} as in 'q.5'; got {name!r}")
            if not layer:
                wanted[kind] = None                                             # every layer
            elif wanted.get(kind, set()) is not None:
                wanted.setdefault(kind, set()).add(int(layer))
        return _Collector(wanted)


@dataclass
class _Collector:
    """Keeps the tensors that were asked for."""

    wanted: dict[str, set[int] | None]
    found: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def wants(self, name: str, layer: int) -> bool:
        return name in self.wanted and (self.wanted[name] is None or layer in self.wanted[name])

    def __call__(self, name: str, layer: int, value: Tensor) -> None:
        if self.wants(name, layer):
            self.found.setdefault(name, {})[layer] = value


def sample(logits: Tensor, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
           generator: torch.Generator | None = None) -> int:
    """One token id from logits `(V,)` under the law of `tutor.speculative.warp`: temperature, then top-k, then top-p."""
    from tutor.speculative.warp import Warp

    warp = Warp(temperature, top_k, top_p)
    if warp.greedy:
        return int(logits.argmax())                                             # ties to the lower id
    return int(torch.multinomial(warp(logits), 1, generator=generator))


def tiny_llama(*, n_layers: int = 2, n_heads: int = 4, n_kv_heads: int = 2, head_dim: int = 16, width: int = 64,
               ffn_width: int = 96, vocab: int = 97, rope_base: float = 10000.0, max_positions: int = 4096,
               eos: tuple[int, ...] = (), seed: int = 0, dtype: torch.dtype = torch.float64,
               device: str = "cpu") -> Model:
    """A random model for tests: small, in float64, the same for the same seed."""
    config = Config(n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, width=width,
                    ffn_width=ffn_width, vocab=vocab, rope_base=rope_base, max_positions=max_positions, norm_eps=1e-5,
                    eos=eos, name="tiny", source=f"random, seed {seed}")
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return 1 + 0.1 * noise if len(shape) == 1 else noise * (2 / shape[1]) ** 0.5

    tensors = {"model.embed_tokens.weight": draw(vocab, width), "lm_head.weight": draw(vocab, width),
               "model.norm.weight": draw(width)}
    for layer in range(n_layers):
        tensors |= {f"model.layers.{layer}.{name}.weight": draw(*shape) for name, shape in _shapes(config).items()}
    return Model.from_tensors(config, tensors, dtype=dtype, device=device)
