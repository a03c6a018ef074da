"""From which length on does hashing and sampling pay? HyperAttention against its roofline and exact attention; see _gpu.py.

First one step: a rectangle, given its permutation and sample, and beside it the same with hashing, sorting and drawing, and
exact attention of the rectangle. Then the causal whole, beside exact causal attention. Published blocks and samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _gpu import Benchmark, qkv, sdpa

from tutor.attention.methods.hyper import Hyper
from tutor.kernels.hyper import hyper_attention, hyper_step, roofline

PUBLISHED, SMALL = Hyper(), Hyper(3, block=16, samples=12, min_len=20)


def method_of(q) -> Hyper:
    return PUBLISHED if q.shape[2] >= 4096 else SMALL


def drawing(q) -> torch.Generator:
    """Planes and samples are drawn where the rows are: a generator on the CPU would bring them there first."""
    return torch.Generator(q.device).manual_seed(0)


def rectangle(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    q, k, v = qkv(*shape, dtype, device)
    planes, generator = method_of(q).start(q, drawing(q))
    order = method_of(q).sort(q, k, planes)
    return q, k, v, order, method_of(q).draw(v, order, generator), planes, generator


def step(q, k, v, order, drawn, *_):
    return lambda: hyper_step(q, k, v, order, drawn)


def prepared(q, k, v, order, drawn, planes, generator):
    def run():
        order = method_of(q).sort(q, k, planes)
        return hyper_step(q, k, v, order, method_of(q).draw(v, order, generator))
    return run


def dense(q, k, v, *_):
    return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def whole(q, k, v):
    return lambda: hyper_attention(q, k, v, method=method_of(q), generator=drawing(q))


def gathered(shape: tuple, dtype: str, card: str) -> dict:
    return {"gathered_bytes": roofline(*shape, method=PUBLISHED, dtype=dtype, on=card, cached=False).bytes}


def pairs_share(shape: tuple, *_) -> dict:
    """How many of the pairs of exact causal attention the causal whole computes."""
    text = torch.empty(1).expand(1, 1, shape[3], 1)
    cost = PUBLISHED.cost(text, text)
    return {"causal_pairs_share": cost["loaded"] / cost["pairs"]}


def crossovers(rows: list[dict]) -> list[str]:
    """For each kind of head the shortest length from which on the whole is faster than exact attention, if any."""
    said = []
    for kind in dict.fromkeys((row["Hq"], row["Hkv"], row["D"], row["dtype"]) for row in rows):
        first = None
        for row in sorted(rows, key=lambda row: -row["T"]):               # from the longest down to the first that loses
            if (row["Hq"], row["Hkv"], row["D"], row["dtype"]) == kind:
                if (row["sdpa_over_ours"] or 0) <= 1:
                    break
                first = row["T"]
        told = f"faster than exact attention from {first} tokens on" if first else "not faster than exact attention"
        said.append("Hq {}, Hkv {}, D {}, {}: ".format(*kind) + told)
    return said


STEP = Benchmark(
    name="hyper-step",
    question="one rectangle of HyperAttention against its roofline and torch's scaled_dot_product_attention",
    columns=("B", "Hq", "Hkv", "T", "S", "D"),
    shapes=[(1, hq, hkv, n, n, d) for hq, hkv, d in ((9, 3, 64), (32, 8, 128)) for n in (2**i for i in range(12, 18))],
    small=[(1, 4, 2, 63, 63, 64), (2, 2, 1, 17, 50, 128)],
    inputs=rectangle,
    ours={"step": step},
    rule=lambda dtype, q, k, v, order, drawn, *_: method_of(q).step(
        *(x.to(dtype) for x in (q, k, v)), order, drawn, scale=q.shape[3]**-0.5),
    floor=lambda shape, **on: roofline(*shape, method=PUBLISHED, **on),
    beside={"prepared": prepared, "sdpa": dense},
    also=gathered,
)
WHOLE = Benchmark(
    name="hyper",
    question="HyperAttention, and the length from which on it beats torch's scaled_dot_product_attention",
    columns=STEP.columns,
    shapes=STEP.shapes,
    small=STEP.small,
    inputs=lambda shape, dtype, device: qkv(*shape, dtype, device),
    ours={"hyper": whole},
    rule=lambda dtype, q, k, v: method_of(q).attend(*(x.to(dtype) for x in (q, k, v)), generator=drawing(q)),
    beside={"sdpa": sdpa},
    also=pairs_share,
    notes=crossovers,
)

if __name__ == "__main__":
    STEP.main()
    WHOLE.main()
