"""The cache contract of every family, and the plain cache that keeps everything.

A cache stores rows (one key and one value per KV head) and answers with *parts*: the attention of a layer is the merge
of its attention over each part, so a cache may hold pruned and recent rows, pages, or quantised rows side by side.

Two lengths are kept apart, because confusing them is the most common bug of eviction code: `seen` counts every token
that ever passed through (the next position), `rows` are what is still stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Some rows of one layer, ready to be attended.

    Rows that one call appended are the last rows of the last part, in the order in which they came.

    Attributes:
        k, v: `(B, Hkv, S, D)`, `(B, Hkv, S, Dv)`.
        pos: int32 original position of each row, `(S,)` when all heads hold the same rows, else `(B, Hkv, S)`;
            -1 is padding.
        w: multiplicity of each row `(B, Hkv, S)` after a merge (adds `log w` to the logits), or None.
        rope: "post" when `k` carries its rotation already, "pre" when attention must rotate it to `pos` first.
    """

    k: Tensor
    v: Tensor
    pos: Tensor
    w: Tensor | None = None
    rope: str = "post"


@dataclass(frozen=True)
class Observation:
    """What a policy may look at after a layer's attention.

    Attributes:
        layer: index of the layer; n_layers: how many there are.
        q: post-RoPE queries of this call `(B, Hq, T, D)`.
        q_pre: the same before RoPE.
        pos_q: int32 positions `(T,)`.
        attended: the parts that were attended, this call's own rows included.
        lse: log-sum-exp of every query over them `(B, Hq, T)`; probabilities of a row j are `exp(q·k_j/sqrt(D) - lse)`.
        hidden: input of the attention block `(B, T, width)`.
        phase: "prefill" (more than one new row at a time) or "decode".
    """

    layer: int
    n_layers: int
    q: Tensor
    q_pre: Tensor
    pos_q: Tensor
    attended: list[Part]
    lse: Tensor
    hidden: Tensor
    phase: str


@runtime_checkable
class Cache(Protocol):
    """What the decoder asks of a cache; one protocol for all families."""

    seen: int                    # tokens ever appended: the next token's position
    can_rollback: bool           # False: truncate/gather raise, so speculation refuses this cache
    wants_observation: bool      # False: the decoder spares itself the log-sum-exp

    def append(self, layer: int, k_pre: Tensor, k: Tensor, v: Tensor, pos: Tensor) -> None: ...
    def view(self, layer: int, q: Tensor) -> list[Part]: ...
    def observe(self, layer: int, observation: Observation) -> None: ...   # eviction happens here and nowhere else
    def truncate(self, length: int) -> None: ...
    def gather(self, base: int, idx: Tensor) -> None: ...
    def fork(self) -> Cache: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def state_nbytes(self) -> int: ...


class FullCache:
    """Keeps every row of every layer, in storage that doubles when full.

    `truncate(length)` forgets the tail; `gather(base, idx)` moves rows `base + idx[i]` to `base + i` and forgets the
    rest: after a token tree was verified, idx is its accepted path.
    """

    can_rollback = True
    wants_observation = False

    def __init__(self, n_layers: int, *, capacity: int = 0):
        if n_layers < 1:
            raise ValueError(f"n_layers must be >= 1; got {n_layers}")
        self._k: list[Tensor | None] = [None] * n_layers       # (B, Hkv, capacity, D)
        self._v: list[Tensor | None] = [None] * n_layers
        self._len = [0] * n_layers
        self._pos = torch.empty(0, dtype=torch.int32)           # (capacity,) one row of positions for all layers
        self._capacity = capacity

    @property
    def seen(self) -> int:
        return max(self._len)

    @property
    def rows(self) -> int:
        return max(self._len)

    def append(self, layer: int, k_pre: Tensor, k: Tensor, v: Tensor, pos: Tensor) -> None:
        start, end = self._len[layer], self._len[layer] + k.shape[2]
        if self._k[layer] is None or end > self._k[layer].shape[2]:
            self._grow(layer, k, v, end)
        if self._k[layer].shape[:2] != k.shape[:2]:
            raise ValueError(f"this cache holds (B, Hkv) = {tuple(self._k[layer].shape[:2])}; got k {tuple(k.shape)}; "
                             "use a new cache for another batch")
        self._k[layer][:, :, start:end] = k
        self._v[layer][:, :, start:end] = v
        self._place(layer, start, end, pos)
        self._len[layer] = end

    def _place(self, layer: int, start: int, end: int, pos: Tensor) -> None:
        """Write positions once per call; the other layers must bring the same ones for the same rows."""
        if end > len(self._pos):
            more = pos.new_full((self._k[layer].shape[2] - len(self._pos),), -1, dtype=torch.int32)
            self._pos = torch.cat([self._pos.to(pos.device), more])
        if start == self.seen:
            self._pos[start:end] = pos
        elif not torch.equal(self._pos[start:end], pos.to(torch.int32)):
            raise ValueError(f"layer {layer} appends rows {start}..{end - 1} at other positions than the layers before "
                             "it; after skipping layers, truncate the cache before the next full pass")

    def _grow(self, layer: int, k: Tensor, v: Tensor, end: int) -> None:
        size = max(self._capacity, 64)
        while size < end:
            size *= 2
        old_k, old_v, n = self._k[layer], self._v[layer], self._len[layer]
        self._k[layer] = k.new_empty(*k.shape[:2], size, k.shape[3])
        self._v[layer] = v.new_empty(*v.shape[:2], size, v.shape[3])
        if old_k is not None:
            self._k[layer][:, :, :n] = old_k[:, :, :n]
            self._v[layer][:, :, :n] = old_v[:, :, :n]

    def view(self, layer: int, q: Tensor) -> list[Part]:
        n = self._len[layer]
        return [Part(self._k[layer][:, :, :n], self._v[layer][:, :, :n], self._pos[:n])]

    def observe(self, layer: int, observation: Observation) -> None:
        """Nothing to do: this cache forgets nothing."""

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.seen:
            raise ValueError(f"length must be in [0, {self.seen}], the rows that are held; got {length}")
        self._len = [min(n, length) for n in self._len]

    def gather(self, base: int, idx: Tensor) -> None:
        idx = torch.as_tensor(idx, dtype=torch.long, device=self._pos.device)
        end = base + len(idx)
        if base < 0 or (len(idx) and (int(idx.min()) < 0 or base + int(idx.max()) >= self.seen)):
            raise ValueError(f"idx must point into rows [{base}, {self.seen}); got {idx.tolist()} from base {base}")
        seen = self.seen
        for layer, n in enumerate(self._len):
            if n == 0:                                              # a layer that never ran
                continue
            if n < seen:
                raise ValueError(f"layer {layer} holds {n} rows and others {seen}; run all layers before gather")
            for store in (self._k[layer], self._v[layer]):
                store[:, :, base:end] = store[:, :, base + idx]     # the right side is copied before it is written
            self._len[layer] = end
        self._pos[base:end] = self._pos[base + idx]

    def fork(self) -> FullCache:
        twin = FullCache(len(self._k), capacity=self._capacity)
        twin._k = [None if t is None else t.clone() for t in self._k]
        twin._v = [None if t is None else t.clone() for t in self._v]
        twin._len, twin._pos = list(self._len), self._pos.clone()
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are held (positions are implied by the slot and cost nothing)."""
        return sum(2 * t[:, :, :n].numel() * t.element_size() for t, n in zip(self._k, self._len) if t is not None)

    @property
    def state_nbytes(self) -> int:
        return 0
