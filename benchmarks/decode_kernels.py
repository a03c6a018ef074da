"""How close do the decode kernels come to the memory's speed, and to what torch would do? One query row a head; see _gpu.py.

torch has no lengths: for ragged requests it is given the padded batch with a mask, which is what a user would write.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _gpu import Benchmark, qkv

from tutor.attention.dense import attend
from tutor.attention.partial import Partial
from tutor.kernels.lean_decode import lean_decode
from tutor.kernels.split_decode import roofline, split_decode


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    hq, hkv, s, d, lengths = shape
    return *qkv(len(lengths), hq, hkv, 1, s, d, dtype, device), torch.tensor(lengths, dtype=torch.int32, device=device)


def rule(dtype, q, k, v, lengths):
    parts = [attend(q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n], dtype=dtype) for b, n in enumerate(lengths.tolist())]
    return Partial(torch.cat([part.o for part in parts]), torch.cat([part.lse for part in parts]))


def sdpa(q, k, v, lengths):
    s = k.shape[2]
    mask = None if bool((lengths == s).all()) else (torch.arange(s, device=q.device) < lengths[:, None])[:, None, None]
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def floor(shape: tuple, **on):
    hq, hkv, s, d, lengths = shape
    return roofline(len(lengths), hq, hkv, s, d, lengths=lengths, **on)


BENCHMARK = Benchmark(
    name="decode-kernels",
    question="decoding one query row against the memory's speed and torch's scaled_dot_product_attention",
    columns=("Hq", "Hkv", "S", "D", "lengths"),
    shapes=[(32, 8, 32768, 128, [32768]), (32, 8, 131072, 128, [131072]), (32, 8, 8192, 128, [8192] * 8),
            (32, 32, 8192, 64, [8192] * 4), (9, 3, 8192, 64, [8192]),
            (32, 8, 65536, 128, [65536, 1024, 30000, 5000, 512, 16000, 2048, 9000])],
    small=[(6, 2, 75, 64, [75]), (4, 1, 50, 128, [50, 1, 33])],
    inputs=inputs,
    ours={"split": lambda q, k, v, lengths: lambda: split_decode(q, k, v, lengths=lengths),
          "lean": lambda q, k, v, lengths: lambda: lean_decode(q, k, v, lengths=lengths)},
    rule=rule,
    floor=floor,
    beside={"sdpa": sdpa},
)

if __name__ == "__main__":
    BENCHMARK.main()
