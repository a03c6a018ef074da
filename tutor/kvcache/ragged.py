"""Ragged cache: every KV head may hold a different number of rows, and a row that goes gives its bytes back.

Many eviction codes only mask: the rows stay in memory and the saving is a promise. Here a layer is a flat storage in
which each head owns its own range of slots, eviction builds a smaller storage, and `nbytes` is read off the storages.

One pass through a layer is `append` (new rows come in), `view` (everything is attended, the newest rows included) and
`observe` (the policy looks at that attention, and rows may go). Eviction happens there and nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tutor.kvcache.policy import Policy
from tutor.kvcache.rows import Rows
from tutor.kvcache.select import Keep
from tutor.model.cache import Observation, Part
from tutor.trace import Recorder

if TYPE_CHECKING:
    from tutor.model.llama import Model

Rotate = Callable[[Tensor, Tensor], Tensor]      # (x (B, H, S, D), positions (S,) or (B, H, S)) -> x after RoPE


class Store:
    """Rows of one layer in flat storage: `columns[name]` is `(slots, …)`, of which head `(b, h)` owns `room[b, h]`.

    Positions are one shared column `(room,)` as long as all heads hold the same rows, and cost 4 bytes a row of every
    head afterwards. A column `w` appears with the first merge.
    """

    def __init__(self, k: Tensor, v: Tensor, states: Iterable[str]):
        """An empty store for rows like those of `k (B, Hkv, T, D)` and `v (B, Hkv, T, Dv)`."""
        self.states = tuple(states)
        self.columns = {"k": k.new_empty(0, k.shape[-1]), "v": v.new_empty(0, v.shape[-1])}
        self.columns |= {name: k.new_empty(0, dtype=torch.float32) for name in self.states}
        self.pos = torch.empty(0, dtype=torch.int32, device=k.device)
        self.shared = True                               # pos is (room,): all heads hold the same rows
        self.seen = 0                                                      # rows ever appended
        nothing = torch.zeros(k.shape[:2], dtype=torch.long, device=k.device)
        self.resize(nothing, nothing)

    def resize(self, counts: Tensor, room: Tensor) -> None:
        self.counts, self.room = counts, room                              # (B, Hkv) filled slots, slots
        self.start = (room.flatten().cumsum(0) - room.flatten()).view_as(room)
        self.width = int(counts.max())                                     # rows of the fullest head
        self.even = bool((counts == self.width).all() and (room == room[0, 0]).all())    # the storage is a rectangle

    def _grid(self, column: Tensor) -> Tensor:
        """The storage of even heads as `(B, Hkv, room, …)`, no copy."""
        return column.view(*self.room.shape, int(self.room[0, 0]), *column.shape[1:])

    def _slots(self, first: Tensor, n: int) -> Tensor:
        """Flat indices of slots `first … first + n - 1` of each head, held inside its room: `(B, Hkv, n)`."""
        inside = first[..., None] + torch.arange(n, device=first.device)
        return self.start[..., None] + inside.minimum((self.room - 1).clamp_min(0)[..., None])

    def _read(self, column: Tensor) -> Tensor:
        """A column as `(B, Hkv, S, …)`: a view of even heads, else a copy padded with rows that `pos` marks as -1."""
        return self._grid(column)[:, :, :self.width] if self.even else column[self._slots(self.counts * 0, self.width)]

    def _write(self, column: Tensor, first: Tensor, value: Tensor) -> None:
        """Put `value (B, Hkv, n, …)` into each head from slot `first` on, but nothing beyond its rows."""
        n = value.shape[2]
        if self.even:
            self._grid(column)[:, :, int(first[0, 0]):int(first[0, 0]) + n] = value
        else:
            real = first[..., None] + torch.arange(n, device=first.device) < self.counts[..., None]
            column[self._slots(first, n)[real]] = value[real].to(column.dtype)

    def rows(self, rope: str = "post") -> Rows:
        if self.shared:
            pos = self.pos[None, None, :self.width]
        else:
            real = torch.arange(self.width, device=self.pos.device) < self.counts[..., None]
            pos = self._read(self.pos).masked_fill(~real, -1)
        read = {name: self._read(column) for name, column in self.columns.items()}
        return Rows(read["k"], read["v"], pos, read.get("w"), {name: read[name] for name in self.states}, rope)

    def append(self, k: Tensor, v: Tensor, pos: Tensor, spare: int) -> None:
        """Add `T` rows to every head; too small a storage is renewed with `spare` free slots a head beyond them."""
        first, new = self.counts, k.shape[2]
        if bool((first + new > self.room).any()):
            every = torch.arange(self.width, device=k.device)[None, None]
            every = every if self.even else every.masked_fill(every >= first[..., None], -1)
            self.keep(every, first, first + new + spare)
        self.resize(first + new, self.room)
        fresh = {"k": k, "v": v, "w": k.new_ones(k.shape[:3])}
        fresh |= {name: k.new_zeros(k.shape[:3]) for name in self.states}
        for name, column in self.columns.items():
            self._write(column, first, fresh[name])
        if self.shared:
            self.pos[self.width - new:self.width] = pos
        else:
            self._write(self.pos, first, pos.expand(*k.shape[:2], new))
        self.seen += new

    def update(self, name: str, value: Tensor) -> None:
        """Set a state column from `(B, Hkv, S)`."""
        self._write(self.columns[name], self.counts * 0, value)

    def keep(self, idx: Tensor, counts: Tensor, room: Tensor, merged: Rows | None = None) -> None:
        """Rows `idx` remain, in new storage; the old one, and the rows left in it, are given back.

        Args:
            idx: slots that stay, `(B, Hkv, C)` with -1 as padding at the end, or `(1, 1, C)` for all heads alike.
            counts, room: rows and slots of each head from now on, `(B, Hkv)`.
            merged: what replaces the kept keys, values and multiplicities, `(B, Hkv, C)` in the order of idx.
        """
        together = self.shared and idx.shape[:2] == (1, 1)
        if self.shared and not together:                 # from here on each head counts its own positions
            self.pos = self.pos.repeat(counts.numel())
        inside = torch.zeros(*counts.shape, int(room.max()), dtype=torch.long, device=idx.device)
        inside[..., :idx.shape[-1]] = idx.clamp_min(0)   # (B, Hkv, room); free slots repeat the first row
        owned = torch.arange(inside.shape[-1], device=idx.device) < room[..., None]
        source = (self.start[..., None] + inside)[owned]                   # (slots,) of the new storage
        pick = lambda column, rows: column[rows] if len(column) else column.new_zeros(len(rows), *column.shape[1:])
        self.columns = {name: pick(column, source) for name, column in self.columns.items()}
        self.pos = pick(self.pos, inside[0, 0] if together else source)
        self.shared = together
        self.resize(counts, room)
        if merged is not None:
            if merged.w is not None and "w" not in self.columns:
                self.columns["w"] = torch.ones(len(source), device=idx.device)
            for name, value in {"k": merged.k, "v": merged.v, "w": merged.w}.items():
                if value is not None:
                    self._write(self.columns[name], counts * 0, value)


class RaggedCache:
    """A cache that forgets by a policy; implements the `Cache` protocol of `tutor.model.cache`.

    A call with several new rows is a prefill: all of them are attended, then the policy compresses once, so a prompt
    given in one call is compressed after its whole attention. A prompt given in chunks is compressed after each chunk:
    memory never exceeds budget + chunk, and later chunks no longer see what went. A call with one row is a decode step:
    rows are evicted down to the budget as soon as they exceed it by `interval` (1: after each row).

    With a budget of at least the text's length nothing is evicted or moved, and the result is that of the full cache.

    Args:
        policy: what goes (`tutor.kvcache.make(name)`).
        budget: rows per KV head and layer, sinks and recent rows included; None only for a policy that evicts nothing.
        n_layers: layers of the model.
        rotate: `(keys before RoPE, positions) -> keys`, the model's own; needed by policies with `rerotate`.
        interval: rows above the budget at which decoding evicts.
        trace: `Recorder` of schema "kvcache.evict/1", or None; recording changes no result.
        trace_layers: layers whose evictions are recorded; all by default.
    """

    def __init__(self, policy: Policy, budget: int | None, n_layers: int, *, rotate: Rotate | None = None,
                 interval: int = 1, trace: Recorder | None = None, trace_layers: Iterable[int] | None = None):
        if n_layers < 1:
            raise ValueError(f"n_layers must be >= 1; got {n_layers}")
        if interval < 1:
            raise ValueError(f"interval must be >= 1; got {interval}")
        if budget is None and policy.evicts:
            raise ValueError(f"budget is None, but policy {policy.name!r} evicts; give the rows a head may keep")
        if budget is not None and budget < policy.least:
            raise ValueError(f"budget={budget} is too small for policy {policy!r}: its protected rows need at least "
                             f"{policy.least}; raise the budget")
        if policy.rerotate and rotate is None:
            raise ValueError(f"policy {policy.name!r} turns keys to their slot and needs rotate=: the model's RoPE "
                             "(tutor.attach passes it), or build the policy with rerotate=False")
        self.policy, self.budget, self.interval = policy, budget, interval
        self.trace, self.trace_layers = trace, set(range(n_layers) if trace_layers is None else trace_layers)
        self.can_rollback = not policy.evicts
        self.wants_observation = policy.evicts
        self._rotate = rotate
        self._layers: list[Store | None] = [None] * n_layers

    @classmethod
    def for_model(cls, model: Model, policy: Policy, budget: int | None = None, **settings: Any) -> RaggedCache:
        """A cache of the model's depth, with the model's rotation."""
        return cls(policy, budget, model.config.n_layers, rotate=model.rope.rotate, **settings)

    # ---------------------------------------------------------------------------------------------------- the protocol
    @property
    def seen(self) -> int:
        """Tokens that ever passed through: the next position, whatever was evicted."""
        return max((store.seen for store in self._layers if store), default=0)

    def append(self, layer: int, k_pre: Tensor, k: Tensor, v: Tensor, pos: Tensor) -> None:
        if pos.dim() != 1 or (len(pos) and int(pos.min()) < 0):
            raise ValueError(f"pos must be one row of positions >= 0 for the whole batch; got {tuple(pos.shape)}. "
                             "Batches with padding are not supported: run sequences of one length, or one by one")
        if self._layers[layer] is None:
            self._layers[layer] = Store(k, v, self.policy.columns)
        store = self._layers[layer]
        grow = 0 if store.seen == 0 else max(self.interval, store.seen // 64)
        if self.policy.evicts:                           # never more room than the budget will ask for
            most = store.width + k.shape[2]
            grow = min(grow, max(self._rows_of(layer) + self.interval - most, 0))
        store.append(k_pre if self.policy.rerotate else k, v, pos, grow)

    def view(self, layer: int, q: Tensor) -> list[Part]:
        rows = self._rows(layer)
        k = rows.k if rows.rope == "post" else self._rotate(rows.k, self.slot_positions(rows.pos))
        return [Part(k, rows.v, rows.pos[0, 0] if rows.pos.shape[:2] == (1, 1) else rows.pos, rows.w)]

    @staticmethod
    def slot_positions(pos: Tensor) -> Tensor:
        """Where rows stand when the cache is closed up behind the newest one: newest - (n - 1 - slot), int32.

        The paper numbers slots 0 … n-1 and gives the query the last number; shifting both by the same amount changes
        nothing, so here the newest row keeps its true position, where the model's queries already are. Rows of one call
        stand in the last slots, so this holds for each of its queries.

        Args:
            pos: `(…, S)`, ascending, -1 padded at the end. Returns the same shape, or `(S,)` for `(1, 1, S)`.
        """
        n = (pos >= 0).sum(-1, keepdim=True)
        slot = torch.arange(pos.shape[-1], device=pos.device)
        place = (pos.amax(-1, keepdim=True) - (n - 1 - slot).clamp_min(0)).to(torch.int32)
        return place[0, 0] if place.shape[:2] == (1, 1) else place

    def observe(self, layer: int, observation: Observation) -> None:
        store, policy = self._layers[layer], self.policy
        if not policy.evicts:
            return
        for name, value in policy.update(self._rows(layer), observation).items():
            store.update(name, value)
        limit = self._rows_of(layer) + (self.interval - 1 if observation.phase == "decode" else 0)
        if observation.phase not in policy.phases or float(store.counts.double().mean(-1).max()) <= limit:
            return
        rows = self._rows(layer)
        keep = policy.choose(rows, observation, self._rows_of(layer))
        if self.trace is not None and layer in self.trace_layers:
            self._record(layer, rows.pos, keep)
        counts = keep.counts.expand_as(store.counts)
        store.keep(keep.idx, counts, counts + self.interval, policy.merge(rows, keep))

    def truncate(self, length: int) -> None:
        self._must_roll_back("truncate")
        if not 0 <= length <= self.seen:
            raise ValueError(f"length must be in [0, {self.seen}]; got {length}")
        for store in filter(None, self._layers):
            store.resize(store.counts.clamp_max(length), store.room)
            store.seen = min(store.seen, length)

    def gather(self, base: int, idx: Tensor) -> None:
        self._must_roll_back("gather")
        idx = torch.as_tensor(idx, dtype=torch.long)
        if len(idx) and (int(idx.min()) < 0 or base + int(idx.max()) >= self.seen):
            raise ValueError(f"idx must point into rows [{base}, {self.seen}); got {idx.tolist()} from base {base}")
        slots = torch.cat([torch.arange(base), base + idx])      # in the order of idx: a path of a token tree
        for store in filter(None, self._layers):
            counts = torch.full_like(store.counts, len(slots))
            store.keep(slots[None, None].to(counts.device), counts, counts + self.interval)
            store.seen = len(slots)

    def fork(self) -> RaggedCache:
        """An independent copy: what one does from here on, the other does not see."""
        twin = copy.copy(self)
        twin._layers = copy.deepcopy(self._layers)
        return twin

    # ------------------------------------------------------------------------------------------------------------ sizes
    @property
    def rows(self) -> Tensor:
        """Rows held now, int64 `(L, B, Hkv)`; layers that were never used are left out."""
        held = [store.counts for store in self._layers if store]
        return torch.stack(held) if held else torch.zeros(0, 0, 0, dtype=torch.long)

    def positions(self, layer: int) -> list[list[Tensor]]:
        """Original positions held by each head, `positions(layer)[b][h]`, ascending."""
        store = self._layers[layer]
        if store is None:
            return []
        pos = store.rows().pos.expand(*store.counts.shape, -1)             # (B, Hkv, S)
        return [[head[head >= 0] for head in entry] for entry in pos]

    @property
    def nbytes(self) -> int:
        """Bytes of all storage that holds rows: keys, values, positions, multiplicities, free slots included."""
        return self._bytes(lambda store, name: name not in store.states)

    @property
    def state_nbytes(self) -> int:
        """Bytes of the policy's own per-row columns."""
        return self._bytes(lambda store, name: name in store.states)

    def _bytes(self, wanted: Callable[[Store, str], bool]) -> int:
        return sum(tensor.untyped_storage().nbytes() for store in self._layers if store
                   for name, tensor in {**store.columns, "pos": store.pos}.items() if wanted(store, name))

    # ---------------------------------------------------------------------------------------------------------- helpers
    def _rows(self, layer: int) -> Rows:
        return self._layers[layer].rows("pre" if self.policy.rerotate else "post")

    def _rows_of(self, layer: int) -> int:
        """Mean rows per head that a layer may hold."""
        return self.policy.shares.layer_rows(self.budget, layer, len(self._layers))

    def _record(self, layer: int, pos: Tensor, keep: Keep) -> None:
        heads = self._layers[layer].counts.shape[1]
        gone = (~keep.mask & (pos >= 0))[0].expand(heads, -1).nonzero()            # batch entry 0: (head, slot)
        pos, scores = pos[0].expand(heads, -1), keep.scores[0].expand(heads, -1)
        self.trace.events("evicted", layer=[layer] * len(gone), head=gone[:, 0], pos=pos[gone[:, 0], gone[:, 1]],
                          score=scores[gone[:, 0], gone[:, 1]].float())

    def _must_roll_back(self, what: str) -> None:
        if not self.can_rollback:
            raise ValueError(f"{what} needs every row, but policy {self.policy.name!r} evicts and cannot bring "
                             "rows back; speculate with the full cache (policy 'full', or no attach)")
