"""The one tolerance of all kernels: no worse than twice what plain torch does in the same dtype, plus four roundings.

    max|kernel - ref64| <= 2 max|eager_same_dtype - ref64| + 4 eps(dtype) max|ref64|
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutor.attention.partial import Partial


def assert_within(kernel: Tensor, eager: Tensor, ref64: Tensor, dtype: torch.dtype, what: str = "output") -> None:
    """Raise `AssertionError` unless `kernel` is as close to the truth as the rule asks; `-inf` must match exactly."""
    kernel, eager = kernel.double().cpu(), eager.double().cpu()
    ref64 = ref64.cpu()
    assert kernel.shape == ref64.shape, f"{what}: shape {tuple(kernel.shape)}, want {tuple(ref64.shape)}"
    assert not kernel.isnan().any(), f"{what}: {int(kernel.isnan().sum())} of {kernel.numel()} entries are NaN"
    finite = ref64 > float("-inf")
    assert torch.equal(kernel > float("-inf"), finite), f"{what}: -inf in the wrong places"
    if not finite.any():
        return
    gap = lambda x: float((x - ref64)[finite].abs().max())
    allowed = 2 * gap(eager) + 4 * torch.finfo(dtype).eps * float(ref64[finite].abs().max())
    assert gap(kernel) <= allowed, f"{what}: error {gap(kernel):.3g} exceeds {allowed:.3g} (eager: {gap(eager):.3g})"


def assert_partial_within(part: Partial, eager: Partial, ref64: Partial, dtype: torch.dtype) -> None:
    """The rule for an output in `dtype` and its log-sum-exp in float32."""
    assert (part.o.dtype, part.lse.dtype) == (dtype, torch.float32)
    assert_within(part.o, eager.o, ref64.o, dtype)
    assert_within(part.lse, eager.lse, ref64.lse, dtype, "lse")
