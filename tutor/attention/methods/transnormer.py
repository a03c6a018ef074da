"""TransNormer: what stands around Lightning attention in a language model.

Idea        Without softmax nothing keeps the output in scale, so a norm over all heads follows it; and without a denominator
            a head cannot say "nothing found", so a gate does.
Rule        q, k, v = SiLU(W x);  y = lightning(q, k, v);  x <- x + W_o (gate(x) * norm(y)), gate a low-rank sigmoid;
            x <- x + (W_1 x * W_2 x) W_3 (SGLU);  norm(x) = x / (|x| / sqrt(d)) (SRMSNorm, no weights), before each part.
            Decays: `slopes(heads, layer, layers)`, the first layer forgets most, the last hardly at all.
Cost        Constant per token at any length; to go on, a layer needs one (D, D) state for each head.
Paper       Qin et al. 2024, Various Lengths, Constant Speed, section 3 (the architecture, first given for TransNormerLLM);
            section number unverified.
Differs     The rotation of queries and keys in the first layer (LRPE; "only there" is unverified) is left out: decay tells
            near from far. Sizes are those of a lesson.
See also    lightning (what mixes the tokens), tests/attention/test_transnormer.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, sigmoid, silu

from tutor.attention.methods.lightning import Lightning, slopes
from tutor.catalog import method


def srms_norm(x: Tensor) -> Tensor:
    """`x / (|x| / sqrt(width))` over the last axis; zero rows stay zero."""
    return x * x.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()


@method("transnormer", "attention", "TransNormer layer", paper="qin2024various", flags=("layer",))
class TransNormerLayer(nn.Module):
    """One layer: `(B, T, width) -> (B, T, width)`, and the state `(B, heads, D, D)` that continues the text.

    `mix="softmax"` puts causal softmax attention in the same place (no state): the peer of a fair comparison.
    """

    def __init__(self, width: int, heads: int, layer: int = 0, layers: int = 1, *, mix: str = "lightning", rank: int = 16,
                 block: int = 64):
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads; got width={width}, heads={heads}")
        if mix not in ("lightning", "softmax"):
            raise ValueError(f"mix must be lightning or softmax; got {mix!r}")
        self.heads, self.mix, self.lightning = heads, mix, Lightning(block)
        self.register_buffer("s", slopes(heads, layer, layers).float())
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False))
        self.up, self.side, self.down = (nn.Linear(a, b, bias=False)
                                         for a, b in ((width, 2 * width), (width, 2 * width), (2 * width, width)))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        normed = srms_norm(x)
        q, k, v = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)       # (B, H, T, D) each
        if self.mix == "lightning":
            mixed, state = self.lightning.attend(silu(q), silu(k), silu(v), self.s, state=state)
        elif state is not None:
            raise ValueError("softmax attention carries no state; pass the whole text, state=None")
        else:
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(sigmoid(self.gate(normed)) * srms_norm(mixed.transpose(1, 2).flatten(2)))
        normed = srms_norm(x)
        return x + self.down(self.up(normed) * self.side(normed)), state


class TransNormer(nn.Module):
    """A language model of such layers: ids `(B, T)` to logits `(B, T, vocabulary)`, and the states of all layers."""

    def __init__(self, vocabulary: int, width: int = 64, heads: int = 4, layers: int = 2, *, mix: str = "lightning",
                 seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Embedding(vocabulary, width)
            self.layers = nn.ModuleList(TransNormerLayer(width, heads, i, layers, mix=mix) for i in range(layers))
            self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor, states: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor | None]]:
        x, after = self.embed(ids), []
        for i, layer in enumerate(self.layers):
            x, state = layer(x, None if states is None else states[i])
            after.append(state)
        return self.head(srms_norm(x)), after
