"""FlashRNN: recurrent networks that carry a state through every token, step by step.

Idea        Attention looks back; a recurrent network remembers. Its state is updated by every token in turn, so it can
            count and follow a machine through its states, which a fixed number of attention layers cannot. The price is
            that time cannot be cut into parallel pieces. FlashRNN makes each step cheap: heads make the recurrent
            matrix block-diagonal, and one kernel keeps it on the chip through all steps.
Rule        g_t = W x_t + R s_{t-1} + b, one pre-activation for each gate; s_t = cell(g_t, s_{t-1}). The first state is
            the recurrent one; R is one (Dh, Dh) matrix for each gate and head. With sigma the logistic function:
            elman   h = tanh(g)
            lstm    c = sigma(f) c + sigma(i) tanh(z);  h = sigma(o) tanh(c)
            gru     h = z h + (1 - z) tanh(n_in + r n_rec), with r and z through sigma
            slstm   m' = max(i, log sigma(f) + m) (m' = i while n = 0);  i' = e^(i - m'), f' = e^(log sigma(f) + m - m');
                    c = f' c + i' tanh(z);  n = max(f' n + i', 1);  y = sigma(o) c / n
Backward    Through time, last step first: the cell's own derivative, then R^T for what goes to the step before. The
            gradient of R is one large product after the loop: dR = sum_t dg_t s_{t-1}^T.
Cost        2 G Nh Dh^2 operations a token for the recurrence. Bytes of R: read at every step ("alternating" kernels), or
            once ("fused", while it fits in the registers and shared memory of the chip).
Paper       Pöppel et al. 2024, sections 2 (cells and heads), 3 (alternating and fused kernels) and 4 (the integer
            constraints); section numbers unverified. Cells and orders of gates are those of the published code.
Differs     States of all steps are returned, as there; the input projection W x stays outside, as there. The pointwise
            derivative of a cell comes from autograd, so that a cell is written once; the loop through time is by hand.
            The solver of the integer constraints searches all tilings; the paper hands them to a constraint solver.
See also    lightning (a recurrence without R, hence parallel in time), tutor/kernels/rnn.py, tests/attention/test_flash_rnn.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tutor.catalog import method
from tutor.cost import Cost


class Cell(NamedTuple):
    """A kind of recurrent cell.

    Attributes:
        states: names of its states; the first one is multiplied by R.
        bias: names of its pre-activations, in the order of `b`.
        recurrent, inputs: which of them R and W x feed, in the order of `R` and `wx`.
        step: `(pre-activations by name, states) -> states`, pointwise; every tensor `(B, Nh, Dh)`.
    """

    states: tuple[str, ...]
    bias: tuple[str, ...]
    recurrent: tuple[str, ...]
    inputs: tuple[str, ...]
    step: Callable[[dict[str, Tensor], tuple[Tensor, ...]], tuple[Tensor, ...]]


def _elman(g, states):
    return (torch.tanh(g["z"]),)


def _lstm(g, states):
    _, c = states
    c = torch.sigmoid(g["f"]) * c + torch.sigmoid(g["i"]) * torch.tanh(g["z"])
    return torch.sigmoid(g["o"]) * torch.tanh(c), c


def _gru(g, states):
    (h,) = states
    r, z = torch.sigmoid(g["r"]), torch.sigmoid(g["z"])
    return (z * h + (1 - z) * torch.tanh(g["n_in"] + r * g["n_rec"]),)


def _slstm(g, states):
    _, c, n, m = states
    kept = logsigmoid(g["f"]) + m
    top = torch.where((n == 0).all(), g["i"], torch.maximum(g["i"], kept))   # the first token has nothing to keep
    write = torch.exp(g["i"] - top)
    keep = torch.exp((kept - top).clamp(max=0))    # above 0 at the first token only: infinity times an empty state is NaN
    c = keep * c + write * torch.tanh(g["z"])
    n = torch.clamp(keep * n + write, min=1.0)
    return torch.sigmoid(g["o"]) * c / n, c, n, top


CELLS = {
    "elman": Cell(("h",), ("z",), ("z",), ("z",), _elman),
    "lstm": Cell(("h", "c"), ("i", "f", "z", "o"), ("i", "f", "z", "o"), ("i", "f", "z", "o"), _lstm),
    "gru": Cell(("h",), ("n_rec", "r", "z", "n_in"), ("n_rec", "r", "z"), ("r", "z", "n_in"), _gru),
    "slstm": Cell(("y", "c", "n", "m"), ("i", "f", "z", "o"), ("i", "f", "z", "o"), ("i", "f", "z", "o"), _slstm),
}


class Recurred(NamedTuple):
    """States after every step `(S, B, T, Nh, Dh)` (the first is the output) and after the last `(S, B, 1, Nh, Dh)`."""

    states: Tensor
    last: Tensor


@method("flash_rnn", "attention", "FlashRNN", paper="poppel2024flashrnn", kernel="tutor.kernels.rnn.rnn",
        flags=("recurrent",))
@dataclass(frozen=True)
class FlashRNN:
    """A recurrent network with `cell` in elman, lstm, gru, slstm."""

    cell: str = "lstm"

    def __post_init__(self):
        cell_of(self.cell)

    def run(self, wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None = None) -> tuple[Recurred, Cost]:
        """See `rnn`."""
        batch, steps, _, heads, width = wx.shape
        gates = R.shape[0]
        return rnn(wx, R, b, states, cell=self.cell), Cost(
            flops=2 * batch * steps * gates * heads * width**2, bytes_read=traffic(steps, gates, heads, width, wx.element_size()))


def cell_of(name: str) -> Cell:
    if name not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}; got {name!r}")
    return CELLS[name]


def rnn(wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None = None, *, cell: str = "lstm") -> Recurred:
    """Run a recurrent network over T tokens.

    Args:
        wx: `(B, T, G, Nh, Dh)`, the input's share of the pre-activations, gates in the order of `CELLS[cell].inputs`.
        R: `(G, Nh, Dh, Dh)`, recurrent matrices, `g[e] += sum_d R[e, d] s[d]`, in the order of `.recurrent`.
        b: `(G, Nh, Dh)`, in the order of `.bias`.
        states: `(S, B, 1, Nh, Dh)` to start from; zeros unless given.
    """
    kind, state = _checked(wx, R, b, states, cell)
    seen = []
    for t in range(wx.shape[1]):
        state = kind.step(_preactivations(kind, wx[:, t], R, b, state[0]), state)
        seen.append(torch.stack(state))
    last = torch.stack(state)[:, :, None]
    return Recurred(torch.stack(seen, 2) if seen else last[:, :, :0], last)


def _preactivations(kind: Cell, wx: Tensor, R: Tensor, b: Tensor, h: Tensor) -> dict[str, Tensor]:
    """One `(B, Nh, Dh)` for each name of `kind.bias`; `wx (B, G, Nh, Dh)`, `h (B, Nh, Dh)`."""
    g = {name: b[i].expand_as(h) for i, name in enumerate(kind.bias)}
    for i, name in enumerate(kind.inputs):
        g[name] = g[name] + wx[:, i]
    for i, name in enumerate(kind.recurrent):
        g[name] = g[name] + torch.einsum("ned,bnd->bne", R[i], h)
    return g


def rnn_backward(wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None, d_states: Tensor, *,
                 cell: str = "lstm") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `rnn` by hand, back through time.

    Args:
        wx, R, b, states: as given to `rnn`.
        d_states: `(S, B, T, Nh, Dh)`, gradient with respect to the states after every step.

    Returns:
        `(d_wx, d_R, d_b, d_start)`, shaped as `wx`, `R`, `b` and `(S, B, 1, Nh, Dh)`.
    """
    kind, state = _checked(wx, R, b, states, cell)
    before = [state]                                                       # the state that each step started from
    for t in range(wx.shape[1]):
        before.append(kind.step(_preactivations(kind, wx[:, t], R, b, before[-1][0]), before[-1]))
    d_state = [torch.zeros_like(x) for x in state]
    d_gates = []                                                           # of each step, last first: (gates, B, Nh, Dh)
    for t in reversed(range(wx.shape[1])):
        g = _preactivations(kind, wx[:, t], R, b, before[t][0])
        d_state = [x + d_states[i, :, t] for i, x in enumerate(d_state)]
        _, pull = torch.func.vjp(lambda g, s: kind.step(g, s), g, before[t])
        d_g, d_state = pull(tuple(d_state))
        d_state = list(d_state)
        for i, name in enumerate(kind.recurrent):
            d_state[0] = d_state[0] + torch.einsum("ned,bne->bnd", R[i], d_g[name])
        d_gates.append(torch.stack([d_g[name] for name in kind.bias]))
    if not d_gates:
        return torch.zeros_like(wx), torch.zeros_like(R), torch.zeros_like(b), torch.stack(d_state)[:, :, None]
    d_gate = torch.stack(d_gates[::-1], 2)                                 # (gates, B, T, Nh, Dh)
    of = lambda names: torch.stack([d_gate[kind.bias.index(name)] for name in names])
    h = torch.stack([s[0] for s in before[:-1]], 1)                        # (B, T, Nh, Dh)
    d_R = torch.einsum("gbtne,btnd->gned", of(kind.recurrent), h)          # one product after the loop
    return of(kind.inputs).permute(1, 2, 0, 3, 4), d_R, d_gate.sum((1, 2)), torch.stack(d_state)[:, :, None]


def _checked(wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None, cell: str) -> tuple[Cell, tuple[Tensor, ...]]:
    """The cell and its starting states, one `(B, Nh, Dh)` each; bad shapes are named."""
    kind = cell_of(cell)
    if wx.ndim != 5 or wx.shape[2] != len(kind.inputs):
        raise ValueError(f"wx must have shape (B, T, {len(kind.inputs)}, Nh, Dh), gates {kind.inputs}; got {tuple(wx.shape)}")
    batch, _, _, heads, width = wx.shape
    for name, x, shape in (("R", R, (len(kind.recurrent), heads, width, width)), ("b", b, (len(kind.bias), heads, width)),
                           ("states", states, (len(kind.states), batch, 1, heads, width))):
        if x is not None and tuple(x.shape) != shape:
            raise ValueError(f"{name} of {cell} must have shape {shape}; got {tuple(x.shape)}")
    if states is None:
        states = wx.new_zeros(len(kind.states), batch, 1, heads, width)
    return kind, tuple(states[:, :, 0])


# ------------------------------------------------------------------------------------------------ what moves, what fits

def traffic(steps: int, gates: int, heads: int, width: int, nbytes: int = 2, *, fused: bool = False) -> int:
    """Bytes of the recurrent matrix read from slow memory over `steps` tokens: at every step, or once."""
    return (1 if fused else steps) * gates * heads * width**2 * nbytes


@dataclass(frozen=True)
class Chip:
    """What a fused kernel may use: streaming multiprocessors, and bytes of fast memory in each for R and the states."""

    name: str = "A100"
    sms: int = 108
    fast_bytes: int = 165_000


class Tiling(NamedTuple):
    """One head of width `width` cut into `gate_tiles` x `hidden_tiles` blocks, each on its own multiprocessor."""

    width: int
    gate_tiles: int
    hidden_tiles: int
    fast_bytes: int


def largest_head(chip: Chip = Chip(), *, cell: str = "lstm", nbytes: int = 2, step: int = 32) -> Tiling:
    """The widest head that a fused kernel can hold on a chip: all tilings of all widths are tried.

    The rules: G Dh divisible by 32 gate tiles, Dh by the hidden tiles; fewer tiles than multiprocessors; and
    `nbytes G Dh^2 / (gate tiles x hidden tiles) + 2 nbytes G Dh / gate tiles` within the fast memory of one.
    """
    gates, best = len(cell_of(cell).recurrent), None
    limit = math.isqrt(chip.fast_bytes * chip.sms // (gates * nbytes)) + step
    for width in range(step, limit, step):
        for gate_tiles in range(1, chip.sms):
            if gates * width % (32 * gate_tiles):
                continue
            for hidden_tiles in range(1, (chip.sms - 1) // gate_tiles + 1):
                held = nbytes * gates * width**2 // (gate_tiles * hidden_tiles) + 2 * nbytes * gates * width // gate_tiles
                if width % hidden_tiles == 0 and held < chip.fast_bytes and (best is None or width > best.width):
                    best = Tiling(width, gate_tiles, hidden_tiles, held)
    if best is None:
        raise ValueError(f"chip.fast_bytes={chip.fast_bytes} holds no head of width {step}; give a larger chip, or "
                         f"nbytes < {nbytes}")
    return best
