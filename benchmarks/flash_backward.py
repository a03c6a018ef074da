"""How close are the backward kernels to their roofline, and to what torch would do? Causal, the backward pass alone; see _gpu.py.

The floor counts five products, and these kernels do seven. torch is asked twice: with grouped heads, and with copied ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _gpu import Benchmark, normal

from tutor.attention.dense import attend
from tutor.kernels.flash import flash_attention
from tutor.kernels.flash_backward import flash_backward, roofline


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    b, hq, hkv, t, d = shape
    return normal(dtype, device, *((b, h, t, d) for h in (hq, hkv, hkv, hq)))


def ours(q, k, v, do):
    part = flash_attention(q, k, v)
    return lambda: flash_backward(q, k, v, part.o, part.lse, do)


def rule(dtype, q, k, v, do):
    given = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad((attend(*given, dtype=dtype).o * do.to(dtype)).sum(), given)


def sdpa(q, k, v, do, copies: int = 1):
    given = [x.detach().requires_grad_() for x in (q, *(x.repeat_interleave(copies, 1) for x in (k, v)))]
    o = F.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=copies == 1)
    return lambda: torch.autograd.grad(o, given, do, retain_graph=True)


BENCHMARK = Benchmark(
    name="flash-backward",
    question="flash backward against its roofline and torch's scaled_dot_product_attention",
    columns=("B", "Hq", "Hkv", "T", "D"),
    shapes=[(1, 32, 8, 4096, 64), (1, 32, 8, 4096, 128), (1, 32, 8, 16384, 64), (1, 32, 8, 16384, 128), (1, 9, 3, 4096, 64)],
    small=[(1, 4, 2, 63, 64), (1, 2, 1, 40, 128)],
    inputs=inputs,
    ours={"flash_backward": ours},
    rule=rule,
    floor=lambda shape, **on: roofline(*shape[:3], shape[3], *shape[3:], **on),
    beside={"sdpa": sdpa, "sdpa_copied": lambda q, k, v, do: sdpa(q, k, v, do, q.shape[1] // k.shape[1])},
)

if __name__ == "__main__":
    BENCHMARK.main()
