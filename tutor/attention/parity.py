"""The smallest task that needs a state: is the number of ones so far odd?

Each new bit either flips the answer or leaves it. A network with a state flips one unit; a network that mixes all tokens
anew at each place, in a fixed number of layers, must count them instead, and what it learned about counting short texts
does not carry over to long ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tutor.attention.methods.flash_rnn import cell_of, rnn
from tutor.attention.methods.lightning import Lightning


def parity(texts: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random bits and whether the ones up to each place are odd, int64 `(texts, length)` each."""
    bits = torch.randint(2, (texts, length), generator=generator)
    return bits, bits.cumsum(1) % 2


class Recurrent(nn.Module):
    """Bits to two logits at each place, through one recurrent head of `width` units."""

    def __init__(self, cell: str, width: int = 16):
        super().__init__()
        kind = cell_of(cell)
        self.cell, self.shape = cell, (len(kind.inputs), 1, width)
        self.embed = nn.Embedding(2, math.prod(self.shape))
        self.R = nn.Parameter(torch.randn(len(kind.recurrent), 1, width, width) / math.sqrt(width))
        self.b = nn.Parameter(torch.zeros(len(kind.bias), 1, width))
        self.out = nn.Linear(width, 2)

    def forward(self, bits: Tensor) -> Tensor:
        wx = self.embed(bits).reshape(*bits.shape, *self.shape)
        return self.out(rnn(wx, self.R, self.b, cell=self.cell).states[0, :, :, 0])


class Mixing(nn.Module):
    """Bits to two logits at each place, through layers that mix all places anew: causal "softmax" or "linear" attention."""

    def __init__(self, mix: str, layers: int = 2, heads: int = 2, width: int = 32):
        super().__init__()
        if mix not in ("softmax", "linear"):
            raise ValueError(f"mix must be softmax or linear; got {mix!r}")
        self.mix, self.heads = mix, heads
        self.embed = nn.Embedding(2, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.mlp = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(),
                                               nn.Linear(2 * width, width)) for _ in range(layers))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.out = nn.Linear(width, 2)

    def forward(self, bits: Tensor) -> Tensor:
        x = self.embed(bits)                                               # (B, T, width)
        for qkv, mlp, norm in zip(self.qkv, self.mlp, self.norm):
            q, k, v = qkv(norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)      # (B, H, T, D) each
            if self.mix == "softmax":
                mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                mixed = Lightning(block=64).attend(q, k, v).o / math.sqrt(q.shape[-1])
            x = x + mixed.transpose(1, 2).flatten(2)
            x = x + mlp(x)
        return self.out(x)


def fit(build: Callable[[], nn.Module], *, steps: int = 300, longest: int = 40, texts: int = 64, rate: float = 1e-2,
        seed: int = 0) -> nn.Module:
    """Train on texts of at most `longest` bits, short ones first, with the answer given at every place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        limit = min(longest, 4 + step * longest // max(1, steps // 2))
        length = int(torch.randint(2, limit + 1, (1,), generator=generator)) if step % 4 else limit
        bits, odd = parity(texts, length, generator)
        loss = cross_entropy(model(bits).flatten(0, 1), odd.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, length: int, *, texts: int = 64, seed: int = 1) -> Tensor:
    """Share of right answers at each place of fresh texts `(length,)`."""
    bits, odd = parity(texts, length, torch.Generator().manual_seed(seed))
    return (model(bits).argmax(-1) == odd).float().mean(0)
