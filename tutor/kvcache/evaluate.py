"""Evaluate: how much worse a text is predicted when the model may remember less, against measured bytes.

A text's first `prefix` tokens are prefilled in one call and compressed once; the rest is teacher-forced through the
compressed cache, which goes on evicting. Every token after the prefix but the first is predicted by a model that has
forgotten something, and these are the losses that count.

With `chunk=1` this is decoding, token by token. With `chunk=n` the rest goes through in calls of n rows, each followed
by eviction down to the budget: a row sees the budget and up to n - 1 rows more, in n times fewer forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from tutor.kvcache import Policy, RaggedCache, make
from tutor.model.llama import Model


@dataclass(frozen=True)
class Point:
    """One policy at one budget on one text.

    Attributes:
        policy, params, budget: what ran; budget None is the full cache.
        nll: mean loss in nats a token, over `tokens` tokens; perplexity is its exponential.
        low, high: 95 % interval of perplexity, from the spread of means over blocks of 32 tokens (which are nearly
            independent where single tokens are not).
        nbytes, state_nbytes: measured at the end of the text; peak_nbytes: the most after any call's eviction.
    """

    policy: str
    params: dict[str, Any]
    budget: int | None
    tokens: int
    nll: float
    perplexity: float
    low: float
    high: float
    nbytes: int
    state_nbytes: int
    peak_nbytes: int


@torch.no_grad()
def losses(model: Model, ids: Tensor, cache: RaggedCache, *, prefix: int, chunk: int = 1) -> tuple[Tensor, int]:
    """Loss of every token after `prefix` but the first, `(N - prefix - 1,)` in nats, and the peak of `cache.nbytes`.

    Args:
        ids: `(N,)`; prefix: tokens prefilled in one call; chunk: rows of every later call.
    """
    ids = ids.reshape(-1)
    if not 1 <= prefix <= len(ids) - 2:
        raise ValueError(f"prefix must leave at least two of the {len(ids)} tokens; got {prefix}")
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1; got {chunk}")
    # the general attention (float32 inside) for every policy, the full cache too, so that only forgetting differs
    model.forward(ids[None, :prefix], cache=cache, attend=model.attend, logits="none")
    peak, found = cache.nbytes, []
    for start in range(prefix, len(ids) - 1, chunk):
        end = min(start + chunk, len(ids) - 1)
        logits = model.forward(ids[None, start:end], cache=cache, attend=model.attend).logits[0]
        found.append(F.cross_entropy(logits.float(), ids[start + 1:end + 1], reduction="none"))
        peak = max(peak, cache.nbytes)
    return torch.cat(found), peak


def measure(model: Model, ids: Tensor, policy: str | Policy, budget: int | None, *, prefix: int, chunk: int = 1,
            **params: object) -> Point:
    """`losses` of one policy at one budget, in numbers."""
    chosen = make(policy, **params)
    cache = RaggedCache.for_model(model, chosen, budget)
    loss, peak = losses(model, ids, cache, prefix=prefix, chunk=chunk)
    low, high = interval(loss)
    mean = loss.double().mean().item()
    return Point(chosen.name, asdict(chosen), budget, len(loss), mean, math.exp(mean), math.exp(low), math.exp(high),
                 cache.nbytes, cache.state_nbytes, peak)


def interval(loss: Tensor, block: int = 32) -> tuple[float, float]:
    """95 % interval of the mean of a series whose neighbours are alike: normal, over means of blocks."""
    means = torch.stack([part.double().mean() for part in loss.split(block)])
    half = 1.96 * means.std().item() / math.sqrt(len(means)) if len(means) > 1 else float("inf")
    return loss.double().mean().item() - half, loss.double().mean().item() + half


def perplexity_curve(model: Model, ids: Tensor, policies: Mapping[str, Policy] | Iterable[str],
                     budgets: Iterable[int], *, prefix: int, chunk: int = 1) -> dict[str, list[Point]]:
    """Perplexity against bytes: for each policy one point per budget (for one that evicts nothing, a single point).

    Args:
        policies: catalog names, or `{label: policy}`.
    """
    named = dict(policies) if isinstance(policies, Mapping) else {name: make(name) for name in policies}
    budgets = list(budgets)
    jobs = [(label, budget) for label, policy in named.items() for budget in (budgets if policy.evicts else [None])]
    curves: dict[str, list[Point]] = {label: [] for label in named}
    for label, budget in tqdm(jobs, desc="perplexity", unit="point"):
        curves[label].append(measure(model, ids, named[label], budget, prefix=prefix, chunk=chunk))
    return curves
