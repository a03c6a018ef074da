"""Token tree: what a drafter proposes and a verifier walks.

Idea        A decoder that has its weights in hand anyway may as well score many possible continuations at once. They
            share prefixes, so they form a tree; its root is the *pending token*, which is already part of the text but
            whose key and value are not in the cache yet. Row 0 of a verification therefore always yields a token.
Rule        Row i attends to row j of the tree when j is i or an ancestor of i (and to the whole committed text).
            Its position is L + depth(i), so siblings share a position; L is the number of committed tokens.
Cost        O(M · depth) for everything derived; a verification carries M rows.
Paper       Miao et al., SpecInfer, section 4 (token tree, topology-aware mask). [miao2024specinfer]
Differs     the root is the pending token, not the last cached one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenTree:
    """M tokens in topological order: a parent stands before its children.

    Attributes:
        tokens: int64 `(M,)`; `tokens[0]` is the pending token.
        parent: int64 `(M,)`; -1 for the root, else `parent[i] < i`.
        qprob: float64 `(M,)`, the probability with which each node was sampled from what was then left of its draft
            distribution; nan for a node that was not sampled (the root, a retrieved token). None: nothing was sampled.
        qdist: float64 `(M, V)`, the draft distribution at each node, from which its children were sampled; rows of
            leaves are not read. None: nothing was sampled.
        replacement: how siblings were sampled: True independently, False each from what the earlier ones left over.
            None: unknown or not sampled.
        pruned: some sampled sibling was dropped after its token had been seen. Then `qprob` no longer tells how the
            tree came about, and a verifier that uses it would bend the law.

    Raises:
        ValueError: the tree has no node, the root has a parent, or a parent does not stand before its child.
    """

    tokens: Tensor
    parent: Tensor
    qprob: Tensor | None = None
    qdist: Tensor | None = None
    replacement: bool | None = None
    pruned: bool = False

    def __post_init__(self):
        set_ = lambda name, value: object.__setattr__(self, name, value)
        set_("tokens", torch.as_tensor(self.tokens, dtype=torch.long))
        set_("parent", torch.as_tensor(self.parent, dtype=torch.long))
        n = len(self.tokens)
        if n == 0:
            raise ValueError("a token tree needs at least its root (the pending token); got n = 0")
        if self.tokens.shape != (n,) or self.parent.shape != (n,):
            raise ValueError(f"tokens and parent must be vectors of one length; got {tuple(self.tokens.shape)} "
                             f"and {tuple(self.parent.shape)}")
        parent = self.parent.tolist()
        if parent[0] != -1:
            raise ValueError(f"node 0 is the root, its parent must be -1; got parent[0] = {parent[0]}")
        for i, up in enumerate(parent[1:], start=1):
            if not 0 <= up < i:
                raise ValueError(f"node {i} has parent {up}; a parent must stand before its child (0 <= parent < {i})")
        if self.qprob is not None and self.qprob.shape != (n,):
            raise ValueError(f"qprob must have one entry per node ({n}); got shape {tuple(self.qprob.shape)}")
        if self.qdist is not None and (self.qdist.ndim != 2 or len(self.qdist) != n):
            raise ValueError(f"qdist must be (M, V) with M = {n}; got shape {tuple(self.qdist.shape)}")

    # ---------------------------------------------------------------------------------------------------- making one
    @classmethod
    def root(cls, pending: int) -> TokenTree:
        """Nothing drafted: the pending token alone, i.e. one step of autoregressive decoding."""
        return cls(torch.tensor([pending]), torch.tensor([-1]))

    @classmethod
    def chain(cls, pending: int, drafted: Sequence[int], qdist: Tensor | None = None) -> TokenTree:
        """A path. `qdist` `(gamma, V)` holds the distribution that each drafted token was sampled from.

        >>> TokenTree.chain(7, [8, 9]).parent.tolist()
        [-1, 0, 1]
        """
        tokens = torch.tensor([pending, *drafted])
        n = len(tokens)
        parent = torch.arange(n) - 1
        if qdist is None:
            return cls(tokens, parent)
        if len(qdist) != n - 1:
            raise ValueError(f"qdist must have one row per drafted token ({n - 1}); got {len(qdist)}")
        qprob = torch.full((n,), float("nan"), dtype=torch.float64)
        qprob[1:] = qdist[torch.arange(n - 1), tokens[1:]]
        return cls(tokens, parent, qprob, torch.cat([qdist, torch.zeros_like(qdist[:1])]) if n > 1 else None, False)

    @classmethod
    def from_paths(cls, pending: int, paths: Sequence[Sequence[int]]) -> TokenTree:
        """The trie of some continuations: shared prefixes become shared nodes. Deterministic, so `match` verifies it.

        >>> TokenTree.from_paths(0, [[5, 6], [5, 7], [8]]).parent.tolist()
        [-1, 0, 1, 1, 0]
        """
        tokens, parent, child = [pending], [-1], {}
        for path in paths:
            node = 0
            for token in path:
                if (node, token) not in child:
                    child[node, token] = len(tokens)
                    tokens.append(token)
                    parent.append(node)
                node = child[node, token]
        return cls(torch.tensor(tokens), torch.tensor(parent))

    # ------------------------------------------------------------------------------------------------------- derived
    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        return bool((self.parent == torch.arange(len(self)) - 1).all())

    @property
    def sampled(self) -> bool:
        """Every drafted node came from a known draft distribution, and none was dropped since."""
        return (self.qdist is not None and self.qprob is not None and not self.pruned
                and not bool(self.qprob[1:].isnan().any()))

    def depth(self) -> Tensor:
        """Distance from the root, int64 `(M,)`."""
        depth = [0]
        for up in self.parent.tolist()[1:]:
            depth.append(depth[up] + 1)
        return torch.tensor(depth)

    def positions(self, length: int) -> Tensor:
        """RoPE position of each row when `length` tokens are committed, int64 `(M,)`."""
        return length + self.depth()

    def mask(self) -> Tensor:
        """bool `(M, M)`: row i may read column j, i.e. j is i or one of its ancestors.

        >>> TokenTree.from_paths(0, [[1], [2]]).mask().int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
        """
        mask = torch.eye(len(self), dtype=torch.bool)
        for i, up in enumerate(self.parent.tolist()):
            if up >= 0:
                mask[i] |= mask[up]                     # a parent's row is complete: it stands before its child
        return mask

    def children(self, node: int) -> list[int]:
        """Children of a node in the order in which they were drafted."""
        return (self.parent == node).nonzero().flatten().tolist()

    def leaves(self) -> list[int]:
        inner = set(self.parent.tolist())
        return [i for i in range(len(self)) if i not in inner]

    def path_to(self, node: int) -> list[int]:
        """Nodes from the root to `node`, both included."""
        path, parent = [], self.parent.tolist()
        while node >= 0:
            path.append(node)
            node = parent[node]
        return path[::-1]

    def paths(self) -> Tensor:
        """Root-to-leaf paths, int64 `(leaves, deepest + 1)`, padded with -1."""
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(self.path_to(leaf)) for leaf in self.leaves()],
                                               batch_first=True, padding_value=-1)

    # -------------------------------------------------------------------------------------------------- rearranging
    def permute(self, order: Sequence[int]) -> TokenTree:
        """The same tree with node `order[i]` in row i. `order` keeps parents before children and siblings in order:
        the recursive verifier tests siblings as they were drafted, so swapping two would change the law."""
        order = torch.as_tensor(order, dtype=torch.long)
        if sorted(order.tolist()) != list(range(len(self))):
            raise ValueError(f"order must name every node 0..{len(self) - 1} once; got {order.tolist()}")
        row = torch.empty_like(order)
        row[order] = torch.arange(len(order))           # old node -> new row
        last: dict[int, int] = {}
        for i, up in enumerate(self.parent.tolist()):
            if int(row[i]) < last.get(up, -1):
                raise ValueError(f"order puts node {i} before an earlier child of node {up}; keep siblings in order")
            last[up] = int(row[i])
        parent = self.parent[order]
        parent = torch.where(parent < 0, parent, row[parent.clamp(min=0)])
        pick = lambda t: None if t is None else t[order]
        return replace(self, tokens=self.tokens[order], parent=parent, qprob=pick(self.qprob), qdist=pick(self.qdist))

    def bfs_order(self) -> list[int]:
        """Layer by layer: how trees grow. Depths ascend, ties to the lower index."""
        return torch.argsort(self.depth(), stable=True).tolist()

    def dfs_order(self) -> list[int]:
        """Root, then each subtree as one block: fewer blocks of the mask are touched than in `bfs_order`."""
        order, stack = [], [0]
        while stack:
            node = stack.pop()
            order.append(node)
            stack.extend(reversed(self.children(node)))
        return order

    def cut(self, depth: int) -> TokenTree:
        """Without the nodes below `depth`. It looks at no token, so a sampled tree stays fit for every verifier."""
        if depth < 0:
            raise ValueError(f"depth must be >= 0; got {depth}")
        keep = self.depth() <= depth
        return self if bool(keep.all()) else self._keep(keep, self.pruned)

    def prune(self, keep: Tensor) -> TokenTree:
        """Only the nodes where `keep` bool `(M,)` is true; marks a sampled tree as `pruned`."""
        keep = torch.as_tensor(keep, dtype=torch.bool)
        if keep.shape != (len(self),) or not bool(keep[0]):
            raise ValueError(f"keep must be bool ({len(self)},) and keep the root; got shape {tuple(keep.shape)}")
        orphans = (keep[1:] & ~keep[self.parent[1:]]).nonzero().flatten()
        if len(orphans):
            raise ValueError(f"node {int(orphans[0]) + 1} is kept but its parent is not; keep whole paths")
        return self._keep(keep, self.qprob is not None or self.pruned)

    def _keep(self, keep: Tensor, pruned: bool) -> TokenTree:
        row = keep.cumsum(0) - 1
        parent = self.parent[keep]
        parent = torch.where(parent < 0, parent, row[parent.clamp(min=0)])
        pick = lambda t: None if t is None else t[keep]
        return replace(self, tokens=self.tokens[keep], parent=parent, qprob=pick(self.qprob), qdist=pick(self.qdist),
                       pruned=pruned)
