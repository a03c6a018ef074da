"""One decoding step over a few keys, on a CPU: gather the chosen rows, then attend to what was gathered.

Idea        A decoding step is bound by memory: each key and value is read once and used for two multiplications. Reading
            an eighth of them should take an eighth of the time; gathering them first, which plain torch must, means
            reading them, writing them side by side and reading them again: three eighths.
Rule        attend(q, k, v, keys) = softmax over k[keys]; elect(q, k) is TokenSelect's vote for one query in float32.
Cost        `traffic`: bytes of dense, of attending to chosen keys, and of the vote, which reads every key (half of dense).
See also    tutor.attention.methods.token_select (the reference of the vote), tutor.kernels.paged_decode (the same without
            the gather, on a GPU), benchmarks/sparse_decode.py (seconds), tests/attention/test_decode.py
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tutor.attention.dense import check_qkv, stack_groups
from tutor.attention.partial import Partial, from_logits
from tutor.attention.selection import Selection


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own attention for one query of each head, `(B, Hq, 1, Dv)`: the peer to beat.

    The query heads of a KV head are laid under each other, which torch answers faster than `enable_gqa`.
    """
    out = F.scaled_dot_product_attention(stack_groups(q, k.shape[1]), k, v)              # (B, Hkv, G, Dv)
    return out.reshape(*q.shape[:3], v.shape[3])


def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, *, scale: float | None = None) -> Partial:
    """Attention of one query of each head over chosen keys, in the dtype of the inputs.

    Args:
        q: `(B, Hq, 1, D)`; k, v: `(B, Hkv, S, D)`.
        keys: int64 `(K,)`, read by every head, or `(B, Hq, K)`, each head's own; -1 fills up shorter rows. No key twice.
    """
    _check(q, k, v)
    (b, hq, _, d), (hkv, s) = q.shape, k.shape[1:3]
    if keys.is_floating_point() or keys.shape not in {(keys.shape[-1],), (b, hq, keys.shape[-1])}:
        raise ValueError(f"keys must be whole numbers of shape (K,) or (B, Hq, K) = ({b}, {hq}, K); got {keys.dtype} "
                         f"{tuple(keys.shape)}")
    if keys.numel() and (int(keys.min()) < -1 or int(keys.max()) >= s):
        raise ValueError(f"keys must be in [0, {s}), or -1 for none; got {int(keys.min())} to {int(keys.max())}")
    scale = 1 / math.sqrt(d) if scale is None else scale
    readers = hkv if keys.ndim == 1 else hq                               # one set: a row is gathered once for G heads
    first = (torch.arange(b)[:, None] * hkv + torch.arange(readers) * hkv // readers) * s  # (B, readers) where a KV head begins
    read = (keys.clamp(min=0) + first[..., None]).flatten()               # row numbers: whole rows are copied, and fast
    rows = k.reshape(-1, d).index_select(0, read).reshape(b, readers, -1, d)
    values = v.reshape(-1, v.shape[3]).index_select(0, read).reshape(b, readers, -1, v.shape[3])
    logits = stack_groups(q, readers) @ rows.transpose(-1, -2) * scale                    # (B, readers, Hq / readers, K)
    absent = (keys if keys.ndim == 1 else keys[:, :, None]) < 0
    if absent.any():
        logits = logits.masked_fill(absent, float("-inf"))
    part = from_logits(logits, values)
    return Partial(part.o.reshape(b, hq, 1, -1), part.lse.reshape(b, hq, 1))


def elect(q: Tensor, k: Tensor, *, k_top: int, n_init: int, n_local: int) -> Tensor:
    """The keys that TokenSelect's soft vote gives one query of each head, ascending `(K,)`; `B = 1`."""
    _check(q, k)
    if q.shape[0] != 1:
        raise ValueError(f"one text votes at a time; got B = {q.shape[0]}")
    s = k.shape[2]
    if n_init + k_top + n_local >= s:
        return torch.arange(s)
    shares = stack_groups(q, k.shape[1]) @ k[:, :, n_init:s - n_local].transpose(-1, -2)  # (1, Hkv, G, C)
    votes = torch.softmax(shares * q.shape[3] ** -0.5, -1).sum((0, 1, 2))                 # (C,)
    chosen = votes.topk(k_top).indices.sort().values + n_init
    return torch.cat((torch.arange(n_init), chosen, torch.arange(s - n_local, s)))


def keys_of(sel: Selection) -> Tensor:
    """The keys of a selection with one query, as `attend` wants them: `(K,)` where all heads agree, else `(B, Hq, K)`."""
    if sel.shape[2] != 1:
        raise ValueError(f"a decoding step has one query a head; the selection has T = {sel.shape[2]}")
    mask = sel.mask()[:, :, 0]                                                            # (B, Hq, S)
    if bool((mask == mask[:1, :1]).all()):
        return mask[0, 0].nonzero()[:, 0]
    most = int(mask.sum(-1).max())
    order = torch.where(mask, torch.arange(mask.shape[-1]), mask.shape[-1]).sort(-1).values[..., :most]
    return torch.where(order < mask.shape[-1], order, -1)


def traffic(s: int, keys: int, *, hq: int, hkv: int, d: int, size: int = 4, shared: bool = True) -> dict[str, int]:
    """Bytes that pass between memory and processor in one step of one layer; queries and outputs are too few to count.

    "dense" reads S keys and values of each KV head. "attend" reads `keys` of them, writes them side by side and reads
    them again; for each KV head, or for each query head unless `shared`. "vote" reads all S keys, no values.
    """
    row, heads = d * size, hkv if shared else hq
    return {"dense": 2 * hkv * s * row, "attend": 3 * 2 * heads * keys * row, "vote": hkv * s * row}


def recorded() -> dict:
    """The run that benchmarks/sparse_decode.py recorded."""
    from tutor.data import result

    return result("sparse-decode-cpu")


def _check(q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
    check_qkv(q, k, v)
    if q.shape[2] != 1:
        raise ValueError(f"a decoding step has one query a head; got T = {q.shape[2]}")
