"""From which length on does hashing and sampling pay? The kernel of HyperAttention against its roofline and exact attention.

    python benchmarks/hyper.py          # no GPU: the counted roofline only, nobody's seconds
    python benchmarks/hyper.py --gpu    # the same with times, beside torch's scaled_dot_product_attention

Nothing is printed about speed before the kernel's result is within the tolerance of tests/kernels/tolerance.py on every
dtype that is timed. Times are medians of CUDA events after warm-up, batch 1, published blocks and samples: the step alone,
given its permutation and sample; the same with hashing, sorting and drawing; exact attention of the same rectangle; and the
causal whole beside exact causal attention. The crossover is the shortest length that is timed from which the whole is faster.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._gpu import card_of, median_ms, save  # noqa: E402
from tests.kernels.tolerance import assert_within  # noqa: E402
from tutor import kernels  # noqa: E402
from tutor.attention.methods.hyper import Hyper  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "hyper.json"
METHOD = Hyper()
#          Hq Hkv    D
HEADS = [(9, 3, 64), (32, 8, 128)]
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def gate(device: str) -> None:
    """Raise `AssertionError` unless step and recursion are right on small odd shapes, in every dtype that is timed."""
    from tutor.kernels.hyper import hyper_attention, hyper_step

    generator, method = torch.Generator().manual_seed(0), Hyper(3, block=16, samples=12, min_len=20)
    for dtype in DTYPES.values():
        for b, hq, hkv, t, s, d in ((1, 4, 2, 63, 63, 64), (2, 2, 1, 17, 50, 128)):
            q, k, v = (torch.randn(b, h, n, d, generator=generator).to(device, dtype)
                       for h, n in ((hq, t), (hkv, s), (hkv, s)))
            planes, draw = method.start(q)
            order = method.sort(q, k, planes)
            given = {"order": order, "drawn": method.draw(v, order, draw), "scale": d**-0.5}
            wide = [x.double() for x in (q, k, v)]
            for part, truth, eager in (
                    (hyper_step(q, k, v, **given), method.step(*wide, **given), method.step(q, k, v, **given)),
                    (hyper_attention(q, k, v, method=method), method.attend(*wide), method.attend(q, k, v))):
                assert_within(part.o, eager.o, truth.o, dtype)
                assert_within(part.lse, eager.lse, truth.lse, dtype, "lse")


def counted(shape: tuple[int, int, int], n: int, dtype: str, card: str) -> dict:
    """The roofline of one step, and how many of the pairs of exact causal attention the causal whole computes."""
    from tutor.kernels.hyper import roofline

    (hq, hkv, d), text = shape, torch.empty(1, 1, 1, 1).expand(1, 1, n, 1)
    floor, cold = (roofline(1, hq, hkv, n, n, d, method=METHOD, dtype=dtype, on=card, cached=cached) for cached in (True, False))
    cost = METHOD.cost(text, text)
    return {"Hq": hq, "Hkv": hkv, "n": n, "D": d, "dtype": dtype, "bytes": floor.bytes, "gathered_bytes": cold.bytes,
            "flops": floor.flops, "floor_ms": 1e3 * floor.seconds, "bound_by": floor.bound_by,
            "causal_pairs_share": cost["loaded"] / cost["pairs"]}


def timed(shape: tuple[int, int, int], n: int, dtype: str) -> dict:
    """Milliseconds of the step, of the step with its preparation, of the causal whole, and of exact attention for both."""
    import torch.nn.functional as F

    from tutor.kernels.hyper import hyper_attention, hyper_step

    hq, hkv, d = shape
    q, k, v = (torch.randn(1, h, n, d, device="cuda", dtype=DTYPES[dtype]) for h in (hq, hkv, hkv))
    planes, draw = METHOD.start(q, torch.Generator("cuda").manual_seed(0))

    def prepare():
        order = METHOD.sort(q, k, planes)
        return order, METHOD.draw(v, order, draw)

    ready = prepare()
    exact = lambda causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return {"step_ms": median_ms(lambda: hyper_step(q, k, v, *ready)),
            "prepared_ms": median_ms(lambda: hyper_step(q, k, v, *prepare())), "sdpa_ms": median_ms(lambda: exact(False)),
            "causal_ms": median_ms(lambda: hyper_attention(q, k, v, method=METHOD, generator=draw)),
            "causal_sdpa_ms": median_ms(lambda: exact(True))}


def crossovers(rows: list[dict]) -> dict[str, int | None]:
    """For each kind of head the shortest length from which on the causal whole is faster than exact attention, if any."""
    found: dict[str, int | None] = {}
    slower = set()
    for row in sorted(rows, key=lambda row: -row["n"]):                    # from the longest down to the first that loses
        name = f"Hq {row['Hq']}, Hkv {row['Hkv']}, D {row['D']}, {row['dtype']}"
        found.setdefault(name, None)
        if row["causal_ms"] >= row["causal_sdpa_ms"]:
            slower.add(name)
        elif name not in slower:
            found[name] = row["n"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="fail where there is no CUDA device")
    wants_gpu, has_gpu = parser.parse_args().gpu, torch.cuda.is_available()
    if wants_gpu and not has_gpu:
        raise SystemExit("no CUDA device here; run without --gpu for the counted roofline")
    kernels.require()
    gate("cuda" if has_gpu else "cpu")
    device = torch.cuda.get_device_name() if has_gpu else "none: counted for an H100 SXM"
    card = card_of(device) if has_gpu else "H100 SXM"
    print(f"kernel within tolerance; device: {device}; floor of {card}")
    print(f"{'Hq/Hkv':>7}{'n':>8}{'D':>5}  dtype     {'GB':>8}{'gathered':>9}{'TFLOP':>8}{'floor ms':>10}  bound by"
          f"{'causal pairs':>13}"
          + (f"{'step':>8}{'+ sort':>8}{'SDPA':>8}{'causal':>9}{'SDPA':>8}" if has_gpu else ""))
    rows = []
    for dtype in DTYPES:
        for shape in HEADS:
            for n in LENGTHS:
                row = counted(shape, n, dtype, card) | (timed(shape, n, dtype) if has_gpu else {})
                rows.append(row)
                print(f"{row['Hq']:>4}/{row['Hkv']:<2}{n:>8}{row['D']:>5}  {dtype:<9}{row['bytes'] / 1e9:>9.4f}"
                      f"{row['gathered_bytes'] / 1e9:>9.4f}{row['flops'] / 1e12:>8.4f}{row['floor_ms']:>10.4f}  "
                      f"{row['bound_by']:<8}{row['causal_pairs_share']:>13.1%}"
                      + (f"{row['step_ms']:>8.3f}{row['prepared_ms']:>8.3f}{row['sdpa_ms']:>8.3f}{row['causal_ms']:>9.3f}"
                         f"{row['causal_sdpa_ms']:>8.3f}" if has_gpu else ""), flush=True)
    if not has_gpu:
        return                                    # nothing was measured: what a GPU wrote stays
    for name, n in crossovers(rows).items():
        print(f"{name}: " + (f"faster than exact attention from {n} tokens on" if n else "never faster than exact attention"))
    save(RESULTS, "HyperAttention against its roofline, and the length from which on it beats torch SDPA", device, card, rows)


if __name__ == "__main__":
    main()
