"""Lightning Attention-2: linear attention with decay, in blocks, at a cost per token that no length changes.

Idea        Drop the softmax and the sum over keys factors: all that a query needs of the past is one matrix, the state,
            in which older tokens fade. Token by token the state is a long chain of tiny steps, bad for hardware. Cut
            the text in blocks: inside a block multiply queries with keys, left to right; between blocks use the state.
Rule        o_i = sum_{j <= i} e^{-s(i-j)} (q_i·k_j) v_j, with s >= 0 for each KV head; no 1/sqrt(D), no denominator.
            Rows r, c = 0 .. L-1 of a block, state KV after the last token before it:
            O = [(Q K^T) * M] V + e^{-s(r+1)} Q KV, with M_rc = e^{-s(r-c)} for r >= c, else 0
            KV <- e^{-sL} KV + (e^{-s(L-1-r)} K)^T V
            Every exponent is a difference formed before it is raised to e: none is positive, nothing overflows.
Cost        4 D Dv + 2 block (D + Dv) operations per token and head, whatever the length; the state takes D Dv words.
            Every row of q, k, v and o is moved once, the state twice a call. Softmax attention spends 2 n (D + Dv).
Paper       Qin et al. 2024, Lightning Attention-2, section 3.2 (algorithm 1 forward, algorithm 2 backward);
            section numbers unverified.
Differs     The paper writes powers of lambda and their inverse, and the published kernel keeps a state that has faded once
            more, for the token to come (right by itself). Here the state is the one after the last token, so that a
            prefill in blocks can be handed to `recurrent_step` as it is.
            One decay per KV head: query heads that share keys share the state (a decay for each query head would need
            a state for each). No gradient for s, which is fixed in training. Norm and gate of the layer are left out.
            The result has no log-sum-exp: there is no softmax, parts of the past simply add.
See also    flash (softmax in tiles), transnormer (a layer around it), tutor/kernels/lightning.py,
            tests/attention/test_lightning.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv, stack_groups
from tutor.catalog import method
from tutor.cost import Cost


class Attended(NamedTuple):
    """Output `o (B, Hq, T, Dv)` and the state `(B, Hkv, D, Dv)` after the last token, which continues the text."""

    o: Tensor
    state: Tensor


class Grads(NamedTuple):
    """Gradients of q, k, v, and of the state that the text began with."""

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor


class Decays(NamedTuple):
    """What fades in a block of L tokens, G query heads stacked: every entry lies in [0, 1].

    Attributes:
        mask: `(Hkv, G*L, L)`, from key c to query r: e^{-s(r-c)}, 0 where c > r.
        since: `(Hkv, G*L, 1)`, from the state before the block to query r: e^{-s(r+1)}.
        until: `(Hkv, L, 1)`, from key r to the end of the block: e^{-s(L-1-r)}.
        whole: `(Hkv, 1, 1)`, from the state before the block to its end: e^{-sL}.
    """

    mask: Tensor
    since: Tensor
    until: Tensor
    whole: Tensor


def slopes(heads: int, layer: int = 0, layers: int = 1) -> Tensor:
    """Decay rates `(heads,)` of a layer, float64: 2^{-8(h+1)/heads} (1 - layer/(layers-1) + 1e-5).

    The last layer hardly forgets. This is the rule of the published code; the paper's text gives another (unverified).
    """
    if heads < 1 or not 0 <= layer < layers:
        raise ValueError(f"need heads >= 1 and 0 <= layer < layers; got heads={heads}, layer={layer}, layers={layers}")
    fade = 1 - layer / max(layers - 1, 1) + 1e-5
    return fade * 2.0 ** (-8 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)


# ------------------------------------------------------------------------------------- one definition, four forms

def naive(q: Tensor, k: Tensor, v: Tensor, s: Tensor, *, state: Tensor | None = None) -> Attended:
    """The definition, with its T x T matrix: quadratic, and the truth for the other two forms."""
    dtype = q.dtype
    q, k, v, s, state = _ready(q, k, v, s, state)
    groups, t = q.shape[1] // k.shape[1], torch.arange(q.shape[2], device=q.device)
    gap = t[:, None] - t                                                                   # (T, T)
    fade = torch.exp(-s[:, None, None] * gap.clamp(min=0)) * (gap >= 0)                    # (Hkv, T, T)
    wide = [x.repeat_interleave(groups, -3) for x in (k, v, fade, state)]                  # one copy per query head
    since = torch.exp(-s[:, None] * (t + 1)).repeat_interleave(groups, 0)[..., None]       # (Hq, T, 1)
    o = (q @ wide[0].transpose(-1, -2) * wide[2]) @ wide[1] + since * (q @ wide[3])
    until = torch.exp(-s[:, None] * t.flip(0))[..., None]                                  # (Hkv, T, 1)
    state = torch.exp(-s * len(t))[:, None, None] * state + (until * k).transpose(-1, -2) @ v
    return Attended(o.to(dtype), state)


def recurrent_step(q: Tensor, k: Tensor, v: Tensor, s: Tensor, state: Tensor | None = None) -> Attended:
    """One token: `q (B, Hq, 1, D)`, `k (B, Hkv, 1, D)`, `v (B, Hkv, 1, Dv)`. The decode step.

    KV <- e^{-s} KV + k^T v;  o = q KV.
    """
    if q.shape[2] != 1:
        raise ValueError(f"recurrent_step takes one token; got q of length {q.shape[2]}. Use Lightning().attend")
    dtype, shape = q.dtype, q.shape
    q, k, v, s, state = _ready(q, k, v, s, state)
    state = torch.exp(-s)[:, None, None] * state + k.transpose(-1, -2) @ v
    return Attended((stack_groups(q, k.shape[1]) @ state).reshape(*shape[:-1], v.shape[3]).to(dtype), state)


def recurrence(q: Tensor, k: Tensor, v: Tensor, s: Tensor, *, state: Tensor | None = None) -> Attended:
    """The whole text token by token: linear, but a chain as long as the text."""
    q_, k_, v_, s, state = _ready(q, k, v, s, state)
    o = q_.new_zeros(*q.shape[:-1], v.shape[3])                                            # (B, Hq, T, Dv)
    for t in range(q.shape[2]):
        now = slice(t, t + 1)
        o[:, :, now], state = recurrent_step(q_[:, :, now], k_[:, :, now], v_[:, :, now], s, state)
    return Attended(o.to(q.dtype), state)


def tiled(q: Tensor, k: Tensor, v: Tensor, s: Tensor, *, block: int = 64) -> Tensor:
    """The first Lightning Attention: `naive` in tiles, without a state. No T x T matrix, but every tile below the diagonal.

    Operations still grow with the square of the text; what the second version changed is all tiles but the diagonal ones.
    """
    dtype, kv_heads = q.dtype, k.shape[1]
    q_, k_, v_, s, _ = _ready(q, k, v, s, None)
    outputs = []
    for i, qb in enumerate(q_.split(block, 2)):
        rows, t = stack_groups(qb, kv_heads), i * block + torch.arange(qb.shape[2], device=q.device)
        o = 0
        for j, (kb, vb) in enumerate(zip(k_.split(block, 2)[:i + 1], v_.split(block, 2))):
            gap = t[:, None] - j * block - torch.arange(kb.shape[2], device=q.device)      # (L, Lk)
            fade = torch.exp(-s[:, None, None] * gap.clamp(min=0)) * (gap >= 0)            # (Hkv, L, Lk)
            o = o + (rows @ kb.transpose(-1, -2) * fade.repeat(1, q.shape[1] // kv_heads, 1)) @ vb
        outputs.append(o.reshape(*qb.shape[:-1], v.shape[3]))
    return torch.cat(outputs, 2).to(dtype)


@method("lightning", "attention", "Lightning Attention-2", paper="qin2024lightning2", kernel="tutor.kernels.lightning.lightning",
        flags=("attends", "linear", "exact"), grid=({"block": 16}, {"block": 64}, {"block": 256}))
@dataclass(frozen=True)
class Lightning:
    """The block form: products inside a block, the state between blocks.

    Attributes:
        block: tokens of a block; results agree for any, operations grow with it, the chain between blocks gets shorter.
    """

    block: int = 64

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(f"block must be >= 1 (tokens); got {self.block}")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, s: Tensor | None = None, *, state: Tensor | None = None) -> Attended:
        """Decayed linear attention over a text, or over its next piece.

        Args:
            q, k, v: `(B, Hq, T, D)`, `(B, Hkv, T, D)`, `(B, Hkv, T, Dv)`.
            s: `(Hkv,)` decay rates >= 0 (lambda = e^{-s}); `slopes(Hkv)` unless given.
            state: `(B, Hkv, D, Dv)` after all earlier tokens; zeros unless given. Half precision is computed in float32.
        """
        dtype, outputs = q.dtype, []
        q, k, v, s, state = _ready(q, k, v, slopes(k.shape[1]) if s is None else s, state)
        for qb, kb, vb in zip(*(x.split(self.block, 2) for x in (q, k, v))):
            fade, rows = decays(s, qb, kb), stack_groups(qb, kb.shape[1])                  # (B, Hkv, G*L, D)
            o = (rows @ kb.transpose(-1, -2) * fade.mask) @ vb + fade.since * (rows @ state)
            state = absorb(state, kb, vb, fade)
            outputs.append(o.reshape(*qb.shape[:-1], v.shape[3]))                          # (B, Hq, L, Dv)
        return Attended(torch.cat(outputs, 2).to(dtype), state)

    def cost(self, q: Tensor, k: Tensor, v: Tensor) -> Cost:
        """Operations of the matrix products, masked pairs included, and words moved when the state stays on the chip."""
        (batch, hq, t, d), hkv, dv = q.shape, k.shape[1], v.shape[3]
        sizes = [min(self.block, t - start) for start in range(0, t, self.block)]
        flops = sum(2 * hq * (n * n * (d + dv) + n * d * dv) + 2 * hkv * n * d * dv for n in sizes)
        return Cost(flops=batch * flops, words=batch * ((hq + hkv) * t * (d + dv) + 2 * hkv * d * dv))


def lightning_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, s: Tensor, *, block: int = 64,
                       state: Tensor | None = None, dstate: Tensor | None = None) -> Grads:
    """Gradients by hand, in blocks: a pass forward rebuilds the states for dq, a pass back carries the state's gradient.

    dQ = dA K + e^{-s(r+1)} dO KV^T, with A = (Q K^T) * M and dA = (dO V^T) * M
    dK = dA^T Q + e^{-s(L-1-r)} V dKV^T;  dV = A^T dO + e^{-s(L-1-r)} K dKV
    dKV <- e^{-sL} dKV + (e^{-s(r+1)} Q)^T dO

    Args:
        do: gradient of the output, `(B, Hq, T, Dv)`.
        q, k, v, s, state: what `attend` was given.
        dstate: gradient `(B, Hkv, D, Dv)` of the state after the last token, from the pieces of text that follow.
    """
    block = Lightning(block).block                                                         # checked there
    if do.shape != (*q.shape[:-1], v.shape[-1]):
        raise ValueError(f"do must have the output's shape {(*q.shape[:-1], v.shape[-1])}; got {tuple(do.shape)}")
    dtype, kv_heads = q.dtype, k.shape[1]
    q, k, v, s, state = _ready(q, k, v, s, state)
    dstate = torch.zeros_like(state) if dstate is None else _checked_state(dstate, state.shape, "dstate").to(state)
    blocks = list(zip(*(x.split(block, 2) for x in (do.to(q), q, k, v))))
    dq, dk, dv = [], [], []
    for dob, qb, kb, vb in blocks:
        fade, rows, drows = decays(s, qb, kb), stack_groups(qb, kv_heads), stack_groups(dob, kv_heads)
        a, da = (x @ y.transpose(-1, -2) * fade.mask for x, y in ((rows, kb), (drows, vb)))  # (B, Hkv, G*L, L)
        dq.append((da @ kb + fade.since * (drows @ state.transpose(-1, -2))).reshape(qb.shape))
        dk.append(da.transpose(-1, -2) @ rows)                                             # sums over the query heads
        dv.append(a.transpose(-1, -2) @ drows)
        state = absorb(state, kb, vb, fade)
    for i, (dob, qb, kb, vb) in reversed(list(enumerate(blocks))):
        fade, rows, drows = decays(s, qb, kb), stack_groups(qb, kv_heads), stack_groups(dob, kv_heads)
        dk[i] = dk[i] + fade.until * (vb @ dstate.transpose(-1, -2))
        dv[i] = dv[i] + fade.until * (kb @ dstate)
        dstate = fade.whole * dstate + (fade.since * rows).transpose(-1, -2) @ drows
    return Grads(*(torch.cat(x, 2).to(dtype) for x in (dq, dk, dv)), dstate)


# ----------------------------------------------------------------------------------------------- parts of a block

def decays(s: Tensor, q: Tensor, k: Tensor) -> Decays:
    """The four decays of a block with queries `q (B, Hq, L, D)` and keys `k (B, Hkv, L, D)`."""
    col = torch.arange(k.shape[2], device=k.device)                                        # (L,)
    row = col.repeat(q.shape[1] // k.shape[1])                                             # (G*L,)
    s, gap = s[:, None, None], row[:, None] - col
    return Decays(torch.exp(-s * gap.clamp(min=0)) * (gap >= 0), torch.exp(-s * (row[:, None] + 1)),
                  torch.exp(-s * col.flip(0)[:, None]), torch.exp(-s * len(col)))


def absorb(state: Tensor, k: Tensor, v: Tensor, fade: Decays) -> Tensor:
    """The state after a block: what was there fades over the whole block, each key from its row to the end."""
    return fade.whole * state + (fade.until * k).transpose(-1, -2) @ v


def _ready(q: Tensor, k: Tensor, v: Tensor, s: Tensor, state: Tensor | None) -> tuple[Tensor, ...]:
    """Check everything; float64 stays float64, all else becomes float32."""
    check_qkv(q, k, v)
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"linear attention reads as many keys as queries; got T = {q.shape[2]} and S = {k.shape[2]}. "
                         "Pass earlier keys as `state`, the second result of the call that read them")
    s = torch.as_tensor(s, device=q.device)
    if s.shape != (k.shape[1],):
        raise ValueError(f"s must hold one decay rate per KV head, shape ({k.shape[1]},); got {tuple(s.shape)}. "
                         "For a rate per query head, repeat k and v")
    if not bool(((s >= 0) & torch.isfinite(s)).all()):
        raise ValueError(f"s must be finite and >= 0, so that lambda = exp(-s) is in (0, 1]; got {s.tolist()}")
    dtype, shape = torch.float64 if q.dtype == torch.float64 else torch.float32, (*k.shape[:2], k.shape[3], v.shape[3])
    state = torch.zeros(shape, device=q.device) if state is None else _checked_state(state, shape, "state")
    return tuple(x.to(dtype) for x in (q, k, v, s, state))


def _checked_state(state: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if state.shape != tuple(shape):
        raise ValueError(f"{name} must have shape (B, Hkv, D, Dv) = {tuple(shape)}; got {tuple(state.shape)}")
    return state
