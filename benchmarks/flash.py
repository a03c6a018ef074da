"""How close is the flash kernel to its roofline, and to what torch would do? Causal forward; see _gpu.py."""

from __future__ import annotations

from _gpu import Benchmark, qkv, sdpa

from tutor.attention.dense import attend
from tutor.kernels.flash import flash_attention, roofline

BENCHMARK = Benchmark(
    name="flash",
    question="flash forward against its roofline and torch's scaled_dot_product_attention",
    columns=("B", "Hq", "Hkv", "T", "S", "D"),
    shapes=[(1, 32, 8, 4096, 4096, 64), (1, 32, 8, 4096, 4096, 128), (1, 32, 8, 16384, 16384, 64),
            (1, 32, 8, 16384, 16384, 128), (1, 32, 8, 32768, 32768, 128), (1, 9, 3, 4096, 4096, 64),
            (1, 32, 8, 1, 32768, 128)],
    small=[(1, 4, 2, 63, 63, 64), (2, 2, 1, 17, 50, 128)],
    inputs=lambda shape, dtype, device: qkv(*shape, dtype, device),
    ours={"flash": lambda q, k, v: lambda: flash_attention(q, k, v)},
    rule=lambda dtype, q, k, v: attend(q, k, v, dtype=dtype),
    floor=lambda shape, **on: roofline(*shape, **on),
    beside={"sdpa": sdpa},
)

if __name__ == "__main__":
    BENCHMARK.main()
