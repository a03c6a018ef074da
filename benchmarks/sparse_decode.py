"""Is decoding over an eighth of the keys faster on this machine? One step at 4 096 keys, beside torch's dense attention.

    python benchmarks/sparse_decode.py      # a minute; writes benchmarks/results/sparse-decode-cpu.json

Queries, keys and values are the recorded layer 20 of the real model (9 query heads, 3 KV heads, D = 64, float32), laid out
30 times as in a model of 30 layers, so that a step finds its keys in memory and not in a cache left warm by the step
before. Nothing is timed before every path agrees with the float64 truth. The paths alternate, so that a machine that slows
down or is shared slows all of them; choosing is timed apart: attending alone, the vote alone, and both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from tutor.attention import decode
from tutor.attention.methods.oracle_topk import OracleTopK
from tutor.attention.methods.token_select import TokenSelect
from tutor.attention.selection import attend_selected
from tutor.data import capture

RESULTS = Path(__file__).resolve().parent / "results" / "sparse-decode-cpu.json"
LAYER, SIZES = 20, {"k_top": 448, "n_init": 4, "n_local": 60}            # 512 of 4 096 keys
Step = Callable[[int], object]


def gate(q: Tensor, k: Tensor, v: Tensor, elected: Tensor, own: Tensor) -> None:
    """Raise `AssertionError` unless the vote and both ways to attend equal their references."""
    assert torch.equal(elected, decode.keys_of(TokenSelect(**SIZES).select(q, k)[0])), "the vote elects other keys"
    for keys, method in ((elected, TokenSelect(**SIZES)), (own, OracleTopK(len(elected)))):
        want = attend_selected(q, k, v, method.select(q, k)[0])
        torch.testing.assert_close(decode.attend(q, k, v, keys).o.double(), want.o, rtol=1e-4, atol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--layers", type=int, default=30, help="copies of the layer that take turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--to", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recorded = capture("reference_4096")
    q = recorded.q(LAYER)[:, :, -1:].contiguous()
    k, v = recorded.k(LAYER).contiguous(), recorded.v(LAYER).contiguous()
    ks, vs = [k.clone() for _ in range(given.layers)], [v.clone() for _ in range(given.layers)]
    elected, own = decode.elect(q, k, **SIZES), decode.keys_of(OracleTopK(512).select(q, k)[0])
    gate(q, k, v, elected, own)
    s = k.shape[2]
    print(f"all paths agree with float64; {len(elected)} of {s} keys, {given.threads} threads")

    runs: dict[str, Step] = {
        "dense (torch)": lambda i: decode.dense(q, ks[i], vs[i]),
        "attend, one set for all heads": lambda i: decode.attend(q, ks[i], vs[i], elected),
        "attend, each head its own set": lambda i: decode.attend(q, ks[i], vs[i], own),
        "vote": lambda i: decode.elect(q, ks[i], **SIZES),
        "vote and attend": lambda i: decode.attend(q, ks[i], vs[i], decode.elect(q, ks[i], **SIZES))}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for at in range(-2, given.rounds):                                   # two rounds to warm up
        for name, run in runs.items():
            start = time.perf_counter()
            for i in range(given.layers):
                run(i)
            if at >= 0:
                times[name].append(1e6 * (time.perf_counter() - start) / given.layers)
    base = times["dense (torch)"]
    faster = {name: round(statistics.median(a / b for a, b in zip(base, t)), 2) for name, t in times.items() if t is not base}
    table = {name: {"us_median": round(statistics.median(t), 1), "us_best": round(min(t), 1)} for name, t in times.items()}
    moved = decode.traffic(s, len(elected), hq=q.shape[1], hkv=k.shape[1], d=q.shape[3])
    apart = decode.traffic(s, len(elected), hq=q.shape[1], hkv=k.shape[1], d=q.shape[3], shared=False)["attend"]
    counted = {"dense (torch)": moved["dense"], "attend, one set for all heads": moved["attend"],
               "attend, each head its own set": apart, "vote": moved["vote"], "vote and attend": moved["vote"] + moved["attend"]}
    for name, row in table.items():
        print(f"{name:32s}{row['us_median']:9.1f} us (best {row['us_best']:.1f}), {counted[name] / 1e6:5.2f} MB moved; "
              f"{faster.get(name, 1.0):.2f} times as fast as dense")
    report = {
        "question": __doc__.splitlines()[0], "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()}-core laptop-class CPU", "threads": given.threads, "rounds": given.rounds,
        "load_average": round(os.getloadavg()[0], 1), "layer": LAYER, "keys": s, "read": len(elected), "sizes": SIZES,
        "step_of_one_layer": table, "bytes": counted, "times_faster_than_dense": faster,
        "times_fewer_bytes": {name: round(counted["dense (torch)"] / n, 2) for name, n in counted.items() if "dense" not in name},
        "versions": {"python": platform.python_version(), "torch": torch.__version__}}
    given.to.parent.mkdir(parents=True, exist_ok=True)
    temporary = given.to.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, given.to)


if __name__ == "__main__":
    main()
