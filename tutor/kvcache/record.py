"""Record: the story of a cache, token by token, in the schema that `cache_shelf` draws."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tutor.kvcache import Policy, RaggedCache, make
from tutor.model.llama import Model
from tutor.trace import Recorder, Trace


@torch.no_grad()
def record(model: Model, text: str | Tensor, policy: str | Policy, budget: int | None, *, decode_steps: int,
           layers: Iterable[int] | None = None, **params: object) -> Trace:
    """Run a text through a cache, prefill first, then token by token, and write down who came and who went.

    Args:
        text: the text, or its ids `(N,)`; everything but the last `decode_steps` tokens is prefilled in one call (step
            0), each other token is one step. The text is given: the model's own predictions are not followed.
        policy, budget, params: as for `tutor.attach`.
        layers: layers to record; by default four, spread over the depth. The cache works on all of them.

    Returns:
        A trace "kvcache.evict/1". `nll` of a step is the loss of the token that it predicts (nan for the last one).
    """
    ids = (model.encode(text) if isinstance(text, str) else torch.as_tensor(text, device=model.device)).reshape(-1)
    if not 1 <= decode_steps < len(ids):
        raise ValueError(f"decode_steps must be in [1, {len(ids) - 1}] for {len(ids)} tokens; got {decode_steps}")
    n_layers = model.config.n_layers
    shown = sorted({round(i * (n_layers - 1) / 3) for i in range(4)} if layers is None else set(layers))
    if not shown or not 0 <= shown[0] <= shown[-1] < n_layers:
        raise ValueError(f"layers must be in [0, {n_layers}); got {shown}")
    chosen = make(policy, **params)
    prefill = len(ids) - decode_steps
    pieces = [str(i) for i in ids.tolist()] if model.tokenizer is None else model.tokenizer.pieces(ids)
    subject = {"tokens": pieces, "budget": budget, "policy": chosen.name, "prefill": prefill,
               "model": model.config.name}
    settings = {"budget": budget, **asdict(chosen)}
    recorder = Recorder("kvcache.evict/1", method=chosen.name, params=settings, subject=subject)
    cache = RaggedCache.for_model(model, chosen, budget, trace=recorder, trace_layers=shown)
    nbytes, nll, appended_at = [], [], np.zeros(len(ids), np.int32)
    evicted_at = np.full((len(shown), model.config.n_kv_heads, len(ids)), -1, np.int32)
    for start, end in [(0, prefill), *((t, t + 1) for t in range(prefill, len(ids)))]:
        appended_at[start:end] = recorder.step
        recorder.events("appended", pos=range(start, end))
        logits = model.forward(ids[None, start:end], cache=cache, logits="last").logits[0, -1].float()
        nll.append(F.cross_entropy(logits, ids[end]).item() if end < len(ids) else math.nan)
        nbytes.append(cache.nbytes)
        for row, layer in zip(evicted_at[..., :end], shown):
            for head, positions in zip(row, cache.positions(layer)[0]):
                here = np.isin(np.arange(end), positions.cpu().numpy())
                head[(head < 0) & ~here] = recorder.step
        recorder.next_step()
    return recorder.finish(layers=np.array(shown, np.int32), appended_at=appended_at, evicted_at=evicted_at,
                           nbytes=np.array(nbytes, np.int64), nll=np.array(nll, np.float32))
