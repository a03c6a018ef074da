"""The formula of the published NTK-Attention demo, as it stands: exponentials first, the quotient last."""

from __future__ import annotations

import torch

from tutor.attention.dense import logits
from tutor.attention.methods.ntk import log_elu, summarise


def undivided(q, k, v, kp, vp):
    """(exp(tau q k) v + phi(q) Z) / (exp(tau q k) 1 + phi(q) z): infinity over infinity as soon as a logit passes 88."""
    summary, groups = summarise(kp, vp), q.shape[1] // k.shape[1]
    weights = torch.exp(logits(q, k, dtype=q.dtype))
    features = torch.exp(log_elu(q / q.shape[-1] ** 0.25) + summary.shift.repeat_interleave(groups, 1)[..., None, None])
    z, weight = (x.repeat_interleave(groups, 1) for x in (summary.z, summary.k))
    top = weights @ v.repeat_interleave(groups, 1) + features @ z
    return top / (weights.sum(-1, keepdim=True) + features @ weight[..., None])
