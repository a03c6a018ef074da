"""Prefix tuning: teach a frozen model a style by training a prefix alone, as rows of keys and values or as NTK's Z and k.

Idea        A prefix of keys and values in every layer steers a model without touching a weight. NTK-Attention trains what is
            left of such a prefix when it is summed up; here both can be trained on the same task, from the same start.
Task        A sentence of the Python documentation, a line break, the same sentence as a telegram: no articles, no auxiliaries,
            no commas, STOP at the end. The loss counts the telegram.
Gradients   pass through the seams of the model (`attend`, `embeds`, `layers`). Only the last layers carry a prefix; those below
            run once for each example.
See also    tutor/attention/methods/ntk.py, benchmarks/prefix_tuning.py (the recorded comparison)
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from tutor import texts
from tutor.attention.dense import attend
from tutor.attention.methods.ntk import Summary, fit, read
from tutor.attention.partial import Partial, merge

LAYERS, FITTED = range(20, 30), 64
LEFT_OUT = {"a", "an", "the", "is", "are", "be", "been", "being", "was", "were", "will", "would", "has", "have", "had", "does",
            "do", "can", "may", "should", "must", "it", "this", "that", "these", "those", "there"}
Far = Callable[[int, Tensor], Partial]                       # layer, queries (B, Hq, T, D) -> the prefix as they see it
Started = dict[int, tuple[Tensor, Tensor, Tensor]]           # layer -> q, k, v of a text


def telegram(sentence: str) -> str:
    """The same in fewer words: "The list of names is sorted." becomes "list of names sorted STOP"."""
    words = [word for word in sentence.rstrip(".").replace(",", "").split() if word.lower() not in LEFT_OUT]
    return " ".join([words[0].lower(), *words[1:], "STOP"]) if words else "STOP"


def pairs(tokenizer, count: int) -> list[tuple[Tensor, int]]:
    """`count` examples, the same every time: ids of both sentences, and how many of them belong to the first."""
    plain = [s for s in texts.sentences() if 7 <= len(s.split()) <= 14 and re.fullmatch(r"[A-Z][a-z]+[A-Za-z ,]*\.", s)]
    random.Random(0).shuffle(plain)
    found = []
    for sentence in plain[:count]:
        start = tokenizer.encode(sentence + "\n")
        found.append((torch.tensor(start + tokenizer.encode(telegram(sentence) + "\n")), len(start)))
    return found


class Task:
    """Examples as the layers with a prefix see them: the residual after the layers below, and where the telegram starts."""

    def __init__(self, model, examples: list[tuple[Tensor, int]], layers: range = LAYERS):
        self.model, self.layers = model, layers
        with torch.no_grad():
            self.examples = [(model.forward(ids[None], layers=range(layers[0]), logits="none").hidden[0], ids, start)
                             for ids, start in examples]

    def __len__(self):
        return len(self.examples)

    def loss(self, which: Iterable[int], far: Far | None = None) -> tuple[Tensor, int]:
        """Sum of the surprise of all telegrams of a batch, in nats, and how many tokens that is."""
        chosen = [self.examples[i] for i in which]
        longest = max(len(ids) for _, ids, _ in chosen)                       # padding comes last, where nobody looks back at it
        x = torch.stack([F.pad(hidden, (0, 0, 0, longest - len(ids))) for hidden, ids, _ in chosen])

        def with_prefix(layer, q, view, *, pos_q, tree_mask=None, trace=None):
            own = attend(q, view[0].k, view[0].v, dtype=q.dtype)
            part = own if far is None else merge(own, far(layer, q))
            return Partial(part.o, part.lse)

        hidden = self.model.forward(embeds=x, layers=self.layers, attend=with_prefix, logits="none").hidden
        rows = torch.cat([hidden[i, start - 1:len(ids) - 1] for i, (_, ids, start) in enumerate(chosen)])
        words = torch.cat([ids[start:] for _, ids, start in chosen])
        return F.cross_entropy(self.model.head(rows).float(), words, reduction="sum"), len(words)

    @torch.no_grad()
    def judge(self, far: Far | None = None) -> float:
        """Mean surprise of a token of a telegram."""
        found = [self.loss(range(at, min(at + 8, len(self))), far) for at in range(0, len(self), 8)]
        return float(sum(loss for loss, _ in found)) / sum(words for _, words in found)


@torch.no_grad()
def started(model, examples: list[tuple[Tensor, int]], layers: range = LAYERS, fitted: int = FITTED) -> Started:
    """Per layer: q, k and v of a text of other pairs; its first rows start a prefix, the later ones ask for it."""
    ids = torch.cat([ids for ids, _ in examples])[:4 * fitted]
    seen = model.forward(ids[None], collect=("q", "k", "v"), logits="none").collected
    return {layer: tuple(seen[name][layer].float() for name in "qkv") for layer in layers}


class Rows:
    """A prefix of m rows of keys and values in every layer."""

    def __init__(self, begun: Started, m: int):
        leaf = lambda x: x[:, :, :m].clone().requires_grad_()
        self.rows = {layer: (leaf(k), leaf(v)) for layer, (_, k, v) in begun.items()}

    def parameters(self) -> list[Tensor]:
        return [x for pair in self.rows.values() for x in pair]

    def __call__(self, layer: int, q: Tensor) -> Partial:
        k, v = (x.expand(q.shape[0], -1, -1, -1) for x in self.rows[layer])
        return attend(q, k, v, causal=False, dtype=q.dtype)


class Matrix:
    """Z and k of NTK-Attention in every layer; k is made positive by |k|, as in the published code."""

    def __init__(self, begun: Started):
        self.parts = {}
        for layer, (q, k, v) in begun.items():
            m = q.shape[2] // 4                                               # rows to fit to; the others ask
            fitted = fit(q[:, :, m:], k[:, :, :m], v[:, :, :m], own=attend(q[:, :, m:], k[:, :, m:], v[:, :, m:]))
            size = fitted.k.amax(-1)                                          # shift so that the largest weight is 1
            z, weight = fitted.z / size[..., None, None], fitted.k / size[..., None]
            self.parts[layer] = z.requires_grad_(), weight.requires_grad_(), fitted.shift + size.log()

    def parameters(self) -> list[Tensor]:
        return [x for z, weight, _ in self.parts.values() for x in (z, weight)]

    def __call__(self, layer: int, q: Tensor) -> Partial:
        z, weight, shift = self.parts[layer]
        whole = Summary(z, weight.abs(), shift)
        return read(q, Summary(*(x.expand(q.shape[0], *x.shape[1:]) for x in (whole.z, whole.k, whole.shift))))


def made(form: str, begun: Started) -> Rows | Matrix:
    """A prefix to be trained: "matrix", or so many rows, "16 rows"."""
    return Matrix(begun) if form == "matrix" else Rows(begun, int(form.split()[0]))


def train(task: Task, far: Rows | Matrix, width: float, steps: int, seed: int, *, batch: int = 4, name: str = "") -> list[float]:
    """Adam on the prefix, its step width falling to nothing; losses of the batches."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(far.parameters(), lr=width)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for _ in tqdm(range(steps), desc=name, leave=False):
        loss, words = task.loss(torch.randperm(len(task), generator=order)[:batch].tolist(), far)
        optimizer.zero_grad()
        (loss / words).backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()) / words)
    return losses
