"""How near is the lightning kernel to its roofline, and where does it pass softmax attention? See _gpu.py.

The forward pass, then forward with backward; beside torch's scaled_dot_product_attention and, if installed, fla.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from _gpu import Benchmark, normal, sdpa

from tutor.attention.methods.lightning import naive, slopes
from tutor.kernels.lightning import lightning, roofline


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    heads, n, d = shape
    *qkv, do = normal(dtype, device, *[(1, heads, n, d)] * 4)
    return *qkv, slopes(heads).to(device), do


def ours(q, k, v, s, do):
    return lambda: lightning(q, k, v, s).o


def rule(dtype, q, k, v, s, do):
    return naive(*(x.to(dtype) for x in (q, k, v)), s).o


def fla(q, k, v, s, do):
    from fla.ops.simple_gla import chunk_simple_gla

    by_time = [x.transpose(1, 2).contiguous() for x in (q, k, v)]         # (B, T, H, D)
    decay = (-s.float()).expand(1, q.shape[2], q.shape[1]).contiguous()
    return lambda: chunk_simple_gla(*by_time, g=decay, scale=1.0)[0].transpose(1, 2)


def both(make):
    """The forward pass of `make` with its backward pass: o, and the gradients of q, k, v."""
    def with_gradients(q, k, v, s, do):
        given = [x.detach().to(x.dtype, copy=True).requires_grad_() for x in (q, k, v)]
        forward = make(*given, s, do)

        def run():
            o = forward()
            return o.detach(), *torch.autograd.grad(o, given, do.to(o.dtype))
        return run
    return with_gradients


def rule_of_both(dtype, q, k, v, s, do):
    given = [x.to(dtype) for x in (q, k, v)]
    return both(lambda q, k, v, s, do: lambda: naive(q, k, v, s).o)(*given, s, do)()


BENCHMARK = Benchmark(
    name="lightning",
    question="the lightning kernel against its roofline, softmax attention and fla",
    columns=("heads", "T", "D"),
    shapes=[(16, n, d) for d in (64, 128) for n in (2048, 4096, 16384, 65536)],
    small=[(2, 70, 64)],
    inputs=inputs,
    ours={"lightning": ours},
    rule=rule,
    floor=lambda shape, **on: roofline(1, shape[0], shape[0], *shape[1:], **on),
    beside={"sdpa": sdpa, "fla": fla},
    dtypes=("bfloat16",),
)
BOTH = replace(BENCHMARK, name="lightning-backward", floor=None, ours={"lightning": both(ours)}, rule=rule_of_both,
               question="the lightning kernel, forward and backward, beside softmax attention and fla",
               beside={name: both(make) for name, make in BENCHMARK.beside.items()})

if __name__ == "__main__":
    BENCHMARK.main()
    BOTH.main()
