"""How close is the Monarch kernel to its roofline, and to a convolution by torch.fft? See _gpu.py.

torch.fft takes float32 only. The spectrum of the filter is made in both; ours, in float64, is timed alone, too. Our tiles of
several sequences are all tried.
"""

from __future__ import annotations

import torch
from _gpu import Benchmark, normal

from tutor.attention.methods.fftconv import FFTConv
from tutor.kernels.monarch import GRIDS, fft_conv, filter_spectrum, roofline


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    b, heads, length, taps, gates = shape
    u, *given = normal(dtype, device, *[(b, heads, length)] * (1 + gates))
    pre, post = given if gates else (None, None)
    return u, normal(torch.float32, device, (heads, taps))[0], pre, post


def ours(tile: int):
    return lambda u, h, pre, post: lambda: fft_conv(u, h, pre=pre, post=post, batch_tile=tile)


def rule(dtype, u, h, pre, post):
    """The reference; the filter stays in float32 where half precision is asked for."""
    u, pre, post = (x if x is None else x.to(dtype) for x in (u, pre, post))
    return FFTConv(2).conv(u, h.to(torch.promote_types(h.dtype, dtype)), pre=pre, post=post)


def fft(u, h, pre, post):
    n = 2 * u.shape[-1]

    def run():
        x = (u if pre is None else u * pre).float()
        y = torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(h, n), n)[..., :u.shape[-1]].to(u.dtype)
        return y if post is None else y * post
    return run


def spectrum(u, h, pre, post):
    n = next(n for n in GRIDS if n >= u.shape[-1] + h.shape[-1] - 1)
    return lambda: filter_spectrum(h, n)


def floor(shape: tuple, **on):
    b, heads, length, taps, gates = shape
    return roofline(b, heads, length, taps, gates=gates, **on)


BENCHMARK = Benchmark(
    name="monarch",
    question="Monarch convolution against its roofline and torch.fft",
    columns=("B", "H", "L", "taps", "gates"),
    shapes=[(64, 768, 512, 512, 0), (64, 768, 512, 512, 2), (64, 768, 2048, 2048, 0), (64, 768, 2048, 2048, 2),
            (8, 768, 2048, 2048, 2)],
    small=[(2, 3, 111, 90, 2), (1, 2, 512, 512, 0), (3, 1, 1999, 1999, 2)],
    inputs=inputs,
    ours={f"tile_{n}": ours(n) for n in (1, 2, 4, 8)},
    rule=rule,
    floor=floor,
    beside={"spectrum": spectrum, "fft": fft},
)

if __name__ == "__main__":
    BENCHMARK.main()
